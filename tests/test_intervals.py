"""The intervals of note F1: counted as the scores count, and as wide as theory says."""

import numpy as np
import pytest
import torch

from benchmarks.intervals import bootstrapped, f1, note_counts
from seqvae.data.midi.measures import note_scores

generator = torch.Generator().manual_seed(0)
TRUE = torch.randint(0, 5, (40, 32), generator=generator)
GUESSED = torch.where(torch.rand(TRUE.shape, generator=generator) < 0.7, TRUE, (TRUE + 1) % 5)
COUNTS = np.array([note_counts(*pair) for pair in zip(TRUE, GUESSED, strict=True)])


def test_counted_notes_give_the_f1_of_the_scores() -> None:
    expected = note_scores([row.numpy() for row in TRUE], [row.numpy() for row in GUESSED])["note_f1"]
    assert float(f1(COUNTS)) == pytest.approx(expected)


def test_a_bootstrap_is_as_wide_as_the_error_of_a_mean() -> None:
    alike = COUNTS.copy()
    alike[:, 1:] = 20  # with the same number of notes everywhere, F1 is a mean over windows
    shares = alike[:, 0] / 20
    assert bootstrapped(alike).std() == pytest.approx(shares.std() / len(shares) ** 0.5, rel=0.1)


def test_the_same_counts_are_never_apart() -> None:
    assert (bootstrapped(COUNTS) == bootstrapped(COUNTS.copy())).all()
