"""Pictures <-> pixel tensors, and a person's folder of pictures to a prepared dataset."""

import hashlib
import math
import os
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from seqvae.data.codec import Codec, Preview
from seqvae.data.preparation import (
    Outcome,
    Record,
    Rejected,
    Report,
    digest_of,
    find_files,
    name_of,
    prepare,
    printable,
    refuse_existing,
    split_of,
)

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # Pillow knows others, some of which start programs
MODES = {1: "L", 3: "RGB"}  # Pillow's names, by the number of channels
MOST_PIXELS = 64_000_000  # a larger picture is refused before it takes memory
PREVIEW_SIDE = 96  # pixels; smaller pictures are shown enlarged to about this
GAP = 2  # pixels between the pictures of a preview
MOST_IN_A_ROW = 16  # so many pictures are a strip, more of them a grid

Pixels = NDArray[np.uint8]


class PixelCodec(Codec[Pixels]):
    """Pictures as uint8 arrays [height width channels], one window each: uint8 [channels height width].

    `image_shape` is (channels, height, width). A picture of another size is cut to the shape's proportions
    about its centre, then resized. With `binarize` the view draws each pixel as 0 or 1, 1 with the probability
    value / 255 (dynamic binarization; Salakhutdinov & Murray, 2008); the stored window stays grey.
    """

    view_options: ClassVar[frozenset[str]] = frozenset({"binarize"})
    suffix: ClassVar[str | None] = ".png"
    endings: ClassVar[tuple[str, ...]] = SUFFIXES

    def __init__(self, image_shape: Sequence[int], binarize: bool = False) -> None:
        shape = tuple(image_shape) if isinstance(image_shape, list | tuple) else ()
        if len(shape) != 3 or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in shape):
            raise ValueError(f"image_shape must be 3 positive ints (channels, height, width), got {image_shape!r}")
        if shape[0] not in MODES:
            raise ValueError(f"image_shape must have 1 or 3 channels, got {shape[0]}")
        if not isinstance(binarize, bool):
            raise ValueError(f"binarize must be true or false, got {binarize!r}")
        self.image_shape, self.binarize = shape, binarize

    @property
    def options(self) -> dict[str, Any]:
        return {"image_shape": list(self.image_shape), "binarize": self.binarize}

    @property
    def spec(self) -> dict[str, Any]:
        return {"image_shape": list(self.image_shape), "levels": 2 if self.binarize else 256}

    def windows(self, item: Pixels) -> list[Tensor]:
        channels, height, width = self.image_shape
        if item.dtype != np.uint8 or item.ndim != 3 or item.shape[2] != channels or item.size == 0:
            raise ValueError(
                f"a picture must be a uint8 array [height width {channels}], got {item.dtype} {list(item.shape)}"
            )
        if item.shape[:2] != (height, width):
            picture = ImageOps.fit(_to_pillow(item), (width, height), Image.Resampling.LANCZOS)
            item = _from_pillow(picture)
        return [torch.from_numpy(item.transpose(2, 0, 1).copy())]

    def join(self, tensors: Sequence[Tensor], like: Pixels | None = None) -> Pixels:
        """Return the picture of the one tensor; see `intensities` for what its numbers mean."""
        assert len(tensors) == 1, f"a picture is one window, got {len(tensors)}"
        assert tuple(tensors[0].shape) == self.image_shape, f"{tuple(tensors[0].shape)} is not {self.image_shape}"
        values = (self.intensities(tensors[0]) * 255).round().to(torch.uint8)
        return np.ascontiguousarray(values.permute(1, 2, 0).cpu().numpy())

    def intensities(self, tensor: Tensor) -> Tensor:
        """Return brightness in [0, 1] as float32, by the tensor's dtype.

        Floating numbers are that already: a decoder's probabilities and samples. uint8 are stored values, 0 to 255;
        but with `binarize` a uint8 tensor without any value above 1 is a view's zeros and ones (as stored values
        it would be black to the eye and in every view).
        """
        if tensor.is_floating_point():
            return tensor.float().clamp(0, 1)
        assert tensor.dtype == torch.uint8, f"pixels are uint8 or floating, got {tensor.dtype}"
        binary = self.binarize and bool((tensor <= 1).all())
        return tensor.float() / (1 if binary else 255)

    def view(self, tensor: Tensor, rng: np.random.Generator, augment: bool = False) -> Tensor:
        if not self.binarize:
            return tensor
        drawn = rng.random(self.image_shape, np.float32) * 255 < tensor.numpy()
        return torch.from_numpy(drawn.astype(np.uint8))

    def sizes(self, tensor: Tensor) -> dict[str, int]:
        return {"dim": tensor.numel()}

    def score(self, truth: Sequence[Tensor], predicted: Sequence[Tensor]) -> dict[str, float]:
        """Return pixel_accuracy, the share of pixels on the same side of one half, for two levels.

        For 256 levels return psnr_db, the mean over pictures of -10 log10(mean squared error) on brightness in
        [0, 1]: decibels, higher is better, no upper bound (a perfect picture counts as 99).
        """
        pairs = [(self.intensities(a), self.intensities(b)) for a, b in zip(truth, predicted, strict=True)]
        if self.binarize:
            right = [((a >= 0.5) == (b >= 0.5)).float().mean().item() for a, b in pairs]
            return {"pixel_accuracy": sum(right) / max(len(right), 1)}
        errors = [(a - b).square().mean().item() for a, b in pairs]
        decibels = [min(99.0, -10 * math.log10(error)) if error > 0 else 99.0 for error in errors]
        return {"psnr_db": sum(decibels) / max(len(decibels), 1)}

    def attributes(self, window: Tensor) -> dict[str, float]:
        """Return the mean brightness, from 0 to 1."""
        return {"brightness": float(self.intensities(window).mean())}

    def read(self, source: str) -> list[Pixels]:
        return [read_picture(Path(source), self.image_shape[0])]

    def write(self, item: Pixels, path: Path) -> None:
        write_png(path, item)

    def preview(self, items: Sequence[Pixels], columns: int | None = None) -> Preview:
        """Return the pictures in one row, or where they are many in a square grid, small ones enlarged."""
        if not items:
            return Preview()
        factor = max(1, PREVIEW_SIDE // max(self.image_shape[1:]))
        pictures = [self.windows(item)[0].permute(1, 2, 0).numpy() for item in items]  # all of one size
        tiles = [np.kron(picture, np.ones((factor, factor, 1), np.uint8)) for picture in pictures]
        columns = columns or (len(tiles) if len(tiles) <= MOST_IN_A_ROW else math.ceil(math.sqrt(len(tiles))))
        rows = math.ceil(len(tiles) / columns)
        height, width = tiles[0].shape[0] + GAP, tiles[0].shape[1] + GAP
        grid = np.full((rows * height - GAP, columns * width - GAP, 3), 255, np.uint8)
        for place, tile in enumerate(tiles):
            top, left = place // columns * height, place % columns * width
            grid[top : top + tile.shape[0], left : left + tile.shape[1]] = tile  # grey spreads to three channels
        return Preview(image=grid)


def read_picture(path: Path, channels: int = 3) -> Pixels:
    """Return a picture file's pixels [height width channels], upright, as the eye sees them on a white ground.

    What is in the file counts, not its ending. Grey is ITU-R 601 luma; of an animation the first frame; 16 bits a
    channel are scaled to 8. Raises ValueError, with the file and the reason, for whatever cannot be read whole.
    """
    try:
        return _read(path, channels)
    except Exception as error:  # Pillow raises a dozen types for hostile files
        raise ValueError(f"{printable(str(path))}: {_reason(error, path)}") from None


def _reason(error: Exception, path: Path) -> str:
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return printable(" ".join(text.split()).replace(repr(str(path)), "it")) or type(error).__name__


def _read(path: Path, channels: int) -> Pixels:
    if not path.is_file():
        raise ValueError("no such file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=FORMATS) as picture:
            if picture.width * picture.height > MOST_PIXELS:  # known from the header, before any pixel is read
                raise ValueError(f"{picture.width} x {picture.height} is more than {MOST_PIXELS:,} pixels")
            picture.load()
            ImageOps.exif_transpose(picture, in_place=True)
            return _from_pillow(_on_white(picture).convert(MODES[channels]))


def _on_white(picture: Image.Image) -> Image.Image:
    """Return a picture of 8 bits a channel without transparency."""
    if picture.mode.startswith(("I", "F")):  # convert("L") would clip 16 bits at 255
        values = np.array(picture, np.float32)
        np.nan_to_num(values, copy=False, posinf=0, neginf=0)
        most = 65535.0 if picture.mode.startswith("I") else max(1.0, float(values.max(initial=0)))
        values *= 255 / most
        picture = Image.fromarray(values.clip(0, 255, out=values).round(out=values).astype(np.uint8))
    if picture.has_transparency_data:
        above = picture if picture.mode == "RGBA" else picture.convert("RGBA")
        ground = Image.new("RGB", above.size, "white")
        ground.paste(above, mask=above)
        return ground
    return picture.convert("RGB") if picture.mode in ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV") else picture


def _to_pillow(item: Pixels) -> Image.Image:
    return Image.fromarray(item[..., 0] if item.shape[2] == 1 else item)


def _from_pillow(picture: Image.Image) -> Pixels:
    values = np.asarray(picture, np.uint8)
    return values[..., None] if values.ndim == 2 else values


def write_png(path: Path, array: Pixels) -> None:
    """Write an array [height width 1 or 3] as a PNG file, beside its place and then renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _to_pillow(array).save(temporary, format="PNG")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def parse_size(size: str | int) -> tuple[int, int]:
    """Return (height, width) of 64 or "64" (a square) or "32x24" (WIDTHxHEIGHT, as pictures are usually told)."""
    width, cross, height = str(size).lower().partition("x")
    if not width.isdecimal() or not (height if cross else width).isdecimal():
        raise ValueError(f"size must be a number or WIDTHxHEIGHT, got {size!r}")
    pair = int(height if cross else width), int(width)
    if not all(1 <= side <= 4096 for side in pair):
        raise ValueError(f"size must be between 1 and 4096 pixels a side, got {size!r}")
    return pair


def prepare_image(
    source: Path,
    root: Path,
    *,
    size: str | int = 64,
    channels: int = 3,
    binarize: bool = False,
    seed: int = 0,
    engine: str = "sequential",
    jobs: int = -1,
) -> Report:
    """Make a dataset at `root` of a folder of pictures, each cut and resized to `size` ("WIDTHxHEIGHT" or a side).

    Folders named train, valid or test keep their split. Where pictures stand in more than one folder (below those),
    the folder is their label: its place among the `label_names` of the manifest's options. Pictures that are equal
    after resizing are all kept and stand in one split.

    Raises:
        ValueError: when `source` holds no readable picture, `root` already is a dataset, or an option is wrong.
    """
    refuse_existing(root)
    codec = PixelCodec((channels, *parse_size(size)), binarize)
    source = source.absolute()  # the workers of a cluster stand in folders of their own
    paths = find_files(source, SUFFIXES)
    folders = {path: _folder(path, source) for path in paths}
    names = sorted(set(folders.values()))
    labels = {path: names.index(folders[path]) if len(names) > 1 else None for path in paths}
    return prepare(
        root,
        [_Source(name_of(path, source), path, split_of(path, source), labels[path]) for path in paths],
        partial(_convert, codec),
        codec,
        kind="image",
        options={**codec.options, "label_names": names if len(names) > 1 else []},
        seed=seed,
        engine=engine,
        jobs=jobs,
        key=digest_of(paths, source),
        drop_repeats=False,
    )


def prepare_arrays(
    images: Pixels,
    splits: Sequence[str | None],
    root: Path,
    *,
    labels: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    label_names: Sequence[str] = (),
    binarize: bool = False,
    seed: int = 0,
    engine: str = "sequential",
    jobs: int = -1,
) -> Report:
    """Make a dataset at `root` of pictures in memory, [n height width channels], in the splits that are given."""
    refuse_existing(root)
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"images must be uint8 [n height width channels], got {images.dtype} {list(images.shape)}")
    for name, column in (("splits", splits), ("labels", labels), ("names", names)):
        if column is not None and len(column) != len(images):
            raise ValueError(f"{name} must hold one value for each of {len(images)} images, got {len(column)}")
    codec = PixelCodec((images.shape[3], images.shape[1], images.shape[2]), binarize)
    sources = [
        _Source(
            name=names[place] if names is not None else str(place),
            picture=picture,
            split=splits[place],
            label=int(labels[place]) if labels is not None else None,
        )
        for place, picture in enumerate(images)
    ]
    facts = [(source.name, source.split, source.label) for source in sources]
    return prepare(
        root,
        sources,
        partial(_convert, codec),
        codec,
        kind="image",
        options={**codec.options, "label_names": list(label_names)},
        seed=seed,
        engine=engine,
        jobs=jobs,
        key=hashlib.sha256(images.tobytes() + repr(facts).encode()).hexdigest(),
        drop_repeats=False,
    )


class _Source(NamedTuple):
    """One picture before its conversion: a file or pixels."""

    name: str
    picture: Path | Pixels
    split: str | None
    label: int | None


def _folder(path: Path, source: Path) -> str:
    parts = path.relative_to(source).parts[:-1]
    return printable("/".join(parts[1:] if split_of(path, source) else parts))


def _convert(codec: PixelCodec, source: _Source) -> Outcome:
    pixels = source.picture
    if isinstance(pixels, Path):
        path = pixels
        try:
            pixels = _read(path, codec.image_shape[0])
        except Exception as error:  # as in `read_picture`, but a report names the file its own way
            return Rejected(source.name, "cannot be read", _reason(error, path))
    window = codec.windows(pixels)[0].numpy()
    return Record(source.name, hashlib.sha256(window.tobytes()).hexdigest(), [window], source.split, source.label)
