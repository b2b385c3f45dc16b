"""Words beside a preview: left of the rows of a picture and above its columns, or before each line of a text."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from seqvae.data.codec import Preview

Pixels = NDArray[np.uint8]

SIZE = 13  # pixels a letter is high
MARGIN = 6  # pixels around words


def labelled(preview: Preview, rows: Sequence[str], columns: Sequence[str]) -> Preview:
    """Return the preview of a grid of items, row by row, with a label a row and one a column."""
    image, text = preview.image, preview.text
    if text is not None:
        names = (f"{row}: {column}" for row in rows for column in columns)
        text = "\n".join(f"{name}  {line}" for name, line in zip(names, text.split("\n"), strict=True))
    return preview._replace(image=None if image is None else caption(image, rows, columns), text=text)


def caption(image: Pixels, rows: Sequence[str] = (), columns: Sequence[str] = ()) -> Pixels:
    """Return a picture [height width 3] with words left of each of its rows and above each of its columns.

    The picture's rows are as many as there are words for them, of one height; so are its columns.
    """
    font = ImageFont.load_default(SIZE)
    left = max((round(font.getlength(text)) for text in rows), default=-2 * MARGIN) + 2 * MARGIN
    above = SIZE + 2 * MARGIN if columns else 0
    height, width = image.shape[:2]
    picture = Image.new("RGB", (left + width, above + height), "white")
    picture.paste(Image.fromarray(image), (left, above))
    draw = ImageDraw.Draw(picture)
    for place, text in enumerate(rows):
        draw.text((left - MARGIN, above + (place + 0.5) * height / len(rows)), text, "black", font, anchor="rm")
    for place, text in enumerate(columns):
        draw.text((left + (place + 0.5) * width / len(columns), above / 2), text, "black", font, anchor="mm")
    return np.asarray(picture)
