"""The choices of a MIDI preparation: metres, tracks, triplets, gaps, tempo; and what its report advises."""

import json
import logging
from collections import Counter
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pretty_midi
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqvae.cli import main
from seqvae.data.dataset import WindowDataset
from seqvae.data.midi import MelodyTokenizer, prepare_midi, read_midi, song_of
from seqvae.data.midi.melody import Line, transcribe
from seqvae.data.midi.meters import COMMON, METERS, Meter, meter_of, stretches
from seqvae.data.midi.notes import Song, Track, ordered
from seqvae.data.midi.tracks import Tracks
from tests.helpers.midi import Notes, meta, number, part, smf, song

Meters = dict[float, tuple[int, int]]

ANY = MelodyTokenizer(meter="any")


def read(path: Path, data: bytes) -> pretty_midi.PrettyMIDI:
    path.write_bytes(data)
    return read_midi(path)


def spelled(events: Tensor | NDArray[np.uint8]) -> str:
    return " ".join("-" if e == 0 else "." if e == 1 else str(int(e) + 19) for e in events)


def quarters(count: int, first: int = 60, at: int = 0) -> Notes:
    return [(at + 4 * n, at + 4 * n + 4, first + n % 12) for n in range(count)]


def signatures(midi: pretty_midi.PrettyMIDI) -> list[tuple[int, int, float]]:
    return [(s.numerator, s.denominator, round(s.time, 6)) for s in midi.time_signature_changes]


# Metres


@pytest.mark.parametrize(
    ("meter", "length"), [((3, 4), 24), ((6, 8), 24), ((4, 4), 32), ((2, 4), 16), ((7, 8), 28), ((12, 8), 48)]
)
def test_a_window_of_any_metre_is_as_long_as_its_bars_and_comes_back(
    tmp_path: Path, meter: tuple[int, int], length: int
) -> None:
    midi = read(tmp_path / "a.mid", song(quarters(24), meters={0: meter}))
    windows = ANY.windows(midi)
    assert [len(window) for window in windows] == [length] * len(windows)
    joined = ANY.join(windows, like=midi)
    ANY.write(joined, tmp_path / "b.mid")
    again = read_midi(tmp_path / "b.mid")
    assert signatures(again) == [(*meter, 0.0)]
    assert [w.tolist() for w in ANY.windows(again)] == [w.tolist() for w in windows]


def test_a_song_of_several_metres_comes_back_with_each_of_them(tmp_path: Path) -> None:
    midi = read(tmp_path / "a.mid", song(quarters(29), meters={0: (4, 4), 32: (3, 4), 80: (5, 8), 100: (4, 4)}))
    windows = ANY.windows(midi)
    assert [len(window) for window in windows] == [32, 24, 24, 20, 32]
    joined = ANY.join(windows, like=midi)
    assert signatures(joined) == [(4, 4, 0), (3, 4, 4), (5, 8, 10), (4, 4, 12.5)]
    assert [w.tolist() for w in ANY.windows(joined)] == [w.tolist() for w in windows]
    plain = ANY.join(windows)
    assert [w.tolist() for w in ANY.windows(plain)] == [w.tolist() for w in windows]


def test_the_metre_of_what_is_joined_is_that_of_what_it_is_like(tmp_path: Path) -> None:
    jig = read(tmp_path / "a.mid", song(quarters(12), meters={0: (6, 8)}))
    drawn = torch.tensor(([41] + [0] * 11) * 5)[: ANY.spec["max_length"]]
    assert signatures(ANY.join([drawn, drawn], like=jig)) == [(6, 8, 0)]
    (line,) = ANY.join([drawn, drawn], like=jig).instruments
    step = 60 / jig.get_tempo_changes()[1][0] / 4
    assert [round(note.start / step) for note in line.notes] == [0, 12, 24, 36]  # two bars of twelve each


def test_what_a_network_draws_is_read_in_four_four(tmp_path: Path) -> None:
    """It is longer than any window, so it cannot be mistaken for one in another metre."""
    drawn = torch.tensor([41] + [0] * (ANY.spec["max_length"] - 1))
    joined = ANY.join([drawn])
    assert signatures(joined) == [(4, 4, 0)]
    assert [len(w) for w in ANY.windows(joined)] == [32]
    longest = read(tmp_path / "a.mid", song(quarters(12), meters={0: (12, 8)}))
    assert max(map(len, ANY.windows(longest))) == ANY.spec["max_length"] - 1


