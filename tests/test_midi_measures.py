"""What is measured of melody windows: by hand, by brute force, and beside mir_eval."""

import itertools

import mir_eval
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from seqvae.data.midi.measures import attributes, intervals, near_copies, note_scores, overlap, pitch_classes
from seqvae.data.midi.melody import FIRST_NOTE, LOWEST, NOTE_OFF, to_notes

STEP_SECONDS = 0.125
ALL = ("c_diatonic", "note_density", "average_interval", "syncopation_16th", "syncopation_8th")


def window(notes: dict[int, int], steps: int = 16, ends: tuple[int, ...] = ()) -> NDArray[np.int64]:
    """Return classes from pitches by their steps."""
    events = np.zeros(steps, np.int64)
    events[list(ends)] = NOTE_OFF
    for step, pitch in notes.items():
        events[step] = FIRST_NOTE + pitch - LOWEST
    return events


def random_windows(count: int, seed: int, steps: int = 16, pitches: int = 88) -> list[NDArray[np.int64]]:
    chance = np.random.default_rng(seed)
    notes = FIRST_NOTE + chance.integers(0, pitches, (count, steps))
    return list(np.where(chance.random((count, steps)) < 0.4, notes, chance.integers(0, 2, (count, steps))))


@pytest.mark.parametrize(
    ("notes", "expected"),
    [
        # a C major scale in quarters: nothing off the beat
        ({0: 60, 4: 62, 8: 64, 12: 65}, (1.0, 4 / 16, 5 / 3, 0.0, 0.0)),
        # eighths of the chromatic scale: half of them off the beat, but each has an onset an eighth before
        ({0: 60, 2: 61, 4: 62, 6: 63, 8: 64, 10: 65, 12: 66, 14: 67}, (5 / 8, 8 / 16, 1.0, 0.0, 0.0)),
        # off-beat eighths alone
        ({2: 61, 6: 66, 10: 61, 14: 66}, (0.0, 4 / 16, 5.0, 0.0, 1.0)),
        # a sixteenth behind the beat, once with an onset on the beat before it
        ({1: 60, 4: 72, 5: 72}, (1.0, 3 / 16, 6.0, 1 / 3, 0.0)),
        # an off-beat eighth with an onset a sixteenth before, itself on an off-beat sixteenth
        ({5: 60, 6: 60}, (1.0, 2 / 16, 0.0, 1 / 2, 0.0)),
    ],
)
def test_the_attributes_are_those_counted_by_hand(notes: dict[int, int], expected: tuple[float, ...]) -> None:
    found = attributes(window(notes))
    assert [found[name] for name in ALL] == pytest.approx(expected)


def test_what_needs_notes_is_left_out_without_them() -> None:
    assert attributes(window({})) == {"note_density": 0.0}
    assert attributes(window({3: 60})).keys() == {*ALL} - {"average_interval"}


def test_an_attribute_does_not_ask_where_notes_end() -> None:
    notes = {1: 60, 6: 67, 12: 58}
    assert attributes(window(notes, ends=(3, 9, 15))) == attributes(window(notes))


