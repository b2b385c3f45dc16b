"""The guarded reader, the melody codec and the preparation of a folder of MIDI files."""

import json
import math
import os
import random
import resource
import time
import tracemalloc
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pretty_midi
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqvae.data import load_codec
from seqvae.data.dataset import WindowDataset
from seqvae.data.midi import MelodyTokenizer, MidiError, prepare_midi, read_midi, read_song
from seqvae.data.midi.melody import Note, to_events, to_notes, transcribe
from seqvae.data.midi.notes import READERS
from tests.helpers.midi import END, Notes, chunk, meta, number, part, smf, song
from tests.helpers.processes import exit_code

CODEC = MelodyTokenizer()
SCALE = [60, 62, 64, 65, 67, 69, 71, 72]


def pitch(value: int) -> int:
    """Return the class that strikes a pitch."""
    return value - 19


def read(path: Path, data: bytes) -> pretty_midi.PrettyMIDI:
    path.write_bytes(data)
    return read_midi(path)


def spelled(events: Any) -> str:
    """Return classes as text: - goes on, . ends, and a pitch is struck by its number."""
    return " ".join("-" if e == 0 else "." if e == 1 else str(int(e) + 19) for e in events)


SECONDS_TO_COUNT = 0.03  # of the core whose seconds the bounds are; a slower one may need more in proportion


def takes_less_than(seconds: float, run: Callable[[], object]) -> bool:
    """Return whether the processor needs less for it, once in three attempts: others may be using the machine."""
    for _ in range(3):
        before, started = seconds_to_count(), time.process_time()
        run()
        taken = time.process_time() - started
        slowness = max(before, seconds_to_count()) / SECONDS_TO_COUNT
        if taken < seconds * max(1, slowness):
            return True
    return False


def seconds_to_count() -> float:
    """Return the processor time in which Python adds up a million numbers."""
    started, total = time.process_time(), 0
    for one in range(10**6):
        total += one
    return time.process_time() - started


def melodies(tmp_path: Path, data: bytes, **options: Any) -> list[str]:
    return [
        spelled(melody.events)
        for melody in MelodyTokenizer(**options).melodies(read(tmp_path / "a.mid", data)).melodies
    ]


def bars(*written: str) -> str:
    """Return bars spelled by their beginnings, each filled up to 16 steps."""
    return " ".join(" ".join((bar.split() + ["-"] * 16)[:16]) for bar in written)


# From a song to melodies


def test_a_melody_begins_at_the_bar_line_before_its_first_note(tmp_path: Path) -> None:
    notes = [(20, 24, 60), (24, 32, 62)]
    assert melodies(tmp_path, song(notes)) == [bars("- - - - 60 - - - 62")]


def test_a_note_ends_with_a_note_off_unless_another_begins_there(tmp_path: Path) -> None:
    assert melodies(tmp_path, song([(0, 4, 60), (4, 6, 62), (8, 9, 64)])) == [bars("60 - - - 62 - . - 64 .")]


def test_a_later_onset_ends_the_note_that_is_held(tmp_path: Path) -> None:
    assert melodies(tmp_path, song([(0, 12, 60), (4, 6, 55)])) == [bars("60 - - - 55 - .")]


def test_the_highest_of_the_notes_on_one_step_stays(tmp_path: Path) -> None:
    assert melodies(tmp_path, song([(0, 8, 60), (0, 4, 64), (0, 8, 55)])) == [bars("64 - - - .")]


def test_a_note_shorter_than_a_step_lasts_one(tmp_path: Path) -> None:
    assert melodies(tmp_path, song([(0, 0.2, 60), (4, 4.3, 62)])) == [bars("60 . - - 62 .")]


@pytest.mark.parametrize(
    ("silence", "expected"),
    [(15, [bars("60 - - - .", "- - - 62 - - - .")]), (16, [bars("60 - - - ."), bars("- - - - 62 - - - .")])],
)
def test_a_silence_of_a_bar_ends_a_melody(tmp_path: Path, silence: int, expected: list[str]) -> None:
    notes = [(0, 4, 60), (4 + silence, 8 + silence, 62)]
    assert melodies(tmp_path, song(notes)) == expected


def test_every_instrument_but_the_drums_has_melodies(tmp_path: Path) -> None:
    line = [(0, 4, 60)]
    assert len(melodies(tmp_path, song(line, line, line, channels=(0, 9, 2)))) == 2


def test_pitches_beyond_the_piano_are_left_out_and_counted(tmp_path: Path) -> None:
    midi = read(tmp_path / "a.mid", song([(0, 4, 20), (4, 8, 21), (8, 12, 108), (12, 16, 109)]))
    found = CODEC.melodies(midi)
    assert [spelled(melody.events) for melody in found.melodies] == [bars("- - - - 21 - - - 108 - - - .")]
    assert found.counted["notes left out: outside pitches 21 to 108"] == 2


