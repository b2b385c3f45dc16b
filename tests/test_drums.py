"""The drum codec, its preparation, and the recipe that keeps the split of a corpus."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data_prep import groove
from seqvae.cli import main
from seqvae.data import load_codec
from seqvae.data.dataset import WindowDataset, read_manifest
from seqvae.data.midi import DrumTokenizer, prepare_midi, read_midi, read_song
from seqvae.data.midi.drums import KEYS, beats_of, drum_windows
from seqvae.data.midi.percussion import CLASSES
from tests.conftest import GetRun
from tests.helpers.midi import Notes, song

CODEC = DrumTokenizer()
KICK, SNARE, CLOSED, OPEN, LOW, MID, HIGH, CRASH, RIDE = (1 << number for number in range(9))


def drums(*notes: tuple[float, int], **options: Any) -> bytes:
    """Return a song of strokes (step, key) on the drum channel."""
    return song([(step, step + 1, key) for step, key in notes], channels=[9], **options)


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def combinations(tmp_path: Path, data: bytes, **options: Any) -> list[list[int]]:
    found = beats_of(read_midi(write(tmp_path / "song.mid", data)), **options)
    return [beat.combinations.tolist() for beat in found.beats]


def steps(*placed: tuple[int, int], size: int = 32) -> Tensor:
    window = torch.zeros(size, dtype=torch.int64)
    for step, combination in placed:
        window[step] = combination
    return window


def test_every_percussion_key_of_general_midi_sounds_as_one_class() -> None:
    keys = [key for group in CLASSES.values() for key in group]
    assert len(CLASSES) == 9
    assert len(keys) == len({*keys})
    assert {*range(27, 88), 22, 26} == {*keys}


@pytest.mark.parametrize(
    ("key", "combination"),
    [(35, KICK), (36, KICK), (38, SNARE), (42, CLOSED), (46, OPEN), (41, LOW), (47, MID), (50, HIGH), (57, CRASH)],
)
def test_a_combination_has_the_bit_of_each_class_that_is_struck(tmp_path: Path, key: int, combination: int) -> None:
    (found,) = combinations(tmp_path, drums((0, key), (4, key), (4, 51)))
    assert found == [combination, 0, 0, 0, combination | RIDE, *[0] * 11]


def test_all_drum_tracks_are_one_kit_and_a_key_struck_twice_counts_once(tmp_path: Path) -> None:
    data = song([(0, 1, 36), (0, 2, 35)], [(0, 1, 42)], [(0, 4, 60)], channels=[9, 9, 0])
    assert combinations(tmp_path, data)[0][0] == KICK | CLOSED


def test_a_stroke_a_little_early_or_late_is_on_its_step_and_in_its_bar(tmp_path: Path) -> None:
    data = drums((0, 36), (15.6, 38), (20.4, 42), meters={0: (4, 4)})
    (found,) = combinations(tmp_path, data)
    assert [(step, struck) for step, struck in enumerate(found) if struck] == [(0, KICK), (16, SNARE), (20, CLOSED)]


def test_a_time_signature_that_is_not_kept_is_counted_and_a_folded_one_is_not(tmp_path: Path) -> None:
    data = drums((0, 36), (12, 36), (24, 36), (36, 36), meters={0: (3, 4)})
    found = beats_of(read_midi(write(tmp_path / "song.mid", data)))
    assert found.beats == []
    assert found.dropped == {"time signature 3/4 (strict keeps 4/4, 2/2, 2/4)": 3}
    assert len(combinations(tmp_path, data, meter="folded")[0]) == 48


def test_a_key_that_is_no_percussion_is_left_out_and_counted(tmp_path: Path) -> None:
    found = beats_of(read_midi(write(tmp_path / "song.mid", drums((0, 36), (1, 100), (2, 20)))))
    assert found.counted["drum notes left out: no percussion key of General MIDI"] == 2
    assert found.beats[0].combinations.tolist() == [KICK, *[0] * 15]


def test_windows_stand_at_a_stride_of_one_bar_and_a_silent_bar_ends_a_beat(tmp_path: Path) -> None:
    three_bars = [(16 * bar, 36) for bar in range(3)]
    after_a_rest = [(16 * 4 + 1, 38)]  # bar 3 is silent
    data = drums(*three_bars, *after_a_rest)
    windows = drum_windows(read_song(write(tmp_path / "song.mid", data)), min_notes=1).windows
    first_two = [[(0, KICK), (16, KICK)], [(0, KICK), (16, KICK)]]
    assert [[(int(s), int(w[s])) for s in np.flatnonzero(w)] for w in windows] == [*first_two, [(1, SNARE)]]
    assert {len(window) for window in windows} == {32}


def test_windows_come_back_from_what_is_joined(tmp_path: Path) -> None:
    chance = random.Random(0)
    windows = [torch.tensor([chance.choice([0, 0, chance.randrange(512)]) for _ in range(32)]) for _ in range(5)]
    windows[0][3] = KICK
    CODEC.write(CODEC.join(windows), tmp_path / "song.mid")
    (read,) = CODEC.read(str(tmp_path / "song.mid"))
    assert all(torch.equal(got, true) for got, true in zip(CODEC.windows(read), windows, strict=True))


def test_every_combination_comes_back() -> None:
    every = [torch.arange(32 * part, 32 * part + 32) for part in range(16)]
    assert torch.equal(torch.cat(CODEC.windows(CODEC.join(every))), torch.arange(512))


def test_what_is_written_is_drums_in_the_tempo_and_velocity_of_what_it_is_like(tmp_path: Path) -> None:
    like = read_midi(write(tmp_path / "song.mid", drums((0, 35), (4, 57), tempos={0: 93})))
    CODEC.write(CODEC.join([steps((0, KICK | RIDE), (8, CRASH))], like=like), tmp_path / "out.mid")
    out = read_midi(tmp_path / "out.mid")
    (kit,) = out.instruments
    assert kit.is_drum
    assert sorted((note.pitch, note.velocity) for note in kit.notes) == [(36, 80), (49, 80), (51, 80)]
    assert out.get_tempo_changes()[1][0] == pytest.approx(93, abs=1e-3)
    assert [KEYS[number] for number in range(9)] == [36, 38, 42, 46, 45, 48, 50, 49, 51]


def test_a_combination_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="combinations must be from 0 to 511, got 512"):
        CODEC.join([steps((0, 512))])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bars": 0}, "bars must be a positive int, got 0"),
        ({"meter": "any"}, "meter must be one of strict, folded, got 'any'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DrumTokenizer(**options)


def test_scores_count_strokes_by_class_and_step() -> None:
    truth = [steps((0, KICK | CLOSED), (4, SNARE | CLOSED), (8, KICK))]
    guess = [steps((0, KICK | CLOSED), (4, SNARE), (9, KICK), (12, RIDE))]
    strokes = [{(s, b) for s, c in enumerate(w[0].tolist()) for b in range(9) if c >> b & 1} for w in (truth, guess)]
    hits = len(strokes[0] & strokes[1])
    assert CODEC.score(truth, guess) == pytest.approx(
        {
            "accuracy": 28 / 32,
            "note_precision": hits / len(strokes[1]),
            "note_recall": hits / len(strokes[0]),
            "note_f1": 2 * hits / (len(strokes[0]) + len(strokes[1])),
        }
    )
    assert set(CODEC.score(truth, truth).values()) == {1.0}
    assert CODEC.score([steps()], [steps()])["note_f1"] == 0.0


def folder_of(tmp_path: Path) -> Path:
    """Return a folder of eight usable files and one of each kind that is not."""
    source = tmp_path / "songs"
    chance = random.Random(1)
    for number in range(8):
        data = drums(*[(step, chance.choice(KEYS)) for step in range(0, 64, 2)])
        write(source / f"{number}.mid", data)
    melody: Notes = [(step, step + 2, 60 + step % 12) for step in range(0, 32, 2)]
    write(source / "melody.mid", song(melody))
    write(source / "on channel 1.mid", song([(step, step + 1, 36) for step in range(0, 32, 4)], channels=[0]))
    write(source / "few.mid", drums((0, 36), (4, 38)))
    write(source / "no keys.mid", drums(*[(step, 100) for step in range(0, 32, 4)]))
    return source


def test_a_folder_is_prepared_and_the_report_says_one_reason_for_what_is_not(tmp_path: Path) -> None:
    report = prepare_midi(folder_of(tmp_path), tmp_path / "data", part="drums")
    assert report.kept == 8
    assert report.rejected == {
        "no drums play (channel 10)": 2,
        "fewer than 3 notes": 1,
        "drum notes left out: no percussion key of General MIDI": 1,
    }
    assert isinstance(load_codec(tmp_path / "data" / "codec"), DrumTokenizer)
    assert read_manifest(tmp_path / "data")["options"]["part"] == "drums"
    dataset = WindowDataset(tmp_path / "data", "train")
    assert dataset[0].shape == (32,)
    assert int(dataset[0].max()) < 512


def test_a_folder_of_drums_has_no_melody(tmp_path: Path) -> None:
    write(tmp_path / "songs" / "a.mid", drums((0, 36), (4, 38), (8, 36)))
    rejected = r"every item was rejected \(1 x no instrument but drums plays\)"
    with pytest.raises(ValueError, match=rf"{rejected}; 1 of 1 files hold drums only: use --kind drums"):
        prepare_midi(tmp_path / "songs", tmp_path / "data")
    with pytest.raises(ValueError, match="part must be one of melody, drums, trio, got 'harp'"):
        prepare_midi(tmp_path / "songs", tmp_path / "data", part="harp")


def test_a_folder_of_melodies_has_no_drums(tmp_path: Path) -> None:
    write(tmp_path / "songs" / "a.mid", song([(0, 4, 60), (4, 8, 62), (8, 12, 64)]))
    with pytest.raises(
        ValueError, match=r"no drums play \(channel 10\)\); 1 of 1 files hold no drums: use --kind melody"
    ):
        prepare_midi(tmp_path / "songs", tmp_path / "data", part="drums")


@pytest.mark.parametrize(("beats", "advised"), [(7, ["7 of 12 files hold drums only: use --kind drums"]), (5, [])])
def test_another_kind_is_advised_where_it_would_keep_more(tmp_path: Path, beats: int, advised: list[str]) -> None:
    for number in range(12):
        tune: Notes = [(4 * n, 4 * n + 4, 60 + n * number % 7) for n in range(8)]
        data = drums(*[(step, 36) for step in range(0, 32, 4)]) if number < beats else song(tune)
        write(tmp_path / "songs" / f"{number}.mid", data)
    assert prepare_midi(tmp_path / "songs", tmp_path / "data").fixes == advised


def test_what_is_advised_is_a_metre_that_drums_can_have(tmp_path: Path) -> None:
    for number in range(5):
        beat = [(step, KEYS[step * number % 9]) for step in range(0, 48, 2)]
        write(tmp_path / "songs" / f"{number}.mid", drums(*beat, meters={0: (3, 4)} if number < 2 else {}))
    report = prepare_midi(tmp_path / "songs", tmp_path / "data", part="drums")
    assert report.fixes == ["2 of 5 files are in 3/4: use --meter folded"]
    assert prepare_midi(tmp_path / "songs", tmp_path / "all", part="drums", meter="folded").kept == 5


def groove_of(folder: Path) -> Path:
    rows = ["drummer,midi_filename,split"]
    chance = random.Random(2)
    for number, split in enumerate(["train"] * 6 + ["validation"] * 3 + ["test"]):
        name = f"drummer{number % 2}/session1/{number}.mid"
        write(folder / name, drums(*[(step, chance.choice(KEYS)) for step in range(0, 48, 2)]))
        rows.append(f"drummer{number % 2},{name},{split}")
    rows.append("drummer1,drummer1/missing.mid,train")
    write(folder / "info.csv", "\n".join(rows).encode())
    return folder


def test_the_groove_recipe_keeps_the_split_of_info_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "data"
    assert groove.main([str(groove_of(tmp_path / "groove")), "--root", str(root), "--jobs", "1"]) == 0
    assert "kept 10 of 11 items" in capsys.readouterr().out
    names = {split: sorted(WindowDataset(root, split).names) for split in ("train", "valid", "test")}
    assert [len(part) for part in names.values()] == [6, 3, 1]
    assert names["test"] == ["test/drummer1-session1-9.mid"]
    rejected = [json.loads(line) for line in (root / "rejected.jsonl").read_text().splitlines()]
    assert [(one["name"], one["rule"]) for one in rejected] == [
        ("drummer1/missing.mid", "named in info.csv, but not there")
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "info.csv cannot be read (No such file or directory)"),
        ("a,b\n1,2\n", "info.csv has no column 'midi_filename'"),
        (f"midi_filename,split\n{'a' * 200_000},train\n", "info.csv is no table (field larger than field limit"),
        ("midi_filename,split\na.mid,some\n", "the split of a.mid must be one of train, validation, test, got 'some'"),
    ],
)
def test_an_info_csv_that_says_no_split_is_one_line(
    content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "info.csv").write_text(content)
    assert groove.main([str(tmp_path), "--root", str(tmp_path / "data")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_commands_take_drums_in_and_give_drums_out(get_run: GetRun, tmp_path: Path) -> None:
    run = get_run("drums")
    assert main(["sample", str(run.path), "-n", "2", "-o", str(tmp_path / "samples")]) == 0
    assert main(["reconstruct", str(run.path), run.world.inputs[0], "-o", str(tmp_path / "same")]) == 0
    assert main(["interpolate", str(run.path), *run.world.inputs, "--steps", "3", "-o", str(tmp_path / "way")]) == 0
    assert len(list(tmp_path.glob("way/interpolation-*.mid"))) == 3
    assert len(list(tmp_path.glob("same/reconstruction-*.mid"))) == 1
    for path in tmp_path.glob("samples/*.mid"):
        assert {part.is_drum for part in read_midi(path).instruments} == {True}


@pytest.mark.parametrize("experiment", ["drums", "trio"])
def test_a_sample_is_as_many_bars_as_are_asked_for(experiment: str, get_run: GetRun, tmp_path: Path) -> None:
    run, bars = get_run(experiment), 2 * 3
    assert main(["sample", str(run.path), "-n", "2", "--bars", str(bars), "-o", str(tmp_path / "long")]) == 0
    for path in (tmp_path / "long").glob("sample-?.mid"):
        (kit,) = (part for part in read_midi(path).instruments if part.is_drum)
        struck = {int(note.start / 0.125 + 0.5) // 16 for note in kit.notes}
        assert struck == set(range(bars))  # a model of four steps strikes in every bar


def test_an_item_without_a_beat_is_a_rest_of_a_window_in_a_chain(tmp_path: Path) -> None:
    beat = CODEC.join([steps((0, KICK), (20, SNARE))])
    again = CODEC.chain([CODEC.join([steps()]), beat, beat])
    assert again is not None
    assert [int(note.start / 0.125 + 0.5) for note in again.instruments[0].notes] == [32, 52, 64, 84]


def test_an_evaluation_prints_the_drums_scores(get_run: GetRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(get_run("drums").path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"accuracy", "note_precision", "note_recall", "note_f1"} <= found["reconstruction"]["free-running"].keys()
