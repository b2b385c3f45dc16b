"""Notes that melody models reconstruct, with 95 % intervals: each run, and how far it is ahead of the first.

    python -m benchmarks.intervals runs/melody_16bar runs/melody_16bar_hierarchical

Free-running from the posterior mean, on the windows of the test split that do not stand in train. Intervals are
percentiles of 2,000 bootstraps over windows, the same windows for every run (Efron & Tibshirani, 1993, chapter 13).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import cli
from seqvae.data import MelodyTokenizer
from seqvae.data.batching import stack
from seqvae.data.midi.melody import FIRST_NOTE
from seqvae.harness.config import Trained
from seqvae.harness.scoring import open_split, unseen
from seqvae.models.decoding import Beam, Greedy, Strategy

BOOTSTRAPS = 2000
AT_ONCE = 64  # windows that are decoded together

Counts = NDArray[np.int64]  # [window, hits true guessed]


def note_counts(true: torch.Tensor, guess: torch.Tensor) -> tuple[int, int, int]:
    """Return how many notes of a window are found, are true, and are guessed: same pitch and step."""
    struck, guessed = true >= FIRST_NOTE, guess >= FIRST_NOTE
    return int((struck & (true == guess)).sum()), int(struck.sum()), int(guessed.sum())


@torch.no_grad()
def reconstruct(trained: Trained, windows: list[torch.Tensor], strategy: Strategy | Beam) -> dict[str, Counts]:
    """Return the counts of each window given the true past and free-running."""
    vae = trained.vae
    counts: dict[str, list[tuple[int, int, int]]] = {"true past": [], "free-running": []}
    for start in range(0, len(windows), AT_ONCE):
        part = windows[start : start + AT_ONCE]
        x = stack(part)
        z = vae.encoder(x).mean
        for name, guesses in (
            ("true past", vae.decoder.predict(x, z)),
            ("free-running", vae.decoder.sample(z, strategy=strategy)),
        ):
            counts[name] += [note_counts(*pair) for pair in zip(part, guesses, strict=True)]
    return {name: np.array(rows) for name, rows in counts.items()}


def f1(counts: Counts) -> NDArray[np.float64]:
    """Return the note F1 of counts summed over windows, [..., window, hits true guessed]."""
    hits, true, guessed = np.moveaxis(counts.sum(-2), -1, 0)
    return np.asarray(2 * hits / np.maximum(true + guessed, 1))


def bootstrapped(counts: Counts, seed: int = 0) -> NDArray[np.float64]:
    """Return the F1 of each bootstrap; the same seed and number of windows draw the same windows."""
    rng = np.random.default_rng(seed)
    return np.array([f1(counts[rng.integers(len(counts), size=len(counts))]) for _ in range(BOOTSTRAPS)])


def told(value: float, draws: NDArray[np.float64], sign: str = "") -> str:
    """Return a number and its interval for a line of the report."""
    low, high = np.quantile(draws, (0.025, 0.975))
    return f"{value:{sign}.4f} [{low:{sign}.4f}, {high:{sign}.4f}]"


def bench(options: argparse.Namespace) -> None:
    """Print the F1 of each run, and how far it is ahead of the first one's."""
    strategy = Greedy() if options.beam is None else Beam(options.beam)
    runs = {run: cli.load_run(run, MelodyTokenizer, "melodies") for run in options.runs}
    roots = {str(trained.config["data"]["root"]) for trained in runs.values()}
    if len(roots) > 1:
        raise ValueError(f"the runs must have one dataset, got {', '.join(sorted(roots))}")
    test = open_split(Path(roots.pop()), "test", runs[options.runs[0]].config["data"]["fingerprint"])
    windows = [test[place] for place in unseen(test).tolist()]
    found = {run: reconstruct(trained, windows, strategy) for run, trained in runs.items()}
    print(f"note F1 on {len(windows):,} windows, with 95 % intervals")
    first, *others = found
    for name in found[first]:
        draws = {run: bootstrapped(counts[name]) for run, counts in found.items()}
        for run, counts in found.items():
            print(f"{name:<13} {run}: {told(float(f1(counts[name])), draws[run])}")
        for run in others:
            apart = float(f1(found[run][name]) - f1(found[first][name]))
            print(f"{name:<13} {run} - {first}: {told(apart, draws[run] - draws[first], '+')}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.parser("intervals", __doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="runs on one dataset of melodies")
    parser.add_argument("--beam", type=int, metavar="N", help="free-running by a search with N hypotheses")
    return cli.run(parser, bench, argv)


if __name__ == "__main__":
    sys.exit(main())