def test_a_change_of_tempo_moves_no_step(tmp_path: Path) -> None:
    notes = [(step, step + 2, SCALE[step // 2 % 8]) for step in range(0, 64, 2)]
    steady = melodies(tmp_path, song(notes))
    assert melodies(tmp_path, song(notes, tempos={0: 93, 6: 61.5, 17: 240, 33: 120})) == steady


def test_two_bars_of_two_four_make_one_bar(tmp_path: Path) -> None:
    notes = [(8, 16, 60), (16, 24, 62)]
    assert melodies(tmp_path, song(notes, meters={0: (2, 4)})) == [bars("- - - - - - - - 60", "62 - - - - - - - .")]


def test_cut_time_counts_as_four_four(tmp_path: Path) -> None:
    notes = [(16, 24, 60)]
    assert melodies(tmp_path, song(notes, meters={0: (2, 2)})) == [bars("60 - - - - - - - .")]


def test_three_four_is_left_out_under_its_own_name_and_four_four_after_it_begins_at_its_signature(
    tmp_path: Path,
) -> None:
    waltz = [(step, step + 4, 60) for step in range(0, 36, 4)]
    midi = read(tmp_path / "a.mid", song([*waltz, (36, 44, 72)], meters={0: (3, 4), 36: (4, 4)}))
    found = CODEC.melodies(midi)
    assert [spelled(melody.events) for melody in found.melodies] == [bars("72 - - - - - - - .")]
    assert found.dropped == {"time signature 3/4 (strict keeps 4/4, 2/2, 2/4)": 2}


def test_a_signature_set_within_a_bar_moves_the_bar_lines(tmp_path: Path) -> None:
    notes = [(0, 4, 60), (24, 28, 62)]
    moved = melodies(tmp_path, song(notes, meters={0: (4, 4), 24: (4, 4)}))
    assert moved == [bars("60 - - - ."), bars("62 - - - .")]
    assert melodies(tmp_path, song(notes, meters={0: (4, 4), 16: (4, 4)})) == melodies(tmp_path, song(notes))


def test_a_note_held_over_a_moved_bar_line_ends_there(tmp_path: Path) -> None:
    notes = [(20, 40, 60), (40, 44, 62)]
    found = melodies(tmp_path, song(notes, meters={24: (4, 4)}))
    assert found == [bars("- - - - 60 - - - ."), bars("62 - - - .")]


def test_a_note_a_little_before_a_new_signature_belongs_to_its_first_step(tmp_path: Path) -> None:
    notes = [(0, 4, 60), (23.8, 28, 62)]
    assert melodies(tmp_path, song(notes, meters={24: (4, 4)}))[1] == bars("62 - - - .")


def test_folded_counts_bars_of_sixteen_steps_whatever_the_signature(tmp_path: Path) -> None:
    notes = [(12, 16, 60), (16, 20, 62)]
    data = song(notes, meters={0: (3, 4), 12: (6, 8)})
    assert melodies(tmp_path, data, meter="folded") == [bars("- - - - - - - - - - - - 60", "62 - - - .")]


def test_signatures_on_any_track_count(tmp_path: Path) -> None:
    notes = part([(0, 4, 60)])
    data = smf(b"", notes, number(0) + meta(0x58, bytes([3, 2, 24, 8])))
    assert CODEC.melodies(read(tmp_path / "a.mid", data)).dropped.total() == 1


RESTS_AND_NOTES = st.lists(
    st.tuples(st.integers(0, 9), st.integers(1, 20), st.integers(21, 108)), min_size=1, max_size=12
)


@given(RESTS_AND_NOTES)
def test_events_spell_the_notes_they_were_made_of(line: list[tuple[int, int, int]]) -> None:
    now, notes = 0, []
    for silence, length, value in line:
        notes.append(Note(now + silence, now + silence + length, value))
        now += silence + length
    assert to_notes(to_events(notes)) == notes


# Windows


def test_a_note_held_over_a_windows_start_is_struck_again_there(tmp_path: Path) -> None:
    codec = MelodyTokenizer(bars=1)
    midi = read(tmp_path / "a.mid", song([(0, 4, 60), (12, 24, 64), (28, 32, 65)]))
    expected = [bars("60 - - - . - - - - - - - 64"), bars("64 - - - - - - - . - - - 65")]
    assert [spelled(window) for window in codec.windows(midi)] == expected
    (melody,) = codec.melodies(midi).melodies
    assert [spelled(window) for window in codec.stride_windows(melody.events)] == expected


def test_a_note_off_at_a_windows_start_is_no_event(tmp_path: Path) -> None:
    midi = read(tmp_path / "a.mid", song([(0, 16, 60), (20, 24, 62)]))
    assert spelled(MelodyTokenizer(bars=1).windows(midi)[1]) == bars("- - - - 62 - - - .")


def test_the_last_window_is_filled_up_with_rest(tmp_path: Path) -> None:
    midi = read(tmp_path / "a.mid", song([(0, 32, 60), (32, 48, 62)]))
    assert [spelled(window) for window in CODEC.windows(midi)] == [bars("60", ""), bars("62", ".")]


def test_stride_windows_begin_at_every_bar(tmp_path: Path) -> None:
    midi = read(tmp_path / "a.mid", song([(16 * bar, 16 * bar + 16, 60 + bar) for bar in range(4)]))
    (melody,) = CODEC.melodies(midi).melodies
    assert [spelled(w) for w in CODEC.stride_windows(melody.events)] == [bars(f"{n}", f"{n + 1}") for n in (60, 61, 62)]


def test_the_tune_is_the_instrument_with_the_most_notes(tmp_path: Path) -> None:
    midi = read(
        tmp_path / "a.mid",
        song([(0, 16, 40)], [(0, 4, 70), (4, 8, 72)], [(n, n + 1, 50) for n in range(9)], channels=(0, 1, 9)),
    )
    assert spelled(CODEC.windows(midi)[0]) == bars("70 - - - 72 - - - .", "")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (song([(0, 4, 60)], channels=(9,)), "no instrument but drums plays"),
        (song([(0, 4, 60)], meters={0: (6, 8)}), "time signature 6/8"),
        (song([(0, 4, 120)]), "outside pitches 21 to 108"),
    ],
)
def test_a_song_without_a_melody_says_why(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=f"no melody to encode: .*{reason}"):
        CODEC.windows(read(tmp_path / "a.mid", data))


# From classes to songs and back


def through_a_file(codec: MelodyTokenizer, midi: pretty_midi.PrettyMIDI, folder: Path) -> pretty_midi.PrettyMIDI:
    codec.write(midi, folder / "song.mid")
    assert [path.name for path in folder.iterdir()] == ["song.mid"]
    (back,) = codec.read(str(folder / "song.mid"))
    return back


def canonical(classes: list[int]) -> list[int]:
    """Return classes without any note off in silence."""
    sounding, kept = False, []
    for event in classes:
        kept.append(0 if event == 1 and not sounding else event)
        sounding = event >= 2 or (sounding and event != 1)
    return kept


CLASSES = st.one_of(st.just(0), st.just(0), st.integers(0, 89))
WINDOW = st.lists(CLASSES, min_size=32, max_size=32)
FILES = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FILES
@given(st.lists(WINDOW, min_size=1, max_size=3))
def test_any_classes_make_a_song_that_can_be_written_read_and_encoded_again(
    tmp_path: Path, windows: list[list[int]]
) -> None:
    joined = CODEC.join([torch.tensor(window) for window in windows])
    CODEC.write(joined, tmp_path / "song.mid")
    if any(event >= 2 for window in windows for event in window):
        again = CODEC.windows(*CODEC.read(str(tmp_path / "song.mid")))
        assert 1 <= len(again) <= len(windows)
        assert sum(int((w >= 2).sum()) for w in again) >= sum(event >= 2 for window in windows for event in window)
    else:
        with pytest.raises(MidiError, match="has no notes"):
            CODEC.read(str(tmp_path / "song.mid"))


@FILES
@given(st.lists(WINDOW, min_size=1, max_size=3), st.integers(2, 89))
def test_canonical_windows_come_back_unchanged(tmp_path: Path, rows: list[list[int]], struck: int) -> None:
    rows = [canonical([struck, *row[1:]]) for row in rows]
    windows = [torch.tensor(row) for row in rows]
    again = CODEC.windows(through_a_file(CODEC, CODEC.join(windows), tmp_path))
    assert [window.tolist() for window in again] == rows
    assert [window.dtype for window in again] == [torch.int64] * len(rows)


@FILES
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4), st.integers(21, 108)), min_size=1, max_size=12),
    st.floats(20, 400),
)
def test_a_monophonic_song_on_the_grid_comes_back_note_for_note(
    tmp_path: Path, line: list[tuple[int, int, int]], bpm: float
) -> None:
    notes = [(8 * n + offset, 8 * n + offset + length, value) for n, (offset, length, value) in enumerate(line)]
    notes[0] = (0, *notes[0][1:])
    first = read(tmp_path / "song.mid", song(notes, tempos={0: bpm}, division=384))
    back = CODEC.join(CODEC.windows(first), like=first)
    assert back.instruments[0].notes
    for note, original in zip(back.instruments[0].notes, first.instruments[0].notes, strict=True):
        assert (note.pitch, note.velocity) == (original.pitch, original.velocity)
        assert (note.start, note.end) == pytest.approx((original.start, original.end), rel=1e-6)


