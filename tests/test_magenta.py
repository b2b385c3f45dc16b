"""Windows by Magenta's rules: a golden case for each rule, worked out by hand."""

from pathlib import Path
from typing import Any

import pytest

from seqvae.data.midi import MelodyTokenizer, prepare_midi, read_song
from seqvae.data.midi.extracting import Extracted, melody_windows
from seqvae.data.midi.magenta import magenta_windows
from tests.helpers.midi import Notes, meta, number, part, smf, song

EIGHTS: Notes = [(2 * n, 2 * n + 2, 60 + n) for n in range(16)]


def extracted(folder: Path, data: bytes, **options: Any) -> Extracted:
    (folder / "a.mid").write_bytes(data)
    return magenta_windows(read_song(folder / "a.mid"), **options)


def windows(folder: Path, data: bytes, **options: Any) -> list[str]:
    """Return windows as text: - goes on, . ends, and a pitch is struck by its number."""
    found = extracted(folder, data, **options).windows
    return [" ".join("-" if e == 0 else "." if e == 1 else str(int(e) + 19) for e in window) for window in found]


def bars(*written: str) -> str:
    """Return bars spelled by their beginnings, each filled up to 16 steps."""
    return " ".join(" ".join((bar.split() + ["-"] * 16)[:16]) for bar in written)


def test_windows_slide_by_a_bar(tmp_path: Path) -> None:
    notes = [(16 * bar, 16 * bar + 16, 60 + bar) for bar in range(4)]
    assert windows(tmp_path, song(notes)) == [bars(f"{n}", f"{n + 1}") for n in (60, 61, 62)]


def test_a_melody_shorter_than_a_window_gives_nothing(tmp_path: Path) -> None:
    assert windows(tmp_path, song([(0, 4, 60), (8, 12, 62)])) == []
    assert windows(tmp_path, song([(0, 4, 60), (16, 20, 62)])) == [bars("60 - - - .", "62 - - - .")]


def test_a_held_note_is_lost_where_a_window_begins_within_it(tmp_path: Path) -> None:
    notes = [(0, 20, 60), (24, 28, 62), (32, 36, 64)]
    assert windows(tmp_path, song(notes)) == [
        bars("60", "- - - - . - - - 62 - - - ."),
        bars("- - - - - - - - 62 - - - .", "64 - - - ."),
    ]


def test_a_change_of_tempo_cuts_notes_and_begins_bars_anew(tmp_path: Path) -> None:
    notes = [(0, 16, 60), (16, 24, 61), (24, 40, 62), (40, 56, 63)]
    assert windows(tmp_path, song(notes, tempos={0: 120, 20: 90})) == [
        bars("60", "61 - - - ."),
        bars("- - - - 62", "- - - - 63"),
        bars("- - - - 63", "- - - - ."),
    ]


def test_a_note_cut_by_a_change_is_not_struck_again(tmp_path: Path) -> None:
    notes = [(0, 16, 60), (16, 40, 61), (40, 56, 62)]
    assert windows(tmp_path, song(notes, tempos={20: 90})) == [
        bars("60", "61 - - - ."),
        bars("- - - - 62", "- - - - ."),
    ]


def test_a_repeated_tempo_cuts_nothing(tmp_path: Path) -> None:
    assert windows(tmp_path, song(EIGHTS, tempos={0: 90, 6: 90})) == windows(tmp_path, song(EIGHTS))


def test_what_changes_after_the_last_note_cuts_nothing(tmp_path: Path) -> None:
    assert windows(tmp_path, song(EIGHTS, tempos={32: 90}, meters={40: (3, 4)})) == windows(tmp_path, song(EIGHTS))


@pytest.mark.parametrize("meter", [(3, 4), (6, 8), (2, 4), (1, 4)])
def test_bars_of_other_than_sixteen_steps_give_nothing_and_are_counted(tmp_path: Path, meter: tuple[int, int]) -> None:
    found = extracted(tmp_path, song(EIGHTS, meters={0: meter}))
    assert found.windows == []
    assert list(found.dropped) == [f"time signature {meter[0]}/{meter[1]} (Magenta keeps bars of 16 steps)"]


def test_cut_time_is_kept(tmp_path: Path) -> None:
    assert windows(tmp_path, song(EIGHTS, meters={0: (2, 2)})) == windows(tmp_path, song(EIGHTS))


