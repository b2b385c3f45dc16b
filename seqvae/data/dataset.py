"""A prepared dataset on disk: flat memory-mapped windows with offsets, one folder a split, and a manifest."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

FORMAT = 1
MANIFEST = "dataset.json"
SPLITS = ("train", "valid", "test")
VALID_EPOCH = 2**32 - 1  # validation and test windows are seen the same way for ever: one epoch that never comes

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """What the loader yields: one tensor, and which window of the split each row is."""

    x: Tensor  # [batch time] or [batch time parts] int64 filled up with -1, or [batch channels height width] uint8
    index: Tensor  # [batch] int64; -1 marks a row that only keeps ranks in step and weighs nothing

    def pin_memory(self) -> "Batch":
        """Called by the loader where there is a GPU to copy to."""
        return Batch(self.x.pin_memory(), self.index)


class WindowDataset(Dataset[Tensor]):
    """The windows of one split, in the order they were prepared; `columns` hold labels and flags by index."""

    def __init__(self, root: Path, split: str, limit: int | None = None) -> None:
        """Open a split; `limit` uses only its first windows.

        Raises ValueError for a split it does not have, or when its values are cut short or of another preparation.
        """
        manifest = read_manifest(root)
        if split not in manifest["splits"]:
            raise ValueError(f"split must be one of {', '.join(manifest['splits'])}, got {split!r}")
        self.root, self.split = root, split
        self.shape: tuple[int, ...] | None = tuple(manifest["window_shape"]) if manifest["window_shape"] else None
        self.parts: int = manifest.get("parts", 1)  # of a token
        self._dtype = np.dtype(manifest["stored_dtype"])
        folder = root / split
        self.offsets: NDArray[np.int64] = np.load(folder / "offsets.npy", allow_pickle=False)
        self.items: NDArray[np.int64] = np.load(folder / "items.npy", allow_pickle=False)
        size, expected = (folder / "values.bin").stat().st_size, int(self.offsets[-1]) * self._dtype.itemsize
        if size != expected:  # windows would be wrong without a word
            raise ValueError(f"{folder / 'values.bin'} holds {size:,} bytes, not {expected:,}; prepare the data again")
        if limit is not None:
            if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
                raise ValueError(f"data.limit must be a positive int, got {limit!r}")
            self.offsets, self.items = self.offsets[: limit + 1], self.items[:limit]

    @cached_property
    def _values(self) -> NDArray[Any]:
        path = self.root / self.split / "values.bin"
        if path.stat().st_size == 0:
            return np.empty(0, self._dtype)
        return np.memmap(path, dtype=self._dtype, mode="r")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_values"}  # workers map the file anew

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.split} has windows 0 to {len(self) - 1}, got {index}")
        values = np.array(self._values[self.offsets[index] : self.offsets[index + 1]])
        if self.shape is None:
            tokens = torch.from_numpy(values.astype(np.int64))
            return tokens if self.parts == 1 else tokens.view(-1, self.parts)
        return torch.from_numpy(values).view(self.shape)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """How many tokens, or values, each window holds."""
        return np.diff(self.offsets) // self.parts

    @cached_property
    def names(self) -> list[str]:
        """Where each item came from; `items[i]` is the item of window i."""
        names: list[str] = json.loads((self.root / self.split / "names.json").read_text(encoding="utf-8"))
        return names

    def column(self, name: str) -> NDArray[np.int64]:
        """Return one integer a window. Raises ValueError for a column the dataset does not have."""
        path = self.root / self.split / f"{name}.column.npy"
        if not path.is_file():
            raise ValueError(f"{self.root} has no column {name!r}")
        column: NDArray[np.int64] = np.load(path, allow_pickle=False)
        return column


def spread(items: Sequence[T], most: int) -> list[T]:
    """Return at most so many of the items, spread evenly over all of them."""
    count = min(most, len(items))
    return [items[place * len(items) // count] for place in range(count)]


def read_manifest(root: Path) -> dict[str, Any]:
    """Return the dataset's manifest. Raises ValueError when the folder is no prepared dataset."""
    path = root / MANIFEST
    if not path.is_file():
        raise ValueError(f"{root} is not a prepared dataset (no {MANIFEST}); make it with `seqvae prepare`")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        known = manifest["format"] <= FORMAT
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); prepare the dataset again") from None
    if not known:
        raise ValueError(f"{path} has format {manifest['format']}, this seqvae reads up to {FORMAT}")
    return manifest


def fingerprint(files: dict[str, str]) -> str:
    """Return one sha256 for the sha256 of every file by name: what a checkpoint remembers of its data."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
