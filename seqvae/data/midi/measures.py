"""What windows of melody classes are like, and how they compare: numbers for people and for evaluations.

A note is an onset: the step and the pitch of a class from FIRST_NOTE on; where it ends is not asked.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqvae.data.midi.melody import FIRST_NOTE, LOWEST, STEPS_A_BEAT

C_MAJOR = (0, 2, 4, 5, 7, 9, 11)
WIDEST = 12  # semitones; intervals beyond an octave count together, at either end of the histogram
NEAR = 1 / 8  # of the notes may differ in a near-copy
KNOWN_AT_ONCE = 8192  # windows
PAIRS_AT_ONCE = 1 << 18

Events = NDArray[Any]  # [step] classes


def attributes(events: Events, steps_per_quarter: int = STEPS_A_BEAT) -> dict[str, float]:
    """Return the five attributes of MusicVAE (Roberts et al., 2018, section 5.3); all but density need notes.

    c_diatonic: the share of notes in C major. note_density: onsets a step. average_interval: the mean of the absolute
    intervals from note to note, in semitones. syncopation_16th: the share of onsets on an off-beat sixteenth without
    an onset a sixteenth before. syncopation_8th: the share on an off-beat eighth without an onset a sixteenth or an
    eighth before. Steps count from 0 at the window's start; before it there is no onset.
    """
    steps = np.flatnonzero(events >= FIRST_NOTE)
    pitches = events[steps].astype(np.int64) - FIRST_NOTE + LOWEST
    found = {"note_density": len(steps) / max(len(events), 1)}
    if len(steps) == 0:
        return found
    sixteenth, eighth = steps_per_quarter // 4, steps_per_quarter // 2
    struck = np.concatenate([np.zeros(eighth, np.bool_), events >= FIRST_NOTE])  # struck[step + eighth] is that step
    quietly_16th = ~struck[steps + eighth - sixteenth]
    quietly_8th = quietly_16th & ~struck[steps]
    found |= {
        "c_diatonic": float(np.isin(pitches % 12, C_MAJOR).mean()),
        "syncopation_16th": float((quietly_16th & (steps % eighth == sixteenth)).mean()),
        "syncopation_8th": float((quietly_8th & (steps % steps_per_quarter == eighth)).mean()),
    }
    if len(steps) > 1:
        found["average_interval"] = float(np.abs(np.diff(pitches)).mean())
    return found


def note_scores(truth: Iterable[Events], predicted: Iterable[Events]) -> dict[str, float]:
    """Return the share of equal steps, of exact onsets, and precision, recall and F1 of notes over all windows.

    A note is found where one of the same pitch starts at the same step: mir_eval's definition without offsets, its
    tolerance of onsets below half a step. A window has at most one note a step, so that counting needs no matching.
    Of no notes at all precision, recall and F1 are 0.
    """
    equal = steps = hits = struck = guessed = 0
    for true, guess in zip(truth, predicted, strict=True):
        same = true == guess
        equal, steps = equal + int(same.sum()), steps + len(true)
        hits += int((same & (true >= FIRST_NOTE)).sum())
        struck += int((true >= FIRST_NOTE).sum())
        guessed += int((guess >= FIRST_NOTE).sum())
    recall = hits / max(struck, 1)
    return {
        "accuracy": equal / max(steps, 1),
        "onset_accuracy": recall,
        "note_precision": hits / max(guessed, 1),
        "note_recall": recall,
        "note_f1": 2 * hits / max(struck + guessed, 1),
    }


def overlap(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return the sum of minima of two histograms, each taken as shares: 1 where they are equal, 0 where disjoint."""
    shares = [histogram / max(histogram.sum(), 1) for histogram in (one, other)]
    return float(np.minimum(*shares).sum())


def pitch_classes(windows: Iterable[Events]) -> NDArray[np.float64]:
    """Return how many notes each of the 12 pitch classes has."""
    total = np.zeros(12)
    for events in windows:
        pitches = events[events >= FIRST_NOTE].astype(np.int64) - FIRST_NOTE + LOWEST
        total += np.bincount(pitches % 12, minlength=12)
    return total


def intervals(windows: Iterable[Events]) -> NDArray[np.float64]:
    """Return how many steps from note to note each interval has, from an octave down (or more) to one up (or more)."""
    total = np.zeros(2 * WIDEST + 1)
    for events in windows:
        leaps = np.diff(events[events >= FIRST_NOTE].astype(np.int64))
        total += np.bincount(leaps.clip(-WIDEST, WIDEST) + WIDEST, minlength=len(total))
    return total


def near_copies(windows: Sequence[Events], known: Iterable[Events], share: float = NEAR) -> NDArray[np.bool_]:
    """Return which windows are near-copies of known ones: equal but for a share of the notes, in some transposition.

    Two windows of n and m notes are near when, one of them transposed by some number of semitones, at most
    share * max(n, m) of the max(n, m) notes have no partner of the same step and pitch. Windows without notes are
    near to nothing. The share must be below one half.
    """
    near = np.zeros(len(windows), np.bool_)
    if len(windows) == 0:
        return near
    following = iter(known)
    while part := list(itertools.islice(following, KNOWN_AT_ONCE)):
        steps = max(map(len, [*windows, *part]))
        own, other = _onsets(windows, steps), _onsets(part, steps)
        for places, partners in _alike(own, other, share, near):
            near[places[_close(own[places], other[partners], share)]] = True
    return near


def _onsets(windows: Sequence[Events], steps: int) -> NDArray[np.int8]:
    """Return [window step]: the class of each onset, -1 where there is none and beyond a window's end."""
    onsets = np.full((len(windows), steps), -1, np.int8)
    for row, events in zip(onsets, windows, strict=True):
        row[: len(events)] = np.where(events >= FIRST_NOTE, events, -1)
    return onsets


def _alike(
    own: NDArray[np.int8], other: NDArray[np.int8], share: float, done: NDArray[np.bool_]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield the places of pairs whose rhythms alone allow them to be near; those of `done` windows are left out."""
    here, there = ((rows >= 0).astype(np.float32) for rows in (own, other))
    at_once = max(1, PAIRS_AT_ONCE // len(other))
    for start in range(0, len(own), at_once):
        rows = here[start : start + at_once]
        most = np.maximum(rows.sum(1)[:, None], there.sum(1)[None])
        fits = (most > 0) & (rows @ there.T >= (1 - share) * most) & ~done[start : start + at_once, None]
        places, partners = np.nonzero(fits)
        yield places + start, partners


def _close(own: NDArray[np.int8], other: NDArray[np.int8], share: float) -> NDArray[np.bool_]:
    """Return of each pair of rows whether a transposition makes them equal but for a share of the notes.

    More than half of the common onsets are then apart by the same interval, so that it is their median.
    """
    both = (own >= 0) & (other >= 0)
    apart = np.where(both, other - own, np.int8(127))  # classes differ by at most 87
    middle = np.maximum(both.sum(1) - 1, 0) // 2
    interval = np.take_along_axis(np.sort(apart, axis=1), middle[:, None], axis=1)
    equal = (both & (apart == interval)).sum(1)
    most = np.maximum((own >= 0).sum(1), (other >= 0).sum(1))
    close: NDArray[np.bool_] = (most > 0) & (equal >= (1 - share) * most)
    return close
