"""What reading found, on disk: nine bytes a line stay in memory, and a part is fetched when its turn comes."""

import json
import os
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from seqvae.data.dataset import SPLITS
from seqvae.data.preparation import Rejected, complete_splits, first_places, key_of
from seqvae.data.text.tokenizer import short

UNSPLIT, REFUSED, REPEATED = -1, 100, 101  # beside the places in SPLITS


class Line(NamedTuple):
    """One sentence, normalised, and its split."""

    name: str
    text: str
    split: str


@dataclass(frozen=True)
class Part:
    """Lines as they go to whoever converts them: one after another, in order, the refused among them."""

    rows: bytes
    sides: bytes

    def __iter__(self) -> Iterator[Line | Rejected]:
        rows = json.loads(b"[" + self.rows.removesuffix(b"\n").replace(b"\n", b",") + b"]")
        for (name, *rest), side in zip(rows, self.sides, strict=True):
            if side == REFUSED:
                yield Rejected(name, *rest)
            elif side == REPEATED:
                yield Rejected(name, "repeats an earlier sentence", short(rest[0]))
            else:
                yield Line(name, rest[0], SPLITS[side])


class Spool:
    """Lines in the order in which they were added; `finish` decides their splits. Use it in a with block.

    Its file has no name and vanishes with the process.
    """

    PART: ClassVar[int] = 4096  # lines fetched at a time; less than a second's work, so a kill loses little

    def __init__(self, folder: Path, seed: int) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__
        self._seed = seed
        self._starts = [0]
        self._size = 0
        self._keys, self._sides = array("Q"), array("b")
        self.refused: Counter[str] = Counter()  # by rule
        self.examples: dict[str, str] = {}  # the first detail of each rule

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, name: str, text: str, split: str | None) -> None:
        """Append a sentence, with the split that its source gives it."""
        self._append([name, text], key_of(f"{split}\n{text}", self._seed), SPLITS.index(split) if split else UNSPLIT)

    def refuse(self, line: Rejected) -> None:
        """Append what is no sentence, so that it is told in its place."""
        self._append([line.name, line.rule, line.detail], 0, REFUSED)
        self.refused[line.rule] += 1
        self.examples.setdefault(line.rule, line.detail)

    def _append(self, row: list[str], key: int, side: int) -> None:
        content = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        self._file.write(content)
        self._size += len(content)
        self._keys.append(key)
        self._sides.append(side)
        if len(self._keys) % self.PART == 0:
            self._starts.append(self._size)

    def finish(self, drop_repeats: bool) -> None:
        """Decide the split of every sentence; with `drop_repeats` only the first of equal ones is kept.

        Raises:
            ValueError: when fewer than three different sentences are left to be split.
        """
        self._file.flush()
        keys, sides = np.frombuffer(self._keys, np.uint64), np.frombuffer(self._sides, np.int8)
        if drop_repeats:
            sides[(sides != REFUSED) & ~first_places(keys)] = REPEATED
        kept = sides < len(SPLITS)
        sides[kept] = complete_splits(keys[kept], sides[kept])

    def texts(self, split: str, share: float = 1.0) -> Iterator[str]:
        """Yield the sentences of a split in order, or a share of them, drawn by their content."""
        limit = share * 2**32  # the low half of a key says nothing of the split, which goes by the order of keys
        for start in range(0, len(self), self.PART):
            lines = zip(self[start : start + self.PART], self._keys[start : start + self.PART], strict=True)
            yield from (
                line.text
                for line, key in lines
                if isinstance(line, Line) and line.split == split and key % 2**32 < limit
            )

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, part: slice, /) -> Part:
        assert part.start % self.PART == 0, f"a part begins at a multiple of {self.PART}, got {part.start}"
        assert part.stop - part.start == self.PART, f"a part has {self.PART} lines, got {part}"
        first = self._starts[part.start // self.PART]
        following = self._starts[part.stop // self.PART] if part.stop <= len(self) else self._size
        rows = os.pread(self._file.fileno(), following - first, first)
        return Part(rows, bytes(memoryview(self._sides)[part.start : part.stop].cast("B")))
