"""The `seqvae` command: opens a checkpoint, calls latent/ or the evaluation, writes files.

One module a kind of command, each with an `add(commands)` that says its commands' options and what runs them.
Heavy imports wait inside the functions until a command needs them: --help answers at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

import seqvae
from seqvae.cli import attribute, completion, evaluate, explore, export, inspect, plot, prepare, train, use, windows

MODULES = (
    prepare,
    windows,
    train,
    use,
    attribute,
    explore,
    plot,
    evaluate,
    export,
    inspect,
    completion,
)  # as --help has them

DESCRIPTION = "Train variational autoencoders on images, text or MIDI, and use what they learned."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code. What a user got wrong is one line on stderr and exit code 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = " ".join(["seqvae", *arguments[:1]])
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()  # of --help, too; here a closed pipe is no error yet
    except KeyboardInterrupt:
        print(f"{command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # an OSError too, so it comes first
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python would complain at its end
        return 0
    except (ValueError, OSError) as error:
        print(f"{command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _run(arguments: list[str]) -> int:
    if arguments[:1] == ["train"]:
        return train.run(arguments[1:])  # all of it is Hydra's
    if arguments[:1] == [completion.QUESTION]:
        for candidate in completion.candidates(parser(), arguments[1:]):
            print(candidate)
        return 0
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options.run(options)
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of every command but `train`, whose arguments are Hydra's."""
    parser = argparse.ArgumentParser(prog="seqvae", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"seqvae {seqvae.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in MODULES:
        module.add(commands)
    return parser