@pytest.mark.parametrize(
    ("meter", "rule"),
    [
        ((13, 8), "time signature 13/8 (a bar of more than 6 quarter notes)"),
        ((5, 32), "time signature 5/32 (a bar of 2.5 steps)"),
    ],
)
def test_a_metre_that_fits_no_window_is_named(tmp_path: Path, meter: tuple[int, int], rule: str) -> None:
    found = ANY.melodies(read(tmp_path / "a.mid", song(quarters(12), meters={0: meter})))
    assert (found.melodies, list(found.dropped)) == ([], [rule])


def test_with_the_other_rules_every_window_is_of_four_four(tmp_path: Path) -> None:
    midi = read(tmp_path / "a.mid", song(quarters(24), meters={0: (3, 4), 24: (2, 4), 40: (4, 4)}))
    for rule in ("strict", "folded"):
        codec = MelodyTokenizer(meter=rule)
        assert {len(w) for w in codec.windows(midi)} == {32} == {codec.spec["max_length"]}
        assert signatures(codec.join(codec.windows(midi), like=midi)) == [(4, 4, 0)]


@pytest.mark.parametrize("rule", METERS)
def test_tracks_are_transcribed_as_each_is_alone(rule: str) -> None:
    draw = np.random.default_rng(0)
    signatures = [(0, 3, 4), (3_000, 13, 8), (9_000, 4, 4), (15_000, 2, 2)]
    starts, lengths = draw.integers(0, 20_000, (5, 30)), draw.integers(1, 2_000, (5, 30))
    sounds = draw.integers(10, 120, (5, 30, 2))
    tables = [
        ordered(np.column_stack([start, start + length, sound]))
        for start, length, sound in zip(starts, lengths, sounds, strict=True)
    ]
    tracks = [Track("", 0, False, table) for table in [*tables, tables[0][:0]]]
    found = transcribe(Song(480, tracks, [(0, 120.0)], signatures), rule)
    lines, dropped, counted = [], Counter[str](), Counter[str]()
    for place, track in enumerate(tracks):
        alone = transcribe(Song(480, [track], [(0, 120.0)], signatures), rule)
        lines += [line._replace(instrument=place) for line in alone.lines]
        dropped, counted = dropped + alone.dropped, counted + alone.counted

    def plain(line: Line) -> Line:
        return line._replace(notes=line.notes.tolist())

    assert [plain(line) for line in found.lines] == [plain(line) for line in lines]
    assert (found.dropped, found.counted) == (dropped, counted)
    assert {line.instrument for line in found.lines} == set(range(5))


def test_stretches_meet_and_cover_the_song(tmp_path: Path) -> None:
    meters: Meters = {0: (3, 4), 12: (3, 4), 20: (3, 4), 32: (2, 2), 64: (4, 4), 100: (13, 8)}
    table = song_of(read(tmp_path / "a.mid", song(quarters(40), meters=meters, tempos={6: 90, 70: 60})))
    for rule in METERS:
        for on_tempo in (False, True):
            found = stretches(table, rule, split_on_tempo=on_tempo)
            assert found[0].start == 0
            assert found[-1].end > 10**9
            assert all(a.end == b.start for a, b in pairwise(found))
            assert all(one.bar_line <= one.start for one in found)
    assert [str(one.meter) for one in stretches(table, "any")] == ["3/4", "3/4", "2/2", "4/4", "13/8"]


@pytest.mark.parametrize(
    ("bar", "meter"), [(12, (3, 4)), (16, (4, 4)), (14, (7, 8)), (24, (6, 4)), (3, (3, 16)), (8, (2, 4))]
)
def test_the_plainest_metre_of_a_bar(bar: int, meter: tuple[int, int]) -> None:
    assert meter_of(Fraction(bar), 4) == Meter(*meter)
    assert meter_of(Fraction(bar), 4).steps(4) == bar  # type: ignore[union-attr]
    assert meter_of(Fraction(1, 3), 4) is None
    assert COMMON.steps(12) == 48


def test_scores_ignore_what_is_predicted_beyond_a_shorter_window() -> None:
    truth, guess = torch.tensor([41, 0, 43, 1]), torch.tensor([41, 0, 43, 1, 50, 60])
    assert ANY.score([truth], [guess]) == dict.fromkeys(
        ("accuracy", "onset_accuracy", "note_precision", "note_recall", "note_f1"), 1.0
    )


# Steps


TRIPLETS: Notes = [(n * 4 / 3, (n + 1) * 4 / 3, 60 + n % 7) for n in range(24)]


