"""`seqvae windows`: what a prepared dataset holds, a line a window."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from seqvae.cli.arguments import Commands
from seqvae.cli.writing import whole


def add(commands: Commands) -> None:
    """Add `windows`."""
    help = "list the windows of a prepared dataset as JSON lines, with the source of each"
    parser = commands.add_parser(
        "windows",
        help=help,
        description=f"{help}. Melodies are lists of events, one a step: -2 nothing new, -1 the note ends, else the "
        "pitch that is struck.",
    )
    parser.add_argument("root", type=Path, metavar="DIR", help="a prepared dataset")
    parser.add_argument("--split", choices=("train", "valid", "test"), default="train", help="(default train)")
    parser.add_argument("--jsonl", default="-", metavar="FILE", help="where the lines go (default -, standard output)")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    lines = _lines(options.root, options.split)
    if options.jsonl == "-":
        for line in lines:
            print(line)
        return
    with whole(Path(options.jsonl)) as file:
        file.writelines(f"{line}\n".encode() for line in lines)
    print(f"{options.jsonl} written", file=sys.stderr)


def _lines(root: Path, split: str) -> Iterator[str]:
    from seqvae.data import load_codec
    from seqvae.data.dataset import WindowDataset

    dataset = WindowDataset(root, split)
    codec = load_codec(root / "codec")
    columns = {}
    for name in ("label", "seen_in_train"):
        with contextlib.suppress(ValueError):  # few datasets have every column
            columns[name] = dataset.column(name)
    for place in range(len(dataset)):
        row = {"split": split, "index": place, "source": dataset.names[dataset.items[place]]}
        row |= {name: int(column[place]) for name, column in columns.items()}
        yield json.dumps({**row, **codec.listed(dataset[place])}, ensure_ascii=False)
