"""`seqvae train`: everything after it is Hydra's, but for a --help of ours."""

from __future__ import annotations

import sys

from seqvae.cli.arguments import Commands
from seqvae.cli.inspect import print_experiments


def add(commands: Commands) -> None:
    """Add `train` to the list of commands; its arguments are read by Hydra."""
    commands.add_parser("train", help="train a model: seqvae train experiment=melody (seqvae train --help)")


def run(arguments: list[str]) -> int:
    """Train as Hydra reads the arguments; return the exit code."""
    if {"-h", "--help"} & set(arguments):
        print("usage: seqvae train [experiment=NAME] [key=value ...]\n")
        print("Keys are those of conf/train.yaml; `seqvae train --cfg job` prints them all. Experiments:\n")
        print_experiments()
        return 0
    from seqvae.harness import launch

    original = sys.argv
    sys.argv = [original[0], *arguments]  # Hydra reads it; other ranks are started with the original
    try:
        return launch.main(original)
    finally:
        sys.argv = original