def test_twelve_steps_a_quarter_hold_triplets_and_sixteenths_exactly(tmp_path: Path) -> None:
    codec = MelodyTokenizer(steps_per_quarter=12)
    midi = read(tmp_path / "a.mid", song(TRIPLETS, [(0, 1, 70), (1, 2, 71)]))
    lines = transcribe(midi, steps_per_quarter=12)
    assert lines.lines[0].notes[:, 0].tolist() == [4 * n for n in range(24)]
    assert lines.lines[1].notes[:, :2].tolist() == [[0, 3], [3, 6]]
    assert lines.counted["onsets moved by more than a quarter of a step"] == 0
    assert codec.spec["max_length"] == 96
    joined = codec.join(codec.windows(midi), like=midi)
    codec.write(joined, tmp_path / "b.mid")
    again = read_midi(tmp_path / "b.mid")
    assert [w.tolist() for w in codec.windows(again)] == [w.tolist() for w in codec.windows(midi)]
    assert [n.start for n in again.instruments[0].notes] == pytest.approx([n / 6 for n in range(24)], abs=1e-5)


def test_on_four_steps_triplets_are_bent_and_said_to_be_triplets(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in range(3):
        (tmp_path / f"{name}.mid").write_bytes(song([(s, e, p + name * (p % 2)) for s, e, p in TRIPLETS]))
    rows: dict[str, dict[str, Any]] = {"a": {}, "b": {"steps_per_quarter": 12}, "c": {"max_bent": 0.7}}
    for root, options in rows.items():
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            report = prepare_midi(tmp_path, tmp_path / root, **options)
        messages = [record.getMessage() for record in caplog.records]
        assert bool(messages) == (root == "a")
        if root == "a":
            assert messages == [
                "48 of 72 onsets (67 %) lie more than a quarter of a step off the grid of 4 steps a quarter note and "
                "are bent to it; 48 of them are near triplets: use --steps-per-quarter 12"
            ]
            assert report.fixes == ["48 of 72 onsets are near triplets: use --steps-per-quarter 12"]


# Tracks


def band(tmp_path: Path) -> pretty_midi.PrettyMIDI:
    names = ("MELODY", "Bridge 1", "bass")
    lines = [[(0, 4, 80), (4, 8, 81)], [(0, 2, 60), (2, 4, 61), (8, 12, 62)], [(n, n + 1, 40 + n) for n in range(16)]]
    tracks = [
        number(0) + meta(0x03, name.encode()) + part(line, channel=c, program=32 * c % 127)
        for c, (name, line) in enumerate(zip(names, lines, strict=True))
    ]
    return read(tmp_path / "band.mid", smf(b"", *tracks, part([(0, 1, 36)], channel=9)))


@pytest.mark.parametrize(
    ("words", "places"),
    [
        ("all", [0, 1, 2]),
        ("melody", [0]),
        ("Bridge*,MELODY", [0, 1]),
        ("32", [1]),
        ("0-32", [0, 1]),
        ("bass, 0", [0, 2]),
        ("flute", []),
        ("skyline", [2]),
        ("skyline,0-32", [1]),
    ],
)
def test_tracks_are_chosen_by_name_or_program(tmp_path: Path, words: str, places: list[int]) -> None:
    assert [place for place, _ in Tracks.parse(words).chosen(song_of(band(tmp_path)))] == places


def test_a_skyline_is_the_highest_note_of_all_tracks(tmp_path: Path) -> None:
    (window,) = MelodyTokenizer(tracks="skyline").windows(band(tmp_path))
    assert spelled(window[:16]) == "80 41 61 43 81 45 46 47 62 49 50 51 52 53 54 55"


def test_the_tune_is_one_of_the_tracks_asked_for_or_else_any(tmp_path: Path) -> None:
    midi = band(tmp_path)
    assert spelled(MelodyTokenizer(tracks="MELODY").windows(midi)[0][:6]) == "80 - - - 81 -"
    assert spelled(MelodyTokenizer(tracks="flute").windows(midi)[0][:4]) == "40 41 42 43"
    codec = MelodyTokenizer(tracks="MELODY")
    assert codec.windows(codec.join(codec.windows(midi), like=midi))[0].tolist() == codec.windows(midi)[0].tolist()


@pytest.mark.parametrize("words", ["", "melody,,bass", "5-3", "128", "0-200"])
def test_words_that_choose_nothing_are_named(words: str) -> None:
    with pytest.raises(ValueError, match=f"got {words.split(',')[0]!r}" if "," not in words else "got 'melody,,bass'"):
        Tracks.parse(words)


# Gaps, tempo, and the folder


@pytest.mark.parametrize(("gap", "count"), [(0.5, 3), (1, 2), (2, 1)])
def test_the_silence_that_ends_a_melody_is_counted_in_bars(tmp_path: Path, gap: float, count: int) -> None:
    notes = [(0, 4, 60), (12, 16, 62), (32, 36, 64)]
    assert len(MelodyTokenizer().melodies(read(tmp_path / "a.mid", song(notes)), gap_bars=gap).melodies) == count


def test_a_change_of_tempo_ends_a_melody_only_where_that_is_asked_for(tmp_path: Path) -> None:
    midi = read(tmp_path / "a.mid", song(quarters(8), tempos={0: 120, 18: 90}))
    assert len(MelodyTokenizer().melodies(midi).melodies) == 1
    first, second = MelodyTokenizer().melodies(midi, split_on_tempo=True).melodies
    held = "60 - - - 61 - - - 62 - - - 63 - - - 64 - ."
    assert spelled(first.events) == held + " -" * (32 - len(held.split()))
    assert spelled(second.events) == "- - - - 65 - - - 66 - - - 67 - - -"  # its bar lines have not moved


def waltzes(folder: Path) -> Path:
    chance = np.random.default_rng(0)
    (folder / "a" / "b").mkdir(parents=True)
    for name in range(9):
        notes = [(4 * n, 4 * n + 4, int(chance.integers(50, 80))) for n in range(24)]
        meters: Meters = {0: (3, 4)} if name < 5 else {0: (4, 4), 64: (3, 4)} if name == 5 else {}
        (folder / "a" / ("b" if name % 2 else ".") / f"{name}.mid").write_bytes(song(notes, meters=meters))
    return folder


def test_a_report_says_where_windows_were_left_out_and_what_would_keep_them(tmp_path: Path) -> None:
    report = prepare_midi(waltzes(tmp_path / "midi"), tmp_path / "root")
    assert report.kept == 4
    assert report.fixes == ["6 of 9 files are in 3/4: use --meter any"]
    assert report.folders == {"a": [2, 10], "a/b": [2, 8]}
    (line,) = map(json.loads, (tmp_path / "root" / "dropped.jsonl").read_text().splitlines())
    assert line == {"name": "a/b/5.mid", "dropped": {"time signature 3/4 (strict keeps 4/4, 2/2, 2/4)": 2}}
    table = report.table()
    assert "to keep more: 6 of 9 files are in 3/4: use --meter any" in table
    assert "left out: time signature 3/4 (strict keeps 4/4, 2/2, 2/4) (in 1 items)" in table
    assert "10 windows  of a\n" in table
    assert prepare_midi(tmp_path / "midi", tmp_path / "all", meter="any").fixes == []


def test_a_file_without_the_track_says_which_it_has(tmp_path: Path) -> None:
    for name in range(4):
        line = part([(4 * n, 4 * n + 4, 60 + n * name % 7) for n in range(16)])
        title = b"melody" if name else b"tune"
        (tmp_path / f"{name}.mid").write_bytes(smf(number(0) + meta(0x03, title) + line))
    report = prepare_midi(tmp_path, tmp_path / "root", tracks="melody")
    (row,) = map(json.loads, (tmp_path / "root" / "rejected.jsonl").read_text().splitlines())
    assert row == {"name": "0.mid", "rule": "no track is one of --tracks", "detail": "there are 'tune' (program 0)"}
    assert report.fixes == ["1 of 4 files have no such track: see the names in rejected.jsonl for other --tracks"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gap_bars": 0}, "gap_bars must be a positive number, got 0"),
        ({"gap_bars": "1"}, "gap_bars must be a positive number, got '1'"),
        ({"max_bent": 2}, "max_bent must be a share from 0 to 1, got 2"),
        ({"steps_per_quarter": 6}, "steps_per_quarter must be 4 or 12, got 6"),
        ({"tracks": "9-1"}, "programs must be from 0 to 127 in order, got '9-1'"),
        ({"tracks": ""}, "tracks must be all, skyline, names or programs such as 0-31, got ''"),
        ({"min_notes": True}, "min_notes must be a positive int, got True"),
    ],
)
def test_a_bad_option_is_named(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare_midi(tmp_path, tmp_path / "root", **options)


# What a dataset holds


def test_windows_are_listed_with_their_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "root"
    prepare_midi(waltzes(tmp_path / "midi"), root, meter="any")
    for split in ("train", "valid", "test"):
        assert main(["windows", str(root), "--split", split]) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        dataset = WindowDataset(root, split)
        assert len(rows) == len(dataset) > 0
        for row in rows:
            window = dataset[row["index"]]
            assert row["events"] == [-2 if e == 0 else -1 if e == 1 else e + 19 for e in window.tolist()]
            assert row["source"] == dataset.names[dataset.items[row["index"]]]
            assert row["split"] == split
            assert ("seen_in_train" in row) == (split != "train")
    assert main(["windows", str(root), "--jsonl", str(tmp_path / "w.jsonl")]) == 0
    assert (tmp_path / "w.jsonl").read_text().count("\n") == len(WindowDataset(root, "train"))
    assert not list(tmp_path.glob(".w.jsonl*"))


def test_windows_of_what_is_no_dataset_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["windows", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
