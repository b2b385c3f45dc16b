"""The recipe of the folk tunes: bar lines out of ABC, and no download taken that is not the one expected."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from data_prep import folk_tunes
from seqvae.data.dataset import WindowDataset
from seqvae.data.midi import MelodyTokenizer, read_midi
from seqvae.data.midi.melody import transcribe

symusic = pytest.importorskip("symusic")


def abc(body: str, *, meter: str = "4/4", key: str = "C", number: int = 1, more: str = "") -> str:
    return f"X:{number}\nT:a tune\n{more}M:{meter}\nL:1/16\nK:{key}\n{body}\n"


def starts(tmp_path: Path, text: str) -> list[list[int]]:
    """Return where the notes of every stretch begin, in steps from its first bar line."""
    with folk_tunes._quiet():
        (tmp_path / "tune.mid").write_bytes(folk_tunes.tune_midi(text, symusic))
    return [line.notes[:, 0].tolist() for line in transcribe(read_midi(tmp_path / "tune.mid")).lines]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (abc("C8D8|E16|"), [[0, 8, 16]]),
        (abc("C4|D16|E12:|"), [[12, 16, 32, 44, 48, 64]]),  # the pick-up of the repeat fills the last bar
        (abc("C4|D16|E16|F12||G4|A16|"), [[12, 16, 32, 48, 60, 64]]),
        (abc("|:C16|D12:|"), [[0, 16], [0, 16]]),  # the repeat begins a bar of its own
        (abc("C4|D16|E16:|"), [[12, 16, 32, 48], [0, 16]]),  # the second pick-up is one too many
        (abc("|:C16|1 D12:|2 E16||F16|"), [[0, 16], [0, 16, 32]]),
        (abc("C2|D8|E6:|", meter="2/4"), [[14, 16, 24, 30, 32, 40]]),
        (abc("C16|D16|", meter="C|"), [[0, 16]]),
    ],
)
def test_whole_bars_begin_on_bar_lines(tmp_path: Path, text: str, expected: list[list[int]]) -> None:
    assert starts(tmp_path, text) == expected


def test_ornaments_chords_and_swing_leave_the_notes_alone(tmp_path: Path) -> None:
    plain = abc("C4D4E4F4|G8A8|")
    ornate = abc('"Am"~C4{de}.D4 TE4!trill!F4|vG8"C7"uA8|', more="R:hornpipe\n")
    assert starts(tmp_path, ornate) == starts(tmp_path, plain) == [[0, 4, 8, 12, 16, 24]]
    midi = read_midi(tmp_path / "tune.mid")
    assert len(midi.instruments) == 1
    assert [note.pitch for note in midi.instruments[0].notes] == [60, 62, 64, 65, 67, 69]


@pytest.mark.parametrize(("more", "bpm"), [("Q:1/4=93\n", 93), ("Q:1/2=100\n", 200), ("Q:1/4=2000\n", 120)])
def test_a_tune_keeps_a_tempo_that_can_be_played(tmp_path: Path, more: str, bpm: float) -> None:
    starts(tmp_path, abc("C16|D16|", more=more))
    assert read_midi(tmp_path / "tune.mid").get_tempo_changes()[1][0] == pytest.approx(bpm, rel=1e-4)


@pytest.mark.parametrize(("body", "message"), [("C4|", "no whole bar"), ("z16|", "no notes")])
def test_a_tune_without_a_bar_or_a_note_is_refused(body: str, message: str) -> None:
    with folk_tunes._quiet(), pytest.raises(ValueError, match=message):
        folk_tunes.tune_midi(abc(body), symusic)


@pytest.fixture
def books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package music21 with three small books, which must not be run."""
    package = tmp_path / "site" / "music21"
    for number, book in enumerate(folk_tunes.BOOKS):
        folder = package / "corpus" / book
        folder.mkdir(parents=True)
        scale = "CDEFGABcdefg"[number:] * 3
        tunes = [abc(" ".join(f"{scale[i * n % 9]}4" for i in range(16)) + "|", number=n) for n in range(1, 5)]
        tunes = [tune.replace("4 ", "4", 3).replace("4 ", "4|", 1) for tune in tunes]
        text = "% a book\n\n" + "\n".join([*tunes, abc("C12|D12|", meter="3/4", number=5), abc("C4|", number=5)])
        (folder / "one.abc").write_text(text, encoding="utf-8")
    (package / "__init__.py").write_text("raise SystemError('run')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return package


def test_the_recipe_makes_a_dataset_of_an_installed_package_without_running_it(
    books: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert folk_tunes.main(["--root", str(tmp_path / "root"), "--jobs", "1"]) == 0
    printed = capfd.readouterr()
    assert "kept 12 of 18 items" in printed.out
    assert printed.err == ""  # the converter's own remarks went nowhere
    report = json.loads((tmp_path / "root" / "report.json").read_text())
    assert report["rejected"] == {"ABC with no whole bar": 3, "time signature 3/4 (strict keeps 4/4, 2/2, 2/4)": 3}
    names = [name for split in ("train", "valid", "test") for name in WindowDataset(tmp_path / "root", split).names]
    assert sorted(names)[0] == "airdsAirs-one-1.mid"
    song = read_midi(tmp_path / "root" / "midi" / "airdsAirs-one-1.mid")
    assert len(MelodyTokenizer().windows(song)) >= 1
    assert folk_tunes.main(["--root", str(tmp_path / "root")]) == 2
    assert "already holds a prepared dataset" in capfd.readouterr().err


def test_a_wheel_that_is_not_the_one_expected_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "music21" else find(name))
    wheel = tmp_path / "download" / folk_tunes.WHEEL
    wheel.parent.mkdir()
    wheel.write_bytes(b"PK something else")
    assert folk_tunes.main(["--root", str(tmp_path)]) == 2
    assert "is not the file expected" in capsys.readouterr().err


def test_a_missing_reader_is_told_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nothing(name: str) -> Any:
        return None

    monkeypatch.setattr(importlib.util, "find_spec", nothing)
    assert folk_tunes.main(["--root", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count('pip install "seqvae[examples]"') == 1
