"""Arrays of pictures: idx files and .npz archives, whose claims are checked before anything is allocated."""

import contextlib
import gzip
import math
import re
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from seqvae.data.image.pictures import CHANNELS, Pixels, check_range, reason_of
from seqvae.data.preparation import SPLIT_NAMES, printable, split_said

SUFFIXES = (".npz", "-ubyte", "-ubyte.gz")
MOST_BYTES = 4 * 2**30  # of one array
DEFLATE = 1032  # bytes that one packed byte can unpack to; https://zlib.net/zlib_tech.html
IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
IMAGES, LABELS = {"images", "image", "pictures", "x"}, {"labels", "label", "targets", "y"}
UNNAMED = {"arr_0": "images", "arr_1": "labels"}  # what numpy.savez calls arrays that it got without names


class Part(NamedTuple):
    """Pictures [n height width channels] of one array, uint8 or floats in [0, 1], and what is known of them."""

    name: str
    images: NDArray[Any]
    labels: list[str] | None
    split: str | None


def read_arrays(path: Path) -> list[Part]:
    """Return what an .npz archive holds, or an idx file with the labels that stand beside it.

    Raises ValueError with the file and the reason when they cannot be read whole or are no pictures.
    """
    return _parts_of_npz(path) if path.suffix.lower() == ".npz" else [_part_of_idx(path)]


def levels(picture: NDArray[Any]) -> Pixels:
    """Return a picture's 256 levels. Raises ValueError for a float that is no number."""
    if picture.dtype == np.uint8:
        return picture
    if not np.isfinite(picture).all():
        raise ValueError("it holds a value that is no finite number")
    return (picture.clip(0, 1) * 255).round().astype(np.uint8)


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # zipfile and numpy raise a dozen types for hostile files
        raise ValueError(f"{printable(str(path))}: {reason_of(error, path)}") from None


# idx, the format of MNIST: two zero bytes, the type, the rank; the sizes, 4 bytes each; the values


def labels_beside(path: Path) -> Path | None:
    """Return the file of labels that belongs to an idx file of pictures: of its name but for that word and the rank."""
    if "images" not in path.name:
        return None
    stem = re.sub(r"idx\d", "idx1", path.name.removesuffix(".gz").replace("images", "labels"))
    return next((other for end in ("", ".gz") if (other := path.with_name(stem + end)).is_file()), None)


def _part_of_idx(path: Path) -> Part:
    beside = labels_beside(path)
    images, labels = read_idx(path), read_idx(beside) if beside else None
    with _told(path):
        return _part(path.name, images, labels, split_said(re.split(r"[-_.]", path.name)))


def read_idx(path: Path) -> NDArray[Any]:
    """Return the array of an idx file, packed (.gz) or not. Raises ValueError with the file and the reason."""
    with _told(path), open_idx(path) as file:
        start = file.read(4)
        if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in IDX_TYPES or not 1 <= start[3] <= 4:
            raise ValueError(
                f"it is no idx file, which begins with 00 00, a type and a rank; this with {start.hex(' ')}"
            )
        sizes = file.read(4 * start[3])
        if len(sizes) < 4 * start[3]:
            raise ValueError("it ends within its sizes")
        shape, dtype = np.frombuffer(sizes, ">u4").tolist(), np.dtype(IDX_TYPES[start[2]])
        bound = path.stat().st_size * (DEFLATE if isinstance(file, gzip.GzipFile) else 1)
        values = np.empty(_check_claim(shape, dtype, bound), np.uint8)
        filled = 0
        while got := file.readinto(values.data[filled:]):
            filled += got
        if filled < len(values) or file.read(1):
            much = f"{filled:,}" if filled < len(values) else "more"
            raise ValueError(
                f"by its sizes {_sizes(shape)} it holds {len(values):,} bytes of values, but it has {much}"
            )
        return values.view(dtype).reshape(shape)