@pytest.mark.parametrize("bpm", [20.5, 60, 93, 120, 133.33, 187, 251])
def test_the_tempo_is_kept_however_often_a_song_is_written_and_read(tmp_path: Path, bpm: float) -> None:
    original = read(tmp_path / "song.mid", song([(0, 4, 60), (8, 12, 62)], tempos={0: bpm, 10: 200}))
    expected = original.get_tempo_changes()[1][0]
    assert expected == pytest.approx(bpm, rel=1e-5)
    midi = original
    for _ in range(4):
        midi = through_a_file(CODEC, CODEC.join(CODEC.windows(midi), like=midi), tmp_path)
    assert midi.get_tempo_changes()[1].tolist() == [pytest.approx(expected, rel=1e-12)]


def test_without_the_hair_more_the_tempo_drifts(tmp_path: Path) -> None:
    midi = pretty_midi.PrettyMIDI(initial_tempo=93)
    midi.write(str(tmp_path / "a.mid"))
    assert pretty_midi.PrettyMIDI(str(tmp_path / "a.mid")).get_tempo_changes()[1][0] != pytest.approx(93, rel=1e-8)


def test_program_and_velocity_come_from_the_tune(tmp_path: Path) -> None:
    tune, bass = [(0, 4, 60), (4, 8, 62)], [(0, 8, 40)]
    like = read(
        tmp_path / "a.mid", smf(part(bass, program=33, velocity=20), part(tune, channel=1, program=68, velocity=101))
    )
    (line,) = CODEC.join([torch.tensor([41] + [0] * 31)], like=like).instruments
    assert (line.program, [note.velocity for note in line.notes]) == (68, [101])
    (plain,) = CODEC.join([torch.tensor([41] + [0] * 31)]).instruments
    assert (plain.program, [note.velocity for note in plain.notes]) == (0, [90])


def test_windows_begin_in_silence_and_their_last_note_ends_with_them() -> None:
    held, late = torch.tensor([41] + [0] * 31), torch.tensor([0] * 4 + [43] + [0] * 27)
    midi = CODEC.join([held, late])
    assert [(n.start, n.end) for n in midi.instruments[0].notes] == [
        (0, pytest.approx(4)),
        (pytest.approx(4.5), pytest.approx(8)),
    ]


def test_minus_one_is_nothing_and_an_unknown_class_an_error() -> None:
    (note,) = CODEC.join([torch.tensor([41, 0, 0, 0, -1, -1])]).instruments[0].notes
    assert note.end == pytest.approx(0.5)
    with pytest.raises(ValueError, match="classes must be from 0 to 89, got 0 to 90"):
        CODEC.join([torch.tensor([0, 90])])


def test_a_chain_plays_the_items_one_after_another() -> None:
    rows = [[41] + [0] * 31, [0] * 32, [43, 0, 1] + [0] * 29]
    chained = CODEC.chain([CODEC.join([torch.tensor(row)]) for row in rows])
    assert chained is not None
    assert [round(note.start, 6) for note in chained.instruments[0].notes] == [0, 8]
    assert CODEC.chain([CODEC.join([torch.tensor(rows[1])])]) is not None


@pytest.mark.parametrize(
    ("note", "message"),
    [
        (pretty_midi.Note(0, 60, 0, 1), "velocity from 1 to 127"),
        (pretty_midi.Note(200, 60, 0, 1), "velocity from 1 to 127"),
        (pretty_midi.Note(80, 130, 0, 1), "pitch must be an int from 0 to 127"),
        (pretty_midi.Note(80, 60.5, 0, 1), "pitch must be an int from 0 to 127"),
        (pretty_midi.Note(80, 60, 0, math.nan), "start at 0 or later and end after"),
        (pretty_midi.Note(80, 60, 0, math.inf), "start at 0 or later and end after"),
        (pretty_midi.Note(80, 60, -1, 1), "start at 0 or later and end after"),
    ],
)
def test_a_note_that_no_file_can_hold_is_refused(tmp_path: Path, note: pretty_midi.Note, message: str) -> None:
    midi = CODEC.join([torch.tensor([41] + [0] * 31)])
    midi.instruments[0].notes.append(note)
    with pytest.raises(ValueError, match=message):
        CODEC.write(midi, tmp_path / "a.mid")
    assert list(tmp_path.iterdir()) == []


