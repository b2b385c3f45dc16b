"""How a benchmark runs as a command: its options, and one line on stderr for what a user got wrong."""

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from seqvae.data.codec import Codec
from seqvae.harness.config import Trained, load
from seqvae.harness.launch import FAILURES
from seqvae.harness.signals import Stopped


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Return the parser of `python -m benchmarks.NAME`, which the first line of its module describes."""
    return argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=(doc or "").splitlines()[0])


def run(
    parser: argparse.ArgumentParser,
    bench: Callable[[argparse.Namespace], int | None],
    argv: Sequence[str] | None = None,
) -> int:
    """Run a benchmark and return its exit code: its own, or 2, with one line on stderr, for a user's mistake."""
    options = parser.parse_args(argv)
    try:
        return bench(options) or 0
    except KeyboardInterrupt:
        return 130
    except Stopped as stop:
        return stop.exit_code
    except (*FAILURES, subprocess.CalledProcessError) as error:
        print(f"{parser.prog}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def check_positive(options: argparse.Namespace, *names: str) -> None:
    """Raise ValueError for one of the numbers, where it is given, that is not positive."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value <= 0:
            raise ValueError(f"{name.replace('_', '-')} must be positive, got {value}")


def load_run(name: str, codec: type[Codec[Any]], items: str) -> Trained:
    """Return a trained model of items of a codec. Raises ValueError for one of other items."""
    trained = load(name)
    if not isinstance(trained.codec, codec):
        raise ValueError(f"{name} has no {items}: its codec is a {type(trained.codec).__name__}")
    return trained
