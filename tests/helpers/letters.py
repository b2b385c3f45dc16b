"""The smallest modality there is: words, a token a letter, and what tests of preparation do with them."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seqvae.data.codec import Codec, Preview, strip
from seqvae.data.dataset import SPLITS, WindowDataset
from seqvae.data.preparation import Outcome, Record, Rejected, Report, prepare


class Letters(Codec[str]):
    """Lower-case words, a token a letter: the smallest codec there is."""

    @property
    def options(self) -> dict[str, Any]:
        return {}

    @property
    def spec(self) -> dict[str, Any]:
        return {"vocab_size": 26, "max_length": 40, "end_id": None, "unk_id": None}

    def windows(self, item: str) -> list[Tensor]:
        return [torch.tensor([ord(letter) - ord("a") for letter in item])]

    def join(self, tensors: Sequence[Tensor], like: str | None = None) -> str:
        return "".join(chr(ord("a") + index) for index in strip(tensors[0]).tolist())

    def sizes(self, tensor: Tensor) -> dict[str, int]:
        return {"letter": len(tensor)}

    def score(self, truth: Sequence[Tensor], predicted: Sequence[Tensor]) -> dict[str, float]:
        return {}

    def read(self, source: str) -> list[str]:
        return [source]

    def write(self, item: str, path: Path) -> None:
        path.write_text(item)

    def preview(self, items: Sequence[str], columns: int | None = None, sound: bool = True) -> Preview:
        return Preview(text="\n".join(items))


def convert(word: str) -> Outcome:
    """Convert "song/abc" to the item abc of the group song; "train:abc" keeps its split; digits are rejected."""
    split, _, rest = word.rpartition(":")
    group, _, letters = rest.rpartition("/")
    if not letters.isalpha():
        return Rejected(word, "not a word", f"{letters!r}")
    window = Letters().windows(letters)[0].numpy()
    return Record(word, group or letters, [window], split or None, dropped={"an empty bar": 1})


def make(root: Path, words: Sequence[str], **options: Any) -> Report:
    return prepare(root, words, convert, Letters(), kind="letters", options={}, **options)


def words(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices("abcdefghij", k=draw.randint(5, 12))) for _ in range(count)]


def read_back(root: Path) -> dict[str, list[str]]:
    datasets = {split: WindowDataset(root, split) for split in SPLITS}
    return {split: [Letters().join([dataset[i]]) for i in range(len(dataset))] for split, dataset in datasets.items()}


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
