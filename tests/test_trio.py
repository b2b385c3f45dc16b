"""The trio codec, its preparation and its commands."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from seqvae.cli import main
from seqvae.data import load_codec
from seqvae.data.dataset import WindowDataset
from seqvae.data.midi import (
    DrumTokenizer,
    MelodyTokenizer,
    TrioTokenizer,
    prepare_midi,
    read_midi,
    read_song,
)
from seqvae.data.midi.band import TOO_MANY, trio_windows
from seqvae.data.midi.extracting import Extracted
from tests.conftest import GetRun
from tests.helpers.midi import Notes, song

CODEC = TrioTokenizer()
PIANO, GUITAR, BASS, STRINGS = 0, 25, 33, 48


def quarters(pitch: int, *bars: int) -> Notes:
    return [(16 * bar + step, 16 * bar + step + 4, pitch) for bar in bars for step in range(0, 16, 4)]


def strokes(key: int, *bars: int) -> Notes:
    return [(16 * bar + step, 16 * bar + step + 1, key) for bar in bars for step in range(0, 16, 4)]


def band(*parts: tuple[int, Notes], drums: Notes = (), **options: Any) -> bytes:
    """Return a song of parts (program, notes), and drums where there are some."""
    notes = [notes for _, notes in parts] + ([drums] if drums else [])
    channels = [*range(len(parts)), 9]
    return song(*notes, channels=channels, program=[*(program for program, _ in parts), 0], **options)


def extract(tmp_path: Path, data: bytes, **options: Any) -> Extracted:
    (tmp_path / "song.mid").write_bytes(data)
    return trio_windows(read_song(tmp_path / "song.mid"), **options)


def pitches(column: Any) -> set[int]:
    return {int(value) + 19 for value in column if value >= 2}


def window(seed: int) -> Tensor:
    """Return a canonical window: something in every part, and no 1 in silence."""
    chance = random.Random(seed)
    parts = [[0] * 32, [0] * 32, [chance.choice([0, chance.randrange(512)]) for _ in range(32)]]
    for line in parts[:2]:
        sounding = False
        for step in range(32):
            line[step] = chance.choice([0, 0, 1 if sounding else 0, chance.randrange(2, 90)]) if step else 40
            sounding = line[step] >= 2 or (sounding and line[step] == 0)
    return torch.tensor(parts).T.contiguous()


def test_a_step_holds_what_each_parts_own_codec_makes_of_it(tmp_path: Path) -> None:
    data = band((PIANO, quarters(60, 0, 1)), (BASS, quarters(40, 0, 1)), drums=strokes(36, 0, 1))
    (found,) = extract(tmp_path, data).windows
    item = read_midi(tmp_path / "song.mid")
    item.instruments[1].program, basses = STRINGS, item.instruments[1].notes  # which a melody codec hears as well
    for part, codec in ((0, MelodyTokenizer()), (2, DrumTokenizer())):
        assert torch.equal(torch.from_numpy(found[:, part].astype(np.int64)), codec.windows(item)[0])
    item.instruments[0].notes = basses
    assert torch.equal(torch.from_numpy(found[:, 1].astype(np.int64)), MelodyTokenizer().windows(item)[0])


def test_windows_are_where_all_three_parts_play(tmp_path: Path) -> None:
    data = band(
        (PIANO, quarters(60, *range(0, 8))), (BASS, quarters(40, *range(2, 8))), drums=strokes(36, *range(0, 6))
    )
    windows = extract(tmp_path, data).windows
    assert len(windows) == 3  # bars 2 to 5
    assert all((one >= 1).any(0).all() for one in windows)
    assert len(extract(tmp_path, data, bars=4).windows) == 1
    assert len(extract(tmp_path, data, bars=5).windows) == 0


@pytest.mark.parametrize(("silent", "count"), [(1, 6), (2, 7), (3, 4)])
def test_a_part_plays_on_in_a_silence_of_up_to_two_bars(tmp_path: Path, silent: int, count: int) -> None:
    after = range(3 + silent, 6 + silent)
    everywhere = range(0, 6 + silent)
    data = band(
        (PIANO, quarters(60, *everywhere)), (BASS, quarters(40, 0, 1, 2, *after)), drums=strokes(36, *everywhere)
    )
    assert len(extract(tmp_path, data).windows) == count


def test_every_melody_stands_with_every_bass_and_other_programs_are_left_out(tmp_path: Path) -> None:
    data = band(
        (PIANO, quarters(60, 0, 1)),
        (GUITAR, quarters(65, 0, 1)),
        (BASS, quarters(40, 0, 1)),
        (39, quarters(45, 0, 1)),
        (STRINGS, quarters(70, 0, 1)),
        drums=strokes(36, 0, 1),
    )
    found = [(pitches(one[:, 0]), pitches(one[:, 1])) for one in extract(tmp_path, data).windows]
    assert found == [({60}, {40}), ({60}, {45}), ({65}, {40}), ({65}, {45})]


def test_a_crowd_of_instruments_makes_no_more_than_the_first_trios(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [(PIANO, quarters(60, 0, 1)), (GUITAR, quarters(65, 0, 1)), (BASS, quarters(40, 0, 1))]
    data = band(*parts, (39, quarters(45, 0, 1)), drums=strokes(36, 0, 1))
    everything = extract(tmp_path, data)
    monkeypatch.setattr("seqvae.data.midi.band.MOST_TRIOS", 3)
    found = extract(tmp_path, data)
    assert [one.tolist() for one in found.windows] == [one.tolist() for one in everything.windows[:3]]
    assert (everything.counted[TOO_MANY], found.counted[TOO_MANY]) == (0, 1)


def test_steps_that_a_trio_cannot_have_are_not_advised(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(3):
        tune = [(n * 4 / 3, (n + 1) * 4 / 3, 60 + n * number % 7) for n in range(24)]
        data = band((PIANO, tune), (BASS, quarters(40, 0, 1)), drums=strokes(36, 0, 1))
        (tmp_path / f"{number}.mid").write_bytes(data)
    with caplog.at_level("WARNING"):
        report = prepare_midi(tmp_path, tmp_path / "root", part="trio")
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.endswith("off the grid of 4 steps a quarter note and are bent to it")
    assert report.fixes == []


def test_parts_of_different_time_signatures_are_not_put_side_by_side(tmp_path: Path) -> None:
    data = band(
        (PIANO, quarters(60, *range(0, 6))),
        (BASS, quarters(40, *range(0, 6))),
        drums=strokes(36, *range(0, 6)),
        meters={0: (4, 4), 32: (3, 4), 56: (4, 4)},
    )
    found = extract(tmp_path, data)
    assert [pitches(one[:, 0]) for one in found.windows] == [{60}, {60}, {60}]
    assert list(found.dropped) == ["time signature 3/4 (strict keeps 4/4, 2/2, 2/4)"]


def test_a_note_held_over_a_windows_start_is_struck_again_there(tmp_path: Path) -> None:
    long = [(0.0, 44.0, 60)]
    data = band((PIANO, long), (BASS, quarters(40, 0, 1, 2)), drums=strokes(36, 0, 1, 2))
    first, second = extract(tmp_path, data).windows
    assert first[:, 0].tolist() == [41, *[0] * 31]
    assert second[:, 0].tolist() == [41, *[0] * 27, 1, 0, 0, 0]


def test_windows_come_back_from_what_is_joined(tmp_path: Path) -> None:
    windows = [window(seed) for seed in range(6)]
    CODEC.write(CODEC.join(windows), tmp_path / "song.mid")
    (read,) = CODEC.read(str(tmp_path / "song.mid"))
    assert all(torch.equal(got, true) for got, true in zip(CODEC.windows(read), windows, strict=True))


@pytest.mark.parametrize("silent", [0, 1, 2])
def test_a_window_in_which_a_part_is_silent_comes_back(silent: int) -> None:
    silenced = window(0)
    silenced[:, silent] = 0
    (back,) = CODEC.windows(CODEC.join([silenced]))
    assert torch.equal(back, silenced)


def test_a_part_that_ends_earlier_than_the_others_ends_its_last_note(tmp_path: Path) -> None:
    data = band((PIANO, [(0, 16, 60)]), (BASS, quarters(40, 0, 1, 2)), drums=strokes(36, 0, 1, 2))
    (tmp_path / "song.mid").write_bytes(data)
    first, second = CODEC.windows(read_midi(tmp_path / "song.mid"))
    assert first[:, 0].nonzero().flatten().tolist() == [0, 16]
    assert first[16, 0] == 1
    assert not second[:, 0].any()
    assert second[:, 1].any()


def test_what_is_written_has_the_programs_tempo_and_velocities_of_what_it_is_like(tmp_path: Path) -> None:
    data = band(
        (STRINGS, quarters(70, 0, 1, 2)),
        (GUITAR, quarters(60, 0, 1)),
        (38, quarters(40, 0, 1)),
        drums=strokes(36, 0),
        tempos={0: 93},
    )
    (tmp_path / "song.mid").write_bytes(data)
    joined = CODEC.join([window(0)], like=read_midi(tmp_path / "song.mid"))
    assert [(part.name, part.program, part.is_drum) for part in joined.instruments] == [
        ("melody", GUITAR, False),
        ("bass", 38, False),
        ("drums", 0, True),
    ]
    assert {note.velocity for part in joined.instruments for note in part.notes} == {80}
    assert joined.get_tempo_changes()[1][0] == pytest.approx(93, abs=1e-3)


def test_an_item_in_which_nothing_plays_a_part_is_refused(tmp_path: Path) -> None:
    (tmp_path / "song.mid").write_bytes(band((STRINGS, quarters(70, 0, 1))))
    with pytest.raises(ValueError, match="no trio to encode: neither melody, bass nor drums play"):
        CODEC.windows(read_midi(tmp_path / "song.mid"))


def test_a_view_transposes_melody_and_bass_together_and_no_drums() -> None:
    codec, rng = CODEC.replace(transpose=5), np.random.default_rng(0)
    whole = torch.tensor([[30, 20, 300], [0, 1, 0], [1, 25, 2]])
    seen = set()
    for _ in range(200):
        moved = codec.view(whole, rng, augment=True)
        difference = moved - whole
        (interval,) = {int(value) for value in difference[whole >= 2].view(-1)[[0, 1, 3]]}
        assert torch.equal(moved[:, 2], whole[:, 2])
        assert torch.equal(difference[:, :2], torch.where(whole[:, :2] >= 2, interval, 0))
        seen.add(interval)
    assert seen == set(range(-5, 6))
    assert torch.equal(codec.view(whole, rng), whole)
    low = torch.tensor([[30, 2, 0]])  # the bass cannot go down, so nothing does
    assert {int((codec.view(low, rng, augment=True) - low)[0, 0]) for _ in range(100)} == set(range(0, 6))


def test_scores_are_those_of_each_part_under_its_name() -> None:
    truth, guess = [window(0), window(1)], [window(2), window(1)]
    scores = CODEC.score(truth, guess)
    for part, (name, codec) in enumerate(
        [("melody", MelodyTokenizer()), ("bass", MelodyTokenizer()), ("drums", DrumTokenizer())]
    ):
        own = codec.score([one[:, part] for one in truth], [one[:, part] for one in guess])
        assert {f"{name}_{metric}": value for metric, value in own.items()}.items() <= scores.items()
    assert set(CODEC.score(truth, truth).values()) == {1.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bars": 0}, "bars must be a positive int, got 0"),
        ({"meter": "any"}, "meter must be one of strict, folded, got 'any'"),
        ({"transpose": -1}, "transpose must be an int from 0 to 87 semitones, got -1"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrioTokenizer(**options)


def test_a_folder_is_prepared_and_the_report_says_one_reason_for_what_is_not(tmp_path: Path) -> None:
    source = tmp_path / "songs"
    source.mkdir()
    chance = random.Random(0)
    piano, bass, drums = quarters(60, 0, 1), quarters(40, 0, 1), strokes(36, 0, 1)
    for number in range(6):
        tune = [(step, step + 4, chance.randrange(50, 80)) for step in range(0, 64, 4)]
        low = quarters(40, *range(4))
        (source / f"{number}.mid").write_bytes(band((PIANO, tune), (BASS, low), drums=strokes(36, *range(4))))
    (source / "no bass.mid").write_bytes(band((PIANO, piano), drums=drums))
    (source / "no melody.mid").write_bytes(band((BASS, bass), (STRINGS, piano), drums=drums))
    (source / "no drums.mid").write_bytes(band((PIANO, piano), (BASS, bass)))
    (source / "apart.mid").write_bytes(band((PIANO, piano), (BASS, quarters(40, 8, 9)), drums=drums))
    report = prepare_midi(source, tmp_path / "data", part="trio")
    assert report.kept == 6
    assert report.rejected == {
        "no bass plays (programs 32 to 39)": 1,
        "no melody plays (programs 0 to 31)": 1,
        "no drums play (channel 10)": 1,
        "melody, bass and drums never play together": 1,
    }
    assert isinstance(load_codec(tmp_path / "data" / "codec"), TrioTokenizer)
    dataset = WindowDataset(tmp_path / "data", "train")
    assert dataset[0].shape == (32, 3)
    assert set(dataset.lengths) == {32}


def test_the_commands_take_bands_in_and_give_bands_out(get_run: GetRun, tmp_path: Path) -> None:
    run = get_run("trio")
    assert main(["sample", str(run.path), "-n", "2", "-o", str(tmp_path / "samples")]) == 0
    assert main(["reconstruct", str(run.path), run.world.inputs[0], "-o", str(tmp_path / "same")]) == 0
    assert main(["interpolate", str(run.path), *run.world.inputs, "--steps", "3", "-o", str(tmp_path / "way")]) == 0
    assert main(["encode", str(run.path), *run.world.inputs, "-o", str(tmp_path / "z.npy")]) == 0
    assert len(list(tmp_path.glob("*/*.mid"))) >= 6
    assert np.load(tmp_path / "z.npy").shape == (2, 4)


def test_a_beam_over_a_trio_is_one_line(get_run: GetRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(get_run("trio").path), "-n", "1", "--beam", "2", "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "a beam search needs tokens of one part, got 3" in error
    assert error.count("\n") == 1


def test_an_evaluation_prints_the_scores_of_each_part(get_run: GetRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(get_run("trio").path), "--importance-samples", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    scores = found["reconstruction"]["always the commonest"]
    assert {"melody_note_f1", "bass_onset_accuracy", "drums_note_f1"} <= scores.keys()
    assert found["metrics"]["nats_per_step"] > 0