# What a model sees, and how well it did


def test_a_transposed_view_stays_in_range_and_changes_from_epoch_to_epoch() -> None:
    codec = CODEC.replace(transpose=6)
    low, high = pitch(22), pitch(60)
    window = torch.tensor([low, 0, 1, high] + [0] * 28)
    shifts = set()
    for epoch in range(200):
        seen = codec.view(window, np.random.default_rng([7, epoch]), augment=True)
        shift = int(seen[0]) - low
        assert seen.tolist() == [low + shift, 0, 1, high + shift] + [0] * 28
        shifts.add(shift)
    assert shifts == set(range(-1, 7))  # 22 may fall to 21 and no lower


def test_a_view_is_the_window_itself_where_nothing_may_change() -> None:
    rng = np.random.default_rng(0)
    window, silence = torch.tensor([41] + [0] * 31), torch.zeros(32, dtype=torch.int64)
    wide = torch.tensor([2, 89] + [0] * 30)
    codec = MelodyTokenizer(transpose=5)
    assert all(torch.equal(CODEC.view(window, rng, augment=True), window) for _ in range(20))
    assert all(torch.equal(codec.view(window, rng), window) for _ in range(20))
    assert all(torch.equal(codec.view(one, rng, augment=True), one) for one in (silence, wide) for _ in range(20))


SCORES = ("accuracy", "onset_accuracy", "note_precision", "note_recall", "note_f1")


@pytest.mark.parametrize(
    ("predicted", "accuracy", "precision", "recall", "f1"),
    [
        ([41, 0, 43, 1], 1.0, 1.0, 1.0, 1.0),
        ([41, 0, 44, 1], 0.75, 0.5, 0.5, 0.5),
        ([41, 43, 0, 1], 0.5, 0.5, 0.5, 0.5),
        ([41, 45, 43, 47], 0.5, 0.5, 1.0, 2 * 2 / 6),
        ([0, 0, 0, 0], 0.25, 0.0, 0.0, 0.0),
        ([41, 0, -1, -1], 0.5, 1.0, 0.5, 2 / 3),
    ],
)
def test_scores_by_hand(predicted: list[int], accuracy: float, precision: float, recall: float, f1: float) -> None:
    scores = CODEC.score([torch.tensor([41, 0, 43, 1])], [torch.tensor(predicted)])
    of_notes = {"onset_accuracy": recall, "note_precision": precision, "note_recall": recall, "note_f1": f1}
    assert scores == pytest.approx({"accuracy": accuracy, **of_notes})


def test_scores_weigh_notes_not_windows_and_are_zero_without_any() -> None:
    right, wrong = torch.tensor([41, 43, 45, 47]), torch.tensor([0, 0, 0, 41])
    assert CODEC.score([right, wrong], [right, torch.zeros(4, dtype=torch.int64)])["onset_accuracy"] == 0.8
    assert CODEC.score([], []) == dict.fromkeys(SCORES, 0.0)