@given(st.integers(0, 2**32), st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_note_scores_are_mir_evals_without_offsets(seed: int, mutated: float) -> None:
    truth = random_windows(6, seed, pitches=20)
    chance = np.random.default_rng(seed)
    guesses = [
        np.where(chance.random(len(one)) < mutated, other, one)
        for one, other in zip(truth, random_windows(6, seed + 1, pitches=20), strict=True)
    ]
    timed = []
    for windows in (truth, guesses):
        notes = [
            (place * 16 + note.start, place * 16 + note.end, note.pitch)
            for place, one in enumerate(windows)
            for note in to_notes(one)
        ]
        columns = np.array(notes, float).reshape(-1, 3)
        timed += [columns[:, :2] * STEP_SECONDS, mir_eval.util.midi_to_hz(columns[:, 2])]
    precision, recall, f1, _ = mir_eval.transcription.precision_recall_f1_overlap(
        *timed, onset_tolerance=0.4 * STEP_SECONDS, pitch_tolerance=1.0, offset_ratio=None
    )
    found = note_scores(truth, guesses)
    assert (found["note_precision"], found["note_recall"], found["note_f1"]) == pytest.approx((precision, recall, f1))


def test_scores_of_no_notes_are_nothing_and_of_the_truth_one() -> None:
    silence, truth = window({}), window({0: 60, 4: 62})
    assert set(note_scores([truth], [truth]).values()) == {1.0}
    nothing = note_scores([truth], [silence])
    assert nothing == {
        "accuracy": 14 / 16,
        "onset_accuracy": 0.0,
        "note_precision": 0.0,
        "note_recall": 0.0,
        "note_f1": 0.0,
    }


def test_histograms_are_counted_over_all_windows_but_not_across_them() -> None:
    windows = [window({0: 60, 3: 72, 5: 71}), window({2: 62, 9: 100})]
    assert pitch_classes(windows).tolist() == [2, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 1]  # C C, D, E, B
    expected = np.zeros(25)
    expected[[12 + 12, 12 - 1, 24]] = [1, 1, 2]  # an octave up, a semitone down; 38 semitones count as an octave
    expected[24] = 2
    assert intervals(windows).tolist() == expected.tolist()
    assert not pitch_classes([window({})]).any()


def test_the_overlap_of_histograms_is_the_sum_of_the_minima_of_shares() -> None:
    one = np.array([2.0, 2.0, 0.0])
    assert overlap(one, 7 * one) == pytest.approx(1.0)
    assert overlap(one, np.array([0.0, 0.0, 5.0])) == 0.0
    assert overlap(one, np.array([1.0, 0.0, 3.0])) == pytest.approx(0.25)
    assert overlap(one, np.zeros(3)) == 0.0


def slowly_near(one: NDArray[np.int64], other: NDArray[np.int64], share: float) -> bool:
    """Try every transposition."""
    here, there = ({(n.start, n.pitch) for n in to_notes(events)} for events in (one, other))
    most = max(len(here), len(there))
    matches = max(len({(start, pitch + by) for start, pitch in here} & there) for by in range(-88, 89))
    return most > 0 and most - matches <= share * most


def relatives(seed: int) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """Return windows, and others that are theirs with some notes changed, transposed."""
    chance = np.random.default_rng(seed)
    own = random_windows(12, seed, pitches=40)
    known = []
    for place in chance.integers(0, len(own), 20):
        events = own[place].copy()
        for step in chance.integers(0, len(events), chance.integers(0, 4)):
            events[step] = chance.choice([0, 1, FIRST_NOTE + int(chance.integers(0, 40))])
        known.append(np.where(events >= FIRST_NOTE, events + chance.integers(0, 40), events))
    return [*own, window({})], [*known, window({})]


@pytest.mark.parametrize("share", [0.0, 1 / 8, 1 / 4])
def test_near_copies_are_those_that_trying_every_transposition_finds(share: float) -> None:
    found: list[bool] = []
    for seed in range(10):
        own, known = relatives(seed)
        near = near_copies(own, known, share)
        assert near.tolist() == [any(slowly_near(one, other, share) for other in known) for one in own]
        found += near.tolist()
    assert 0.1 < sum(found) / len(found) < 0.95  # the cases tell


def test_known_windows_may_come_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    own, known = relatives(3)
    expected = near_copies(own, known)
    monkeypatch.setattr("seqvae.data.midi.measures.KNOWN_AT_ONCE", 3)
    monkeypatch.setattr("seqvae.data.midi.measures.PAIRS_AT_ONCE", 5)
    assert near_copies(own, iter(known)).tolist() == expected.tolist()
    assert near_copies([], known).tolist() == []
    assert not near_copies(own, []).any()


@pytest.mark.parametrize(("changed", "near"), [(1, True), (2, False)])
def test_a_near_copy_has_at_most_an_eighth_of_other_notes(changed: int, near: bool) -> None:
    tune = {step: 60 + step for step in range(0, 16, 2)}  # eight notes
    other = {step: pitch + 7 for step, pitch in tune.items()}
    for step in list(tune)[:changed]:
        other[step] += 1
    assert near_copies([window(tune)], [window(other)]).tolist() == [near]
    longer = window({**tune, **dict.fromkeys(itertools.islice(range(1, 16, 2), changed), 50)})
    assert near_copies([window(tune)], [longer]).tolist() == [near]  # 1 of 9 is at most an eighth, 2 of 10 are not