def open_idx(path: Path) -> BufferedReader | gzip.GzipFile:
    """Open a file that may be packed, which its first bytes tell."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if packed else path.open("rb")


def _check_claim(shape: Sequence[int], dtype: np.dtype[Any], bound: int) -> int:
    """Return the bytes that an array claims, which its file must be able to hold."""
    claim = math.prod(shape) * max(dtype.itemsize, 1)
    if min(shape, default=1) < 0 or claim > MOST_BYTES:
        raise ValueError(f"it says it holds {_sizes(shape)} values ({dtype}), more than {MOST_BYTES // 2**30} GiB")
    if claim > bound:
        raise ValueError(f"it says it holds {_sizes(shape)} values ({dtype}), more than fit into its file")
    return claim


def _sizes(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


# .npz, a zip archive of .npy files


def _parts_of_npz(path: Path) -> list[Part]:
    with _told(path), zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        found: dict[tuple[str, str | None], str] = {}
        for key in members:
            role = _role(key)
            if role and (first := found.setdefault(role, key)) != key:
                raise ValueError(f"{first!r} and {key!r} are both {' of '.join(filter(None, role))}; one must go")
        splits = {split: key for (kind, split), key in found.items() if kind == "images"}
        if not splits:
            there = printable(", ".join(members)) or "nothing"
            raise ValueError(f"it holds no images or x, alone or with the word train, valid or test, but {there}")
        if lonely := [key for (_, split), key in found.items() if split not in splits]:
            raise ValueError(f"{lonely[0]!r} has no pictures of its split")
        parts = []
        for split, key in splits.items():
            labelled = found.get(("labels", split))
            labels = _read_member(archive, members[labelled], path) if labelled else None
            parts.append(_part(f"{path.name}:{key}", _read_member(archive, members[key], path), labels, split))
        return parts


def _role(key: str) -> tuple[str, str | None] | None:
    """Return what an array of a name is, "images" or "labels", and its split; None for all other arrays."""
    words = set(re.split(r"[^a-z0-9]+", UNNAMED.get(key, key).lower()))
    for role, names in (("images", IMAGES), ("labels", LABELS)):
        if words & names and words - names <= SPLIT_NAMES.keys():
            return role, split_said(words)
    return None


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> NDArray[Any]:
    """Return an array, never unpickled, from a member that is no larger than it can be."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{info.filename} is packed by method {info.compress_type}, which numpy never uses")
    try:
        with warnings.catch_warnings(action="ignore"), archive.open(info) as file:
            header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(file)]
            shape, _, dtype = header(file)
        if dtype.hasobject:
            raise ValueError("it holds objects, which only pickle could bring back, and pickle can run anything")
        bound = min(info.compress_size, path.stat().st_size)
        _check_claim(shape, dtype, bound * (DEFLATE if info.compress_type else 1))
        with archive.open(info) as file:
            array: NDArray[Any] = npy.read_array(file, allow_pickle=False)
            if file.read(1):  # at whose end its checksum is looked at
                raise ValueError(f"it holds more than the {_sizes(shape)} values that it says")
        return array
    except Exception as error:
        raise ValueError(f"{printable(info.filename)}: {reason_of(error, path)}") from None


# What is a picture


def _part(name: str, images: NDArray[Any], labels: NDArray[Any] | None, split: str | None) -> Part:
    images = _pictures(images)
    if labels is None:
        return Part(name, images, None, split)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or len(labels) != len(images):
        raise ValueError(
            f"{len(images):,} pictures need as many labels, got labels of the shape {_sizes(labels.shape)}"
        )
    if labels.dtype.kind not in "biuU":
        raise ValueError(f"labels must be whole numbers or text, got {labels.dtype}")
    return Part(name, images, [printable(str(label)) for label in labels.tolist()], split)


def _pictures(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array as [n height width channels] of uint8, or of floats in [0, 1]."""
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise ValueError(f"pictures must be uint8, bool or floats in [0, 1], got {array.dtype}")
    if array.ndim == 3:
        array = array[..., None]
    elif array.ndim == 4 and array.shape[3] not in CHANNELS and array.shape[1] in CHANNELS:
        array = np.moveaxis(array, 1, 3)
    if array.ndim != 4 or array.shape[3] not in CHANNELS or array.size == 0:
        wanted = "[n height width], [n height width channels] or [n channels height width] with 1 or 3 channels"
        raise ValueError(f"pictures must be {wanted}, got {_sizes(array.shape)}")
    if array.dtype.kind == "f":
        flat = array.reshape(len(array), -1)
        low, high = flat.min(1), flat.max(1)  # of each picture, so that one which is no number spoils no other
        known = np.isfinite(low) & np.isfinite(high)
        if known.any():
            check_range(low[known].min(), high[known].max())
    return array