def test_a_saved_codec_is_the_same_codec(tmp_path: Path) -> None:
    codec = MelodyTokenizer(bars=4, meter="folded", transpose=3)
    codec.save(tmp_path)
    loaded = load_codec(tmp_path)
    defaults = {"steps_per_quarter": 4, "tracks": "all"}
    assert isinstance(loaded, MelodyTokenizer)
    assert loaded.options == codec.options == {**defaults, "bars": 4, "meter": "folded", "transpose": 3}
    assert loaded.spec == {"vocab_size": 90, "max_length": 64, "end_id": None, "unk_id": None}
    assert codec.sizes(torch.zeros(64)) == {"step": 64}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bars": 0}, "bars must be a positive int, got 0"),
        ({"bars": "2"}, "bars must be a positive int, got '2'"),
        ({"bars": True}, "bars must be a positive int, got True"),
        ({"meter": "4/4"}, "meter must be one of strict, any, folded, got '4/4'"),
        ({"transpose": -1}, "transpose must be an int from 0 to 87 semitones, got -1"),
        ({"transpose": 1.5}, "transpose must be an int from 0 to 87 semitones, got 1.5"),
    ],
)
def test_a_bad_option_is_named_with_its_value_and_bound(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MelodyTokenizer(**options)


# Pictures and sound


@pytest.mark.parametrize("count", [0, 1, 3, 16])
def test_a_preview_shows_and_plays_any_number_of_items(count: int) -> None:
    rows = [[pitch(60 + n), 0, 0, 0, pitch(67), 0, 1] + [0] * 25 for n in range(count)]
    preview = CODEC.preview([CODEC.join([torch.tensor(row)]) for row in rows])
    assert preview.image is not None
    assert preview.audio is not None
    assert (str(preview.image.dtype), preview.image.ndim, preview.image.shape[2]) == ("uint8", 3, 3)
    assert 0.2 < preview.image.shape[0] / preview.image.shape[1] < 5 or count == 0
    assert preview.audio.dtype == np.float32
    peak = np.abs(preview.audio).max(initial=0)
    assert 0.3 < peak <= 0.8 if count else peak == 0


def test_a_preview_strikes_darker_than_it_holds_and_higher_stands_higher() -> None:
    preview = CODEC.preview([CODEC.join([torch.tensor([pitch(60), 0, 0, 0, pitch(72), 0, 1, 0] + [0] * 24)])])
    assert preview.image is not None
    dark = np.argwhere((preview.image == (24, 72, 150)).all(2))
    light = np.argwhere((preview.image == (122, 170, 226)).all(2))
    left, right = dark[dark[:, 1] < dark[:, 1].mean()], dark[dark[:, 1] > dark[:, 1].mean()]
    assert left[:, 0].min() - right[:, 0].min() == 12 * 4
    assert len(light) > len(dark) > 0


def test_a_preview_of_silence_and_of_hours_is_finite(tmp_path: Path) -> None:
    long = read(tmp_path / "a.mid", song([(0, 4, 60), (30_000, 30_004, 62)]))
    preview = CODEC.preview([CODEC.join([torch.zeros(32, dtype=torch.int64)]), long])
    assert preview.image is not None
    assert preview.audio is not None
    assert np.isfinite(preview.audio).all()
    assert len(preview.audio) < 60 * preview.sample_rate
    assert preview.image.size < 10**7


# Hostile files

SLOWEST = number(0) + meta(0x51, b"\xff\xff\xff")
HEADER = chunk(b"\x00\x01\x00\x01\x01\xe0", b"MThd")


def held(ticks: int) -> bytes:
    return number(0) + b"\x90\x3c\x50" + number(ticks) + b"\x80\x3c\x00"


def before_a_note(event: bytes) -> bytes:
    return smf(number(0) + event + NOTE)


NOTE = held(480)

HOSTILE = {
    "empty": (b"", "is empty"),
    "one byte": (b"M", "no MThd header"),
    "html": (b"<html><title>404 Not Found</title></html>", "no MThd header"),
    "riff without midi": (b"RIFF\x10\x00\x00\x00WAVEfmt ", "no MThd header"),
    "rmi without midi": (b"RIFF\x10\x00\x00\x00RMIDdata", "no MThd header"),
    "header cut": (HEADER[:9], "header is cut short"),
    "header alone": (HEADER, "no track where track 1 of 1 should begin"),
    "header length 0": (smf(NOTE)[:4] + bytes(4) + smf(NOTE)[8:], "header holds 0 bytes"),
    "header length huge": (smf(NOTE)[:4] + b"\xff" * 4 + smf(NOTE)[8:], "no track"),
    "track cut": (smf(NOTE)[:-3], "track 1 of 1 is cut short"),
    "track header cut": (HEADER + b"MTrk\x00\x00", "track 1 of 1 is cut short"),
    "track length too big": (HEADER + b"MTrk\xff\xff\xff\xff" + NOTE + END, "track 1 of 1 is cut short"),
    "track ends within an event": (HEADER + chunk(number(0) + b"\x90\x3c"), "ends within an event"),
    "garbage between chunks": (HEADER + b"\x00\x00" + chunk(NOTE + END), "no track where"),
    "missing tracks": (smf(NOTE, count=65535), "no track where track 2 of 65535"),
    "no tracks": (smf(count=0), "has no notes"),
    "empty track": (HEADER + chunk(b""), "has no notes"),
    "division 0": (smf(NOTE, division=0), "0 ticks a beat"),
    "smpte 0x8000": (smf(NOTE, division=0x8000), "SMPTE"),
    "smpte 0xe728": (smf(NOTE, division=0xE728), "SMPTE"),
    "smpte 0xffff": (smf(NOTE, division=0xFFFF), "SMPTE"),
    "format 2": (smf(NOTE, NOTE, kind=2), "format 2"),
    "format 7": (smf(NOTE, kind=7), "format 7"),
    "tempo 0": (before_a_note(meta(0x51, bytes(3))), "tempo of 0"),
    "tempo without content": (before_a_note(meta(0x51)), "0x51 holds 0 bytes instead of 3"),
    "time signature without content": (before_a_note(meta(0x58)), "0x58 holds 0 bytes instead of 4"),
    "key signature without content": (before_a_note(meta(0x59)), "0x59 holds 0 bytes instead of 2"),
    "smpte offset of 4 bytes": (before_a_note(meta(0x54, bytes(4))), "0x54 holds 4 bytes instead of 5"),
    "channel prefix without content": (before_a_note(meta(0x20)), "0x20 holds 0 bytes instead of 1"),
    "time signature over 2^255": (before_a_note(meta(0x58, b"\x04\xff\x18\x08")), "2\\^255"),
    "time signature of nothing": (before_a_note(meta(0x58, b"\x00\x02\x18\x08")), "0 beats a bar"),
    "eight flats": (before_a_note(meta(0x59, b"\xf8\x00")), "key signature of bytes f8 00"),
    "mode 5": (before_a_note(meta(0x59, b"\x00\x05")), "key signature of bytes 00 05"),
    "data byte above 127": (before_a_note(b"\x90\x3c\xff"), "data byte"),
    "running status first": (smf(number(0) + b"\x3c\x50" + NOTE), "running status"),
    "status 0xf4": (before_a_note(b"\xf4"), "0xf4"),
    "endless number": (smf(b"\xff" * 10**6), "more than four bytes"),
    "endless length": (smf(number(0) + b"\xff\x01" + b"\xff" * 10**6), "more than four bytes"),
    "text longer than the track": (smf(number(0) + b"\xff\x01\xff\xff\xff\x7f" + NOTE), "ends within an event"),
    "system exclusive without end": (smf(number(0) + b"\xf0\xff\xff\xff\x7f" + NOTE), "ends within an event"),
    "delta of 2^28-1": (smf(b"\xff\xff\xff\x7f\x90\x3c\x50" + NOTE), "beats, the limit is"),
    "one tick a beat, slowest tempo": (smf(SLOWEST + held(10**7), division=1), "beats, the limit is"),
    "hours of the slowest tempo": (smf(SLOWEST + held(9_999), division=1), "hours, the limit is"),
    "note on without off": (smf(number(0) + b"\x90\x3c\x50"), "has no notes"),
    "note off without on": (smf(number(0) + b"\x80\x3c\x50"), "has no notes"),
    "note of no length": (smf(number(0) + b"\x90\x3c\x50" + number(0) + b"\x80\x3c\x00"), "has no notes"),
    "no notes": (smf(number(0) + meta(0x03, b"\x00\x1b[31m name")), "has no notes"),
    "200,000 notes": (smf((number(0) + b"\x90\x3c\x50" + number(1) + b"\x3c\x00") * 200_000), "50,000 events"),
    "too many bytes": (smf(NOTE) + bytes(2 * 2**20), "larger than"),
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", HOSTILE)
def test_only_a_midi_error_leaves_a_reader_and_within_two_seconds(tmp_path: Path, name: str, reader: str) -> None:
    data, reason = HOSTILE[name]
    path = tmp_path / "bad.mid"
    path.write_bytes(data)
    started = time.process_time()
    with pytest.raises(MidiError, match=reason) as raised:
        read_midi(path) if reader == "pretty_midi" else read_song(path, reader)
    assert time.process_time() - started < 2
    assert str(raised.value).startswith("bad.mid: ")
    assert str(raised.value).isprintable()


def test_without_the_guard_the_parser_leaks_other_errors(tmp_path: Path) -> None:
    leaked = set()
    for name in ("empty", "track cut", "division 0", "tempo 0", "tempo without content", "data byte above 127"):
        (tmp_path / "bad.mid").write_bytes(HOSTILE[name][0])
        try:
            pretty_midi.PrettyMIDI(str(tmp_path / "bad.mid"))
        except Exception as error:
            leaked.add(type(error))
    assert leaked >= {EOFError, ZeroDivisionError, IndexError, OSError}


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_file_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    whole = song([(0, 4, 60), (4, 8, 62)], [(0, 8, 50)], meters={0: (3, 4), 12: (4, 4)}, tempos={0: 100, 5: 60})
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 4)) if damaged else 0):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        midi = read(tmp_path / "a.mid", bytes(damaged))
    except MidiError:
        return
    for codec in (CODEC, MelodyTokenizer(meter="folded")):
        for melody in codec.melodies(midi).melodies:
            assert len(melody.events) % 16 == 0


