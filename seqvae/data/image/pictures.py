"""Picture files, whatever people call one: read as the eye sees them, or refused with a reason."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, features

from seqvae.data.preparation import printable

FORMATS = {  # Pillow's names; it knows others, some of which start programs
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
}
if "avif" in features.modules and features.check("avif"):
    FORMATS["AVIF"] = (".avif", ".avifs")
SUFFIXES = tuple(ending for endings in FORMATS.values() for ending in endings)
MODES = {1: "L", 3: "RGB"}  # Pillow's names, by the number of channels
CHANNELS = tuple(MODES)
HALF_A_LEVEL = 0.5 / 255
MOST_PIXELS = 64_000_000  # a larger picture is refused before it takes memory

Pixels = NDArray[np.uint8]


def read_picture(path: Path, channels: int = 3) -> Pixels:
    """Return a picture file's pixels [height width channels], upright, as the eye sees them on a white ground.

    What is in the file counts, not its ending. Grey is ITU-R 601 luma; of an animation the first frame; 16 bits a
    channel, and floats from 0 to 1, are scaled to 8. Raises ValueError, with the file and the reason, for whatever
    cannot be read whole, and for values beyond these.
    """
    try:
        return _from_pillow(_opened(path, MODES[channels]))
    except Exception as error:  # Pillow raises a dozen types for hostile files
        raise ValueError(f"{printable(str(path))}: {reason_of(error, path)}") from None


def reason_of(error: Exception, path: Path) -> str:
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return printable(" ".join(text.split()).replace(repr(str(path)), "it")) or type(error).__name__


def _opened(path: Path, mode: str) -> Image.Image:
    if not path.is_file():
        raise ValueError("no such file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=tuple(FORMATS)) as picture:
            if picture.width * picture.height > MOST_PIXELS:  # known from the header, before any pixel is read
                raise ValueError(f"{picture.width} x {picture.height} is more than {MOST_PIXELS:,} pixels")
            picture.load()
            ImageOps.exif_transpose(picture, in_place=True)
            return _on_white(picture).convert(mode)


def _on_white(picture: Image.Image) -> Image.Image:
    """Return a picture of 8 bits a channel without transparency."""
    if picture.mode.startswith(("I", "F")):  # convert("L") would clip 16 bits at 255
        values = np.array(picture, np.float32)
        most = 65535.0 if picture.mode.startswith("I") else 1.0
        check_range(values.min(), values.max(), most)
        values *= 255 / most
        picture = Image.fromarray(values.clip(0, 255, out=values).round(out=values).astype(np.uint8))
    if picture.has_transparency_data:
        above = picture if picture.mode == "RGBA" else picture.convert("RGBA")
        ground = Image.new("RGB", above.size, "white")
        ground.paste(above, mask=above)
        return ground
    return picture.convert("RGB") if picture.mode in ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV") else picture


def check_range(low: float, high: float, most: float = 1.0) -> None:
    """Raise ValueError where values from `low` to `high` are not from 0 to `most`, give or take half a level."""
    slack = most * HALF_A_LEVEL
    if not -slack <= low <= high <= most + slack:
        raise ValueError(f"its values must lie in [0, {most:g}], got {low:g} to {high:g}")


def resized(item: Pixels, height: int, width: int) -> Pixels:
    """Return a picture cut to the proportions of another size about its centre, then brought to that size."""
    return _from_pillow(ImageOps.fit(_to_pillow(item), (width, height), Image.Resampling.LANCZOS))


def recoloured(item: Pixels, channels: int) -> Pixels:
    """Return a picture with as many channels: grey as ITU-R 601 luma, or colour."""
    return item if item.shape[2] == channels else _from_pillow(_to_pillow(item).convert(MODES[channels]))


def _to_pillow(item: Pixels) -> Image.Image:
    return Image.fromarray(item[..., 0] if item.shape[2] == 1 else item)


def _from_pillow(picture: Image.Image) -> Pixels:
    values = np.asarray(picture, np.uint8)
    return values[..., None] if values.ndim == 2 else values


def write_png(path: Path, array: Pixels) -> None:
    """Write an array [height width 1 or 3] as a PNG file, beside its place and then renamed."""
    _save(path, [array], format="PNG")


def write_gif(path: Path, frames: Sequence[Pixels], seconds: float) -> None:
    """Write pictures of one size as an endless GIF that shows each for so long, there and back."""
    there_and_back = [*frames, *frames[-2:0:-1]]
    _save(path, there_and_back, format="GIF", save_all=True, duration=round(1000 * seconds), loop=0)


def _save(path: Path, arrays: Sequence[Pixels], **options: Any) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    first, *more = map(_to_pillow, arrays)
    try:
        if more:
            options["append_images"] = more
        first.save(temporary, **options)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