def test_a_silence_of_a_bar_ends_a_melody_and_the_next_begins_at_a_bar_line(tmp_path: Path) -> None:
    notes = [(0, 4, 60), (16, 20, 61), (40, 44, 62), (52, 56, 63)]
    assert windows(tmp_path, song(notes)) == [
        bars("60 - - - .", "61 - - - ."),
        bars("- - - - - - - - 62 - - - .", "- - - - 63 - - - ."),
    ]


def test_the_highest_of_a_step_stays_and_a_later_onset_ends_it(tmp_path: Path) -> None:
    notes = [(0, 32, 60), (0, 8, 64), (4, 6, 50), (16, 20, 61)]
    assert windows(tmp_path, song(notes)) == [bars("64 - - - 50 - .", "61 - - - .")]


def test_of_equal_pitches_on_one_step_the_earlier_stays(tmp_path: Path) -> None:
    notes = [(0, 0.2, 60), (0.3, 8, 60), (16, 20, 61)]
    assert windows(tmp_path, song(notes)) == [bars("60 .", "61 - - - .")]


def test_steps_are_nearest_in_seconds_and_halves_go_up(tmp_path: Path) -> None:
    notes = [(0.5, 2.49, 60), (16, 16.1, 61)]
    assert windows(tmp_path, song(notes, division=400)) == [bars("- 60 .", "61 .")]


def test_pitches_and_programs_out_of_range_are_left_out(tmp_path: Path) -> None:
    data = smf(
        part([*EIGHTS, (0, 2, 20)], program=31),
        part(EIGHTS, program=32, channel=1),
        part(EIGHTS, channel=9),
    )
    (tmp_path / "a.mid").write_bytes(data)
    assert len(windows(tmp_path, data)) == 1
    found = extracted(tmp_path, data, tracks="all")
    assert len(found.windows) == 1  # twice the same
    assert found.dropped == {"repeats a window of its file": 1}
    assert found.counted == {"notes left out: outside pitches 21 to 108": 1}


def test_a_melody_ends_after_a_hundred_bars(tmp_path: Path) -> None:
    notes = [(16 * bar, 16 * bar + 16, 30 + bar % 70) for bar in range(130)]
    assert len(windows(tmp_path, song(notes))) == 70  # 99 windows of 70 different beginnings


def test_a_tempo_on_another_track_counts_as_if_it_stood_on_the_first(tmp_path: Path) -> None:
    tempo = number(0) + meta(0x51, b"\x0a\x2c\x2a")
    assert windows(tmp_path, smf(b"", part(EIGHTS), tempo)) == windows(tmp_path, smf(tempo, part(EIGHTS)))


def test_its_rules_are_not_ours(tmp_path: Path) -> None:
    (tmp_path / "a.mid").write_bytes(song([(0, 20, 60), (24, 28, 62), (32, 36, 64), (36, 38, 60), (44, 46, 62)]))
    table = read_song(tmp_path / "a.mid")
    ours, theirs = melody_windows(table, codec=MelodyTokenizer(), min_notes=1), magenta_windows(table)
    assert [w.tolist() for w in ours.windows] != [w.tolist() for w in theirs.windows]
    assert ours.key == theirs.key


def test_a_dataset_holds_its_windows_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "midi").mkdir()
    for name in range(3):
        (tmp_path / "midi" / f"{name}.mid").write_bytes(song([(s, e, p + name * (p % 3)) for s, e, p in EIGHTS]))
    (tmp_path / "midi" / "waltz.mid").write_bytes(song(EIGHTS, meters={0: (3, 4)}))
    report = prepare_midi(tmp_path / "midi", tmp_path / "root", compat="magenta")
    assert (report.kept, sum(report.windows.values())) == (3, 3)
    assert report.fixes == ["1 of 4 files are in 3/4: leave out --compat magenta and use --meter any"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compat": "jukebox"}, "compat must be one of magenta, got 'jukebox'"),
        ({"compat": "magenta", "meter": "any"}, "compat 'magenta' has rules of its own; leave out meter 'any'"),
        ({"compat": "magenta", "min_notes": 2}, "leave out min_notes 2"),
        ({"compat": "magenta", "split_on_tempo": True}, "leave out split_on_tempo True"),
    ],
)
def test_other_rules_beside_them_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare_midi(tmp_path, tmp_path / "root", **options)
