"""The arguments that commands on a checkpoint share: CKPT, INPUT, OUT; how they become a model and items."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from seqvae.harness.config import Trained

    Commands: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Commands: TypeAlias = argparse._SubParsersAction

Run: TypeAlias = Callable[[argparse.Namespace], None]

DATA_INPUT = re.compile(r"(train|valid|test):(\d+)")


def add_command(commands: Commands, name: str, help: str, run: Run) -> argparse.ArgumentParser:
    """Add a command that opens a checkpoint."""
    sub = commands.add_parser(name, help=help, description=help)
    sub.add_argument(
        "checkpoint", metavar="CKPT", help="a checkpoint, or a run directory: its best, RUN@last its newest"
    )
    sub.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, mps")
    sub.set_defaults(run=run)
    return sub


def add_inputs(sub: argparse.ArgumentParser, *names: str) -> None:
    """Add INPUTs: one of each name, or without names as many as a person gives."""
    meaning = "a sentence, @FILE with one a line, or a MIDI or image file; test:17 is window 17 of the test split"
    for name in names or ("inputs",):
        sub.add_argument(name, metavar=name.upper(), nargs=None if names else "+", help=meaning)
    add_data(sub, "the dataset that test:17 means, if it has moved")


def add_data(sub: argparse.ArgumentParser, help: str) -> None:
    """Add --data ROOT."""
    sub.add_argument("--data", type=Path, metavar="ROOT", help=help)


def add_output(sub: argparse.ArgumentParser) -> None:
    """Add -o OUT for items."""
    sub.add_argument(
        "-o", "--output", metavar="OUT", help="a directory for MIDI and images, a file for text (- prints)"
    )


def add_temperature(sub: argparse.ArgumentParser, default: str) -> None:
    """Add --temperature and --seed; `default` says what happens without."""
    sub.add_argument(
        "--temperature", type=float, metavar="T", help=f"draw from softmax(logits / T); default: {default}"
    )
    sub.add_argument("--seed", type=int, default=0, help="of everything that is drawn (default 0)")


def open_checkpoint(options: argparse.Namespace) -> Trained:
    """Return the verified model of CKPT on --device."""
    from seqvae.harness.config import load

    return load(options.checkpoint, options.device)


def data_root(options: argparse.Namespace, trained: Trained) -> Path:
    """Return where the dataset is: --data, or where it was in training."""
    root = options.data or Path(trained.config["data"]["root"])
    if not root.is_dir():
        raise ValueError(f"the dataset is not at {root}; say where it is with --data ROOT")
    return Path(root)


def read_items(options: argparse.Namespace, trained: Trained, sources: Sequence[str]) -> list[tuple[str, Any]]:
    """Return (name, item) of every INPUT; `@FILE` may give many."""
    from seqvae.harness.scoring import open_split

    items: list[tuple[str, Any]] = []
    for source in sources:
        match = DATA_INPUT.fullmatch(source)
        if match is None:
            read = trained.codec.read(source)
            names = [source] if len(read) == 1 else [f"{source}:{line}" for line in range(1, len(read) + 1)]
            items += zip(names, read, strict=True)
            continue
        split, index = match[1], int(match[2])
        dataset = open_split(data_root(options, trained), split, trained.config["data"]["fingerprint"])
        if index >= len(dataset):
            raise ValueError(f"{source}: the {split} split has windows 0 to {len(dataset) - 1}")
        items.append((source, trained.codec.join([dataset[index]])))
    return items


def strategy(options: argparse.Namespace, default: float | None = None) -> Any:
    """Return how --temperature draws: None is the most likely item."""
    from seqvae.models.decoding import Temperature

    temperature = default if options.temperature is None else options.temperature
    return None if temperature is None else Temperature(temperature)


def seed(options: argparse.Namespace) -> None:
    """Seed what is drawn with --seed."""
    import torch

    torch.manual_seed(options.seed)
