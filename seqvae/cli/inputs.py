"""INPUT: what a person names on the command line becomes items, read when they are needed."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqvae.cli.arguments import open_data

if TYPE_CHECKING:
    from torch import Tensor

    from seqvae.data.codec import Codec
    from seqvae.data.dataset import WindowDataset
    from seqvae.harness.config import Trained

log = logging.getLogger(__name__)

NAMED = 10  # items that were left out, in the line that says so

OF_A_SPLIT = re.compile(r"(train|valid|test):(?:(\d+)|(all)|label=(.+))")


@dataclass(frozen=True)
class Input:
    """One item that an INPUT names."""

    name: str
    item: Callable[[], Any]
    windows: Callable[[], list[Tensor]]
    origin: str = ""  # of a window of a dataset: where it came from
    one_of_many: bool = False  # of a file, a folder or a split, which can do without one

    @property
    def caption(self) -> str:
        """What it is called where it is shown: a file without its folder."""
        return Path(self.name).name or self.name


def expand(options: argparse.Namespace, trained: Trained, source: str) -> list[Input]:
    """Return what one INPUT names; nothing but lines of text is read yet.

    Raises:
        ValueError: when it names nothing; the message holds the INPUT.
    """
    codec = trained.codec
    match = OF_A_SPLIT.fullmatch(source)
    if match is not None:
        return _of_a_split(options, trained, source, match)
    if codec.suffix is None:
        lines = codec.read(source)
        if len(lines) == 1:
            return [Input(source, partial(_same, lines[0]), partial(codec.windows, lines[0]))]
        return [
            Input(f"{source}:{number}", partial(_same, line), partial(codec.windows, line), one_of_many=True)
            for number, line in enumerate(lines, 1)
            if line
        ]
    paths, is_folder = [source], Path(source).is_dir()
    if is_folder:
        from seqvae.data.preparation import find_files

        paths = [str(path) for path in find_files(Path(source), codec.endings or None)]
    return [
        Input(path, partial(_read, codec, path), partial(_windows, codec, path), one_of_many=is_folder)
        for path in paths
    ]


def expand_all(options: argparse.Namespace, trained: Trained, sources: Sequence[str]) -> list[Input]:
    """Return what every INPUT names, in order."""
    return [named for source in sources for named in expand(options, trained, source)]


def expand_one(options: argparse.Namespace, trained: Trained, source: str) -> Input:
    """Return what an INPUT names that is one item. Raises ValueError when it names more, or what cannot be encoded."""
    named = expand(options, trained, source)
    if len(named) != 1:
        raise ValueError(f"{source} must be one item, got {len(named)}")
    named[0].windows()
    return named[0]


def read_set(named: Sequence[Input], what: str) -> list[tuple[Input, list[Tensor]]]:
    """Return each item with its windows. One of many that cannot be encoded is left out; one warning names them.

    Raises:
        ValueError: for an item that was named by itself, or when none is left, with the first reason.
    """
    kept: list[tuple[Input, list[Tensor]]] = []
    left_out: list[str] = []
    reasons: list[str] = []
    for one in named:
        try:
            kept.append((one, one.windows()))
        except ValueError as error:
            if not one.one_of_many:
                raise
            left_out.append(one.name)
            reasons.append(str(error))
    if not kept:
        raise ValueError(reasons[0])
    if left_out:
        names = ", ".join(left_out[:NAMED]) + ", ..." * (len(left_out) > NAMED)
        told = "%s: %d of %d items cannot be encoded and are left out: %s (the first: %s)"
        log.warning(told, what, len(left_out), len(named), names, reasons[0])
    return kept


def window_names(read: Sequence[tuple[str, Sequence[Tensor]]]) -> list[str]:
    """Return a name a window: the item's own, with the window's number where it has several."""
    return [name if len(windows) == 1 else f"{name}#{place}" for name, windows in read for place in range(len(windows))]


def _of_a_split(options: argparse.Namespace, trained: Trained, source: str, match: re.Match[str]) -> list[Input]:
    split, number, _, label = match.groups()
    dataset = open_data(options, trained, split)
    if number is not None:
        if int(number) >= len(dataset):
            raise ValueError(f"{source}: the {split} split has windows 0 to {len(dataset) - 1}")
        places = [int(number)]
    else:
        places = list(range(len(dataset))) if label is None else _labelled(dataset, source, label)
    return [
        Input(
            f"{split}:{place}",
            partial(_joined, trained.codec, dataset, place),
            partial(_window, dataset, place),
            dataset.names[dataset.items[place]],
        )
        for place in places
    ]


def _labelled(dataset: WindowDataset, source: str, label: str) -> list[int]:
    """Return the windows of a label, told by its name or its number."""
    from seqvae.data.dataset import read_manifest

    names: list[str] = read_manifest(dataset.root)["options"].get("label_names") or []
    column = dataset.column("label")
    number = names.index(label) if label in names else int(label) if label.isdecimal() else -1
    places: list[int] = [] if number < 0 else (column == number).nonzero()[0].tolist()
    if not places:
        known = ", ".join(names or [str(one) for one in sorted(set(column.tolist())) if one >= 0])
        raise ValueError(f"{source}: the {dataset.split} split has no such label; labels are {known}")
    return places


def _same(item: Any) -> Any:
    return item


def _read(codec: Codec[Any], path: str) -> Any:
    (item,) = codec.read(path)
    return item


def _windows(codec: Codec[Any], path: str) -> list[Tensor]:
    item = _read(codec, path)
    try:
        return codec.windows(item)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _joined(codec: Codec[Any], dataset: WindowDataset, place: int) -> Any:
    return codec.join([dataset[place]])


def _window(dataset: WindowDataset, place: int) -> list[Tensor]:
    return [dataset[place]]