@pytest.mark.parametrize("name", ["a\nb.mid", "a\x1b[31m.mid", "a\x00.mid", "folder.mid", "missing.mid", "pipe.mid"])
def test_a_message_is_one_printable_line_whatever_the_name(tmp_path: Path, name: str) -> None:
    if name == "folder.mid":
        (tmp_path / name).mkdir()
    elif name == "pipe.mid":
        os.mkfifo(tmp_path / name)  # whoever opens it waits for ever
    elif "\x00" not in name and name != "missing.mid":
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(MidiError) as raised:
        read_midi(tmp_path / name)
    assert str(raised.value).isprintable()


EVENTS = 49_000
STRIKE, RELEASE = b"\x90\x3c\x50", b"\x80\x3c\x00"
ALTERNATING = b"".join(number(1) + meta(0x51, bytes([n, 0xA1, 0x20])) for n in (6, 7))

EXCLUSIVE = number(0) + b"\xf0" + number(999_999) + bytes(999_999)

LARGE = {
    "notes": smf((number(0) + STRIKE + number(1) + b"\x3c\x00") * (EVENTS // 2)),
    "notes that all sound at once": smf((number(0) + STRIKE) * (EVENTS - 1) + number(1) + RELEASE),
    "notes that pile up": smf((number(1) + STRIKE) * (EVENTS // 2) + (number(1) + RELEASE) * (EVENTS // 2)),
    "tempos": smf(ALTERNATING * (EVENTS // 2) + NOTE),
    "tempos on the second track": smf(b"", ALTERNATING * (EVENTS // 2) + NOTE),
    "a tempo behind the notes": smf(b"", (number(1) + STRIKE + number(1) + RELEASE) * (EVENTS // 2) + ALTERNATING),
    "time signatures": smf((number(1) + meta(0x58, b"\x03\x02\x18\x08")) * (EVENTS - 4) + NOTE),
    "key signatures": smf((number(1) + meta(0x59, b"\x00\x00")) * (EVENTS - 4) + NOTE),
    "lyrics": smf((number(1) + meta(0x05, b"la\xff")) * (EVENTS - 4) + NOTE),
    "text of almost a megabyte, twice": smf((number(1) + meta(0x01, b"x" * 999_999)) * 2 + NOTE),
    "system exclusives": smf((number(0) + b"\xf0\x02\x01\xf7") * (EVENTS - 4) + NOTE),
    "a system exclusive of almost a megabyte, twice": smf(EXCLUSIVE * 2 + NOTE),
    "pitch bends": smf((number(1) + b"\xe0\x01\x01") * (EVENTS - 4) + NOTE),
    "programs": smf(b"".join(number(0) + bytes([0xC0, n % 128]) + NOTE for n in range(2_000))),
    "tracks": smf(*[number(4) + STRIKE + number(4) + RELEASE] * (EVENTS // 3)),
    "the finest ticks": smf((number(3_300) + STRIKE + number(3_300) + RELEASE) * (EVENTS // 2), division=32_767),
}  # fmt: skip


def read_within_the_limits(folder: Path) -> None:
    """In a process of its own, that may take 512 MB more than it has: read all, then see that the limit holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 512 * 2**20,) * 2)
    reasons: list[str] = []

    def melodies_of(path: Path) -> None:
        try:
            CODEC.melodies(read_midi(path))
        except MidiError as error:
            reasons.append(str(error))

    for path in sorted(folder.iterdir()):
        assert takes_less_than(2, partial(melodies_of, path)), path.name
    assert len(reasons) >= len(HOSTILE)
    assert not [reason for reason in reasons if "MemoryError" in reason]
    with pytest.raises(MemoryError):
        bytearray(512 * 2**20)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the size of a process is read where Linux tells it")
def test_no_file_takes_more_than_two_seconds_or_512_megabytes(tmp_path: Path) -> None:
    for name, data in {**{name: data for name, (data, _) in HOSTILE.items()}, **LARGE}.items():
        (tmp_path / f"{name}.mid".replace("/", " ")).write_bytes(data)
    assert exit_code(read_within_the_limits, tmp_path) == 0


def test_a_megabyte_of_lyrics_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MidiError, match="exceeds maximum length"):
        read(tmp_path / "a.mid", before_a_note(meta(0x05, b"x" * 1_000_001)))


MUTATIONS = 4_000


def mutated(data: bytes, others: Sequence[bytes], draw: random.Random) -> bytes:
    """Return a file with a few of its bits, bytes or stretches changed, gone, repeated or taken from another file."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        start, other = draw.randrange(len(changed) + 1), draw.choice(others)
        stretch = slice(start, start + draw.choice((1, 2, 4, 50)))
        piece = other[(begin := draw.randrange(len(other))) : begin + draw.choice((1, 4, 50))]
        match draw.randrange(6):
            case 0 if start < len(changed):
                changed[start] ^= 1 << draw.randrange(8)
            case 1 if start < len(changed):
                changed[start] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
            case 2:
                del changed[start:]
            case 3:
                del changed[stretch]
            case 4:
                changed[start:start] = changed[stretch]
            case _:
                changed[stretch] = piece
    return bytes(changed)


@pytest.mark.slow
def test_of_thousands_of_damaged_files_each_is_read_or_refused_in_time(tmp_path: Path) -> None:
    notes = [(2 * n, 2 * n + 2, SCALE[n % 8]) for n in range(12)]
    plain = song(notes, [(0, 8, 50)], meters={0: (3, 4), 12: (4, 4)}, tempos={0: 100, 5: 60})
    rich = before_a_note(meta(0x03, b"name") + number(0) + b"\xf0\x02\x01\xf7" + number(0) + meta(0x59, b"\x02\x01"))
    wrapped = b"RIFF\x00\x00\x00\x00RMIDdata\x00\x00\x00\x00" + plain
    running = smf(number(0) + STRIKE + number(480) + b"\x3c\x00" + number(0) + b"\x40\x50" + number(480) + b"\x40\x00")
    seeds, draw, read_whole, slowest = (plain, rich, wrapped, running), random.Random(0), 0, 0.0
    refused: list[str] = []
    for _ in range(MUTATIONS):
        data = mutated(draw.choice(seeds), seeds, draw)
        started = time.process_time()
        try:
            midi = read(tmp_path / "a.mid", data)
            read_whole += 1
            for codec in (CODEC, MelodyTokenizer(meter="folded")):
                for melody in codec.melodies(midi).melodies:
                    assert len(melody.events) % 16 == 0
        except MidiError as error:
            refused.append(str(error))
        slowest = max(slowest, time.process_time() - started)
    assert all(reason.isprintable() for reason in refused)
    assert MUTATIONS // 20 < read_whole < MUTATIONS * 19 // 20  # neither harmless nor hopeless
    assert slowest < 2


def test_a_file_of_as_many_ticks_as_allowed_takes_little_memory(tmp_path: Path) -> None:
    data = song([(s, s + 4, 60) for s in range(0, 40_000, 6_665)], division=32767, tempos={0: 120, 20_000: 90})
    tracemalloc.start()
    midi = read(tmp_path / "a.mid", data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 256 * 2**20
    assert transcribe(midi).lines[0].notes[:, 0].tolist() == [*range(0, 40_000, 6_665)]


def test_many_signatures_and_many_instruments_take_no_time(tmp_path: Path) -> None:
    meters = {16.0 * n + n % 7: (3 + n % 5, 4) for n in range(2_000)}
    parts = b"".join(
        number(0) + bytes([0xC0, n % 128]) + number(1) + b"\x90\x3c\x50" + number(1) + b"\x80\x3c\x00"
        for n in range(15_000)
    )
    tracks = [song(meters=meters)[22:][: -len(END)], *[parts[n : n + 2_200] for n in range(0, len(parts), 2_200)]]
    data = smf(tracks[0], *tracks[1:])
    (tmp_path / "a.mid").write_bytes(data)
    assert takes_less_than(2, lambda: CODEC.melodies(read_midi(tmp_path / "a.mid")))


def test_a_riff_wrapper_is_taken_off(tmp_path: Path) -> None:
    plain = song([(0, 4, 60)])
    wrapped = b"RIFF" + (len(plain) + 12).to_bytes(4, "little") + b"RMIDdata" + len(plain).to_bytes(4, "little") + plain
    assert melodies(tmp_path, wrapped) == melodies(tmp_path, plain)


def test_a_riff_wrapper_may_hold_more_than_the_song(tmp_path: Path) -> None:
    plain = song([(0, 4, 60)])
    title = b"LIST\x0c\x00\x00\x00INFOINAM\x00\x00\x00\x00"
    body = b"RMID" + title + b"data" + len(plain).to_bytes(4, "little") + plain + title
    assert melodies(tmp_path, b"RIFF" + len(body).to_bytes(4, "little") + body) == melodies(tmp_path, plain)


def test_one_track_of_format_0_holds_every_channel(tmp_path: Path) -> None:
    both = b"".join(
        number(0) + bytes([0x90 | c, pitch, 80]) + number(480) + bytes([0x80 | c, pitch, 0])
        for c, pitch in ((0, 60), (1, 64))
    )
    found = melodies(tmp_path, smf(both, kind=0))
    assert found == [bars("60 - - - ."), bars("- - - - 64 - - - .")]


def test_a_running_status_goes_on_until_the_next_status(tmp_path: Path) -> None:
    whole = (
        number(0)
        + b"\x90\x3c\x50"
        + number(480)
        + b"\x90\x3c\x00"
        + number(0)
        + b"\x90\x40\x50"
        + number(480)
        + b"\x90\x40\x00"
    )
    running = (
        number(0) + b"\x90\x3c\x50" + number(480) + b"\x3c\x00" + number(0) + b"\x40\x50" + number(480) + b"\x40\x00"
    )
    assert len(running) < len(whole)
    assert melodies(tmp_path, smf(running)) == melodies(tmp_path, smf(whole)) == [bars("60 - - - 64 - - - .")]


def test_a_silence_of_thousands_of_beats_is_read(tmp_path: Path) -> None:
    midi = read(tmp_path / "a.mid", smf(b"\x82\xe1\xac\x76"[1:] + STRIKE + number(480) + RELEASE, division=960))
    assert len(CODEC.melodies(midi).melodies) == 1


def test_an_empty_track_beside_a_good_one_does_no_harm(tmp_path: Path) -> None:
    data = chunk(b"\x00\x01\x00\x02\x01\xe0", b"MThd") + chunk(b"") + chunk(NOTE + END)
    assert melodies(tmp_path, data) == [bars("60 - - - .")]


def test_names_in_a_file_do_no_harm(tmp_path: Path) -> None:
    midi = read(tmp_path / "a.mid", before_a_note(meta(0x03, b"\x00\x1b[2J\xff\xfe")))
    assert len(CODEC.windows(midi)) == 1


# A folder of files


def tune(seed: int, *, shift: int = 0) -> Notes:
    rng = np.random.default_rng(seed)
    return [(2 * n, 2 * n + 2, int(rng.integers(55, 79)) + shift) for n in range(8 * 6)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 30 tunes, some of them once more in another key, and of files that are of no use."""
    source = tmp_path_factory.mktemp("tunes")
    for seed in range(30):
        (source / f"{seed:02d}.mid").write_bytes(song(tune(seed)))
        if seed < 10:
            (source / f"{seed:02d} in another key.MIDI").write_bytes(song(tune(seed, shift=seed + 1)))
    (source / "waltz.mid").write_bytes(song(tune(90), meters={0: (3, 4)}))
    (source / "drums.mid").write_bytes(song(tune(91), channels=(9,)))
    (source / "piccolo.mid").write_bytes(song([(0, 4, 120)]))
    (source / "two notes.mid").write_bytes(song([(0, 4, 60), (4, 8, 62)]))
    (source / "empty.kar").write_bytes(smf(b""))
    (source / "long.mid").write_bytes(HOSTILE["delta of 2^28-1"][0])
    (source / "page\x1b[31m.mid").write_bytes(b"<html>")
    (source / "readme.txt").write_text("not music")
    (source / ".hidden.mid").write_bytes(b"")
    return source


@pytest.fixture(scope="module")
def prepared(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("prepared")
    prepare_midi(folder, root, seed=1)
    return root


def test_a_report_tells_every_file_by_rule(folder: Path, tmp_path: Path) -> None:
    report = prepare_midi(folder, tmp_path)
    assert report.kept == 40
    assert report.rejected == {
        "time signature 3/4 (strict keeps 4/4, 2/2, 2/4)": 1,
        "no instrument but drums plays": 1,
        "notes left out: outside pitches 21 to 108": 1,
        "fewer than 3 notes": 1,
        "no notes": 1,
        "beyond the limits": 1,
        "unreadable MIDI": 1,
    }
    assert sum(report.windows.values()) == 40 * 5  # six bars each
    assert report.counted["onsets in all"] == 40 * 48
    rows = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert {row["name"]: row["detail"] for row in rows}["page\\x1b[31m.mid"].endswith(
        "is not a MIDI file (no MThd header)"
    )


def test_a_tune_in_another_key_stands_on_the_same_side_of_the_split(prepared: Path) -> None:
    names = {split: set(WindowDataset(prepared, split).names) for split in ("train", "valid", "test")}
    assert all(names.values())
    for seed in range(10):
        pair = {f"{seed:02d}.mid", f"{seed:02d} in another key.MIDI"}
        assert any(pair <= inside for inside in names.values())


def test_prepared_windows_are_the_melodies_windows(folder: Path, prepared: Path) -> None:
    data = WindowDataset(prepared, "train")
    window = data[0]
    (melody,) = CODEC.melodies(read_midi(folder / data.names[0])).melodies
    assert window.tolist() == CODEC.stride_windows(melody.events)[0].tolist()
    assert window.dtype == torch.int64
    assert load_codec(prepared / "codec").options == CODEC.options


def test_the_bytes_are_the_same_whatever_the_engine(folder: Path, prepared: Path, tmp_path: Path) -> None:
    prepare_midi(folder, tmp_path, seed=1, engine="loky", jobs=2)
    files = sorted(path.relative_to(prepared) for path in prepared.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert all((prepared / name).read_bytes() == (tmp_path / name).read_bytes() for name in files)


def test_a_split_that_is_given_is_kept(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for split, seeds in {"train": range(5), "valid": range(4, 7), "test": range(7, 9)}.items():
        (source / split).mkdir(parents=True)
        for seed in seeds:
            (source / split / f"{seed}.mid").write_bytes(song(tune(seed)))
    report = prepare_midi(source, tmp_path / "root")
    assert report.items == {"train": 5, "valid": 3, "test": 2}
    assert report.seen_in_train["valid"] == 5  # tune 4, in train as well


def test_windows_of_few_notes_are_left_out_and_counted(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for seed in range(3):
        held = [(0, 40, 60 + seed), (40, 48, 70), *[(s, s + 2, 60 + seed * s % 11) for s in range(48, 80, 2)]]
        (source / f"{seed}.mid").write_bytes(song(held))
    report = prepare_midi(source, tmp_path / "root")
    assert report.dropped["fewer than 3 notes"] == 6  # the windows at bars 0 and 1
    assert sum(report.windows.values()) + report.dropped["repeats a window of its split"] == 6


def test_rhythms_on_the_grid_raise_no_alarm(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prepare_midi(folder, tmp_path)
    assert not caplog.records


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_notes": 0}, "min_notes must be a positive int, got 0"),
        ({"bars": -1}, "bars must be a positive int, got -1"),
        ({"meter": "waltz"}, "meter must be one of strict, any, folded, got 'waltz'"),
        ({"engine": "spark"}, "engine must be one of"),
    ],
)
def test_a_bad_choice_is_named(folder: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare_midi(folder, tmp_path, **options)


def test_a_source_without_music_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match=r"holds no files ending in \.kar, \.mid, \.midi, \.rmi"):
        prepare_midi(tmp_path, tmp_path / "root")
    (tmp_path / "a.mid").write_bytes(song(tune(1), meters={0: (3, 4)}))
    with pytest.raises(ValueError, match=r"every item was rejected \(1 x time signature 3/4"):
        prepare_midi(tmp_path, tmp_path / "root")
