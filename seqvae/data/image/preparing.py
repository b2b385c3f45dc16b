"""A person's pictures, in files or arrays, to a prepared dataset."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqvae.data.image import arrays, pictures
from seqvae.data.image.arrays import labels_beside, levels, read_arrays
from seqvae.data.image.codec import PixelCodec
from seqvae.data.image.labels import read_labels
from seqvae.data.image.pictures import Pixels, read_picture, recoloured
from seqvae.data.preparation import (
    Outcome,
    Record,
    Rejected,
    Report,
    digest_of,
    find_files,
    name_of,
    other_kinds,
    prepare,
    printable,
    refuse_existing,
    split_of,
)

SIZE = 64  # pixels a side, unless one is asked for or arrays have one


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
    size: str | int | None = None,
    channels: int | None = None,
    labels: Path | None = None,
    file_column: str | None = None,
    label_column: str | None = None,
    seed: int = 0,
    engine: str = "sequential",
    jobs: int = -1,
) -> Report:
    """Make a dataset at `root` of pictures, each cut and resized to `size` ("WIDTHxHEIGHT" or a side).

    `source` is a folder of picture files, an .npz archive, an idx file beside its labels, or a folder of such arrays.
    Files become 64 pixels a side with 3 channels, arrays keep their own, unless `size` and `channels` say otherwise.
    Folders, files and arrays named train, valid or test keep their split. A label is the place of its name among the
    `label_names` of the manifest's options. Where picture files stand in more than one folder (below the splits),
    the folder is their label, but for those of a table `labels` (see `read_labels`). Pictures that are equal after
    resizing are all kept and stand in one split.

    Raises:
        ValueError: when `source` holds no readable picture, `root` already is a dataset, or an option is wrong.
    """
    refuse_existing(root)
    source = source.absolute()  # the workers of a cluster stand in folders of their own
    paths = find_files(source, (*pictures.SUFFIXES, *arrays.SUFFIXES))
    files = [path for path in paths if path.name.lower().endswith(pictures.SUFFIXES)]
    others = [path for path in paths if not path.name.lower().endswith(pictures.SUFFIXES)]
    if files:
        shape = (channels or 3, *parse_size(SIZE if size is None else size))
        found = _of_files(files, source, labels, file_column, label_column)
        found.rejected.extend(Rejected(name_of(path, source), "an array among pictures") for path in others)
    elif labels is not None:
        raise ValueError(f"labels {labels} go with files of pictures, and {source} holds arrays")
    else:
        found = _of_arrays(others, source)
        shape = _shape(found, size, channels)
    names = sorted({label for label in found.labels if label is not None}, key=_by_number)
    places = {name: place for place, name in enumerate(names)} if len(names) > 1 else {}
    sources = [
        made._replace(label=places.get(label or "")) for made, label in zip(found.sources, found.labels, strict=True)
    ]
    return _prepare(
        sources,
        root,
        PixelCodec(shape),
        list(places),
        key=digest_of(paths, source),
        seed=seed,
        engine=engine,
        jobs=jobs,
        earlier=found.rejected,
        counted=_counted(source, paths, found, labels),
    )


def prepare_arrays(
    images: Pixels,
    splits: Sequence[str | None],
    root: Path,
    *,
    labels: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    label_names: Sequence[str] = (),
    seed: int = 0,
    engine: str = "sequential",
    jobs: int = -1,
    earlier: Iterable[Rejected] = (),
) -> Report:
    """Make a dataset at `root` of pictures in memory, [n height width channels], in the splits that are given."""
    refuse_existing(root)
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"images must be uint8 [n height width channels], got {images.dtype} {list(images.shape)}")
    for name, column in (("splits", splits), ("labels", labels), ("names", names)):
        if column is not None and len(column) != len(images):
            raise ValueError(f"{name} must hold one value for each of {len(images)} images, got {len(column)}")
    codec = PixelCodec((images.shape[3], images.shape[1], images.shape[2]))
    sources = [
        _Source(
            name=names[place] if names is not None else str(place),
            picture=picture,
            split=splits[place],
            label=int(labels[place]) if labels is not None else None,
        )
        for place, picture in enumerate(images)
    ]
    return _prepare(
        sources,
        root,
        codec,
        list(label_names),
        key=hashlib.sha256(images.ravel().data).hexdigest(),
        seed=seed,
        engine=engine,
        jobs=jobs,
        earlier=earlier,
    )


class _Source(NamedTuple):
    """One picture before its conversion: a file or pixels, which may be floats."""

    name: str
    picture: Path | NDArray[Any]
    split: str | None
    label: int | None = None


class _Found(NamedTuple):
    """The pictures of a source, the names of their labels, and what is left out."""

    sources: list[_Source]
    labels: list[str | None]
    rejected: list[Rejected]


def _prepare(
    sources: Sequence[_Source], root: Path, codec: PixelCodec, label_names: list[str], *, key: str, **how: Any
) -> Report:
    facts = [(source.name, source.split, source.label) for source in sources]
    return prepare(
        root,
        sources,
        partial(_convert, codec),
        codec,
        kind="image",
        options={**codec.options, "label_names": label_names},
        key=hashlib.sha256(f"{key}{facts}".encode()).hexdigest(),
        drop_repeats=False,
        **how,
    )


def _counted(source: Path, paths: Sequence[Path], found: _Found, table: Path | None) -> dict[str, int]:
    if table is None:
        return other_kinds(source, paths)
    within = source / os.path.relpath(table, source)  # if it stands among the pictures
    return {"pictures without a label": found.labels.count(None), **other_kinds(source, [*paths, within])}


def _of_files(
    paths: Sequence[Path], source: Path, table: Path | None, file_column: str | None, label_column: str | None
) -> _Found:
    labels, rejected = {path: _folder(path, source) for path in paths}, list[Rejected]()
    if table is not None:
        labels, rejected = read_labels(table, paths, source, file_column, label_column)
    elif file_column is not None or label_column is not None:
        raise ValueError(f"the column {file_column or label_column!r} is one of a table of labels; give labels, too")
    sources = [_Source(name_of(path, source), path, split_of(path, source)) for path in paths]
    return _Found(sources, [labels.get(path) for path in paths], rejected)


def _of_arrays(paths: Sequence[Path], source: Path) -> _Found:
    """Return the pictures of all arrays that can be read. Raises ValueError when none can."""
    found = _Found([], [], [])
    unpacked = {path for path in paths if path.suffix == ".gz" and path.with_suffix("") in paths}
    beside = {labels_beside(path) for path in paths}
    for path in paths:
        name = name_of(path, source)
        if path in beside:
            continue  # labels, read with their pictures
        if path in unpacked:
            found.rejected.append(Rejected(name, "stands there unpacked, too"))
            continue
        try:
            parts = read_arrays(path)
        except ValueError as error:
            found.rejected.append(Rejected(name, "cannot be read", str(error).replace(f"{path.parent}/", "")))
            continue
        for part in parts:
            split = part.split or split_of(path, source)
            within = f"{name.removesuffix(path.name)}{part.name}"
            found.sources.extend(_Source(f"{within}:{n}", picture, split) for n, picture in enumerate(part.images))
            found.labels.extend(part.labels or [None] * len(part.images))
    if not found.sources:
        raise ValueError("; ".join(rejected.detail for rejected in found.rejected if rejected.detail))
    return found


def _shape(found: _Found, size: str | int | None, channels: int | None) -> tuple[int, int, int]:
    """Return (channels, height, width) for pictures of arrays: their own where nothing is asked for."""
    shapes = sorted({source.picture.shape for source in found.sources if isinstance(source.picture, np.ndarray)})
    if size is None and len({shape[:2] for shape in shapes}) > 1:
        sizes = " and ".join(sorted({f"{width}x{height}" for height, width, _ in shapes}))
        raise ValueError(f"the arrays hold pictures of {sizes} pixels; say by size what they should become")
    height, width, most = max(shapes, key=lambda shape: shape[2])
    return (channels or most, *parse_size(f"{width}x{height}" if size is None else size))


def _by_number(label: str) -> tuple[bool, int, str]:
    """Order whole numbers by their value, before all other labels."""
    return (False, len(label), label) if label.isdecimal() else (True, 0, label)


def _folder(path: Path, source: Path) -> str:
    parts = path.relative_to(source).parts[:-1]
    return printable("/".join(parts[1:] if split_of(path, source) else parts))


def _convert(codec: PixelCodec, source: _Source) -> Outcome:
    channels = codec.image_shape[0]
    try:
        if isinstance(source.picture, Path):
            pixels = read_picture(source.picture, channels)
        else:
            pixels = recoloured(levels(source.picture), channels)
    except ValueError as error:  # a report names the file its own way
        return Rejected(source.name, "cannot be read", str(error).removeprefix(f"{printable(str(source.picture))}: "))
    window = codec.windows(pixels)[0].numpy()
    return Record(source.name, hashlib.sha256(window.tobytes()).hexdigest(), [window], source.split, source.label)
