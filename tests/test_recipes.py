"""The recipes of named corpora: what they cut out of a text, and that two do not prepare one root."""

import sys
import time
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from data_prep import bible_bbe, fashion_mnist, mnist, wordnet
from seqvae.data.dataset import read_manifest
from seqvae.data.preparation import hold
from tests.helpers.processes import CONTEXT


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("And there was light. And God saw it all.", ["And there was light.", "And God saw it all."]),
        (r"Let them give praise.\68:24\All the people saw it.", ["Let them give praise.", "All the people saw it."]),
        ("That the wine was good.[] And they went away.", ["That the wine was good.", "And they went away."]),
        ("A year after he came *** he put it on the stone.", ["A year after he came.", "He put it on the stone."]),
        ("He went up the mountain (which is Zoar).", ["He went up the mountain (which is Zoar)."]),
        ("(For death came to her.) And she was glad then.", ["For death came to her.", "And she was glad then."]),
        ("Why are you crying? go back to them now!", ["Why are you crying?", "Go back to them now!"]),
        ("No. So be it. Then they all went home.", ["Then they all went home."]),  # under four words
        ("And on the west side was ...", []),  # torn
    ],
)
def test_running_text_becomes_sentences(text: str, expected: list[str]) -> None:
    assert list(bible_bbe.sentences(text)) == expected


def test_a_short_sentence_stays_whole_and_a_long_one_is_cut_at_its_colons() -> None:
    short = "Let there be light: and there was light."
    assert list(bible_bbe.sentences(short)) == [short]
    long = (
        "And the earth was waste and without form; and it was dark on the face of the deep: and the Spirit was there."
    )
    assert list(bible_bbe.sentences(long)) == [
        "And the earth was waste and without form.",
        "And it was dark on the face of the deep.",
        "And the Spirit was there.",
    ]


def test_a_clause_that_is_still_too_long_is_cut_at_a_joining_word() -> None:
    half = " ".join(["one"] * 20)
    assert list(bible_bbe.sentences(f"{half}, and {half}.")) == [
        f"One {' one' * 19}.".replace("  ", " "),
        f"And {half}.",
    ]


def test_no_word_is_lost_while_clauses_are_cut() -> None:
    words = [f"w{n}" for n in range(200)]
    marks = ["", "", "", ",", ";", ":", ", and"]
    text = " ".join(word + marks[n * n % 7] for n, word in enumerate(words))
    assert " ".join(bible_bbe.clauses(text)).split() == text.split()


def test_the_text_is_read_without_running_its_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = tmp_path / "some_text"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('it was run')")
    lines = [f"And the man of town number {'i' * n} went up to the house." for n in range(1, 60)]
    (package / bible_bbe.MODULE).write_text(
        f'raise RuntimeError("it was run")\nbible = Bible(1, """{" ".join(lines)}""")'
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert list(bible_bbe.sentences(bible_bbe.find_text("some_text"))) == lines
    monkeypatch.setattr(bible_bbe, "find_text", partial(bible_bbe.find_text, "some_text"))
    assert bible_bbe.main(["--root", str(tmp_path / "data"), "--vocab-size", "60", "--max-length", "90"]) == 0
    assert "kept 59 of 59 items" in capsys.readouterr().out
    assert sum(read_manifest(tmp_path / "data")["splits"].values()) == 59
    assert "some_text" not in sys.modules


def test_a_missing_package_is_one_line_that_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bible_bbe, "find_text", partial(bible_bbe.find_text, "no_such_package"))
    assert bible_bbe.main(["--root", str(tmp_path / "data")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert 'pip install "seqvae[examples]"' in error
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("gloss", "expected"),
    [
        ("a separate and self-contained entity  ", ["a separate and self-contained entity"]),
        (
            'occurring at the time of death; "his last words"; "the last rites"  ',
            ["occurring at the time of death", "his last words", "the last rites"],
        ),
        (
            'spread by scattering ("straw" is archaic); "strew toys about"',
            ['spread by scattering ("straw" is archaic)', "strew toys about"],
        ),
        ('deeply religious; "a god-fearing people" H.L.Mencken', ["a god-fearing people"]),  # two words say little
        (
            "of `more' and `many'; \"the phrase `a true fact' is odd\"",
            ["of 'more' and 'many'", "the phrase 'a true fact' is odd"],
        ),
        ("a broken wood stove; \"a wood-burning stove'", ["a broken wood stove"]),
        ("a torn (bracket of it", []),
        ('"an example that stands alone"', ["an example that stands alone"]),
        (" ".join(["long"] * 31), []),
    ],
)
def test_a_gloss_becomes_a_definition_and_its_examples(gloss: str, expected: list[str]) -> None:
    assert list(wordnet.sentences(gloss)) == expected


def synsets(folder: Path) -> list[str]:
    """Write the four files of a small WordNet; return its sentences."""
    folder.mkdir()
    lines = [f"the {word} that is number {'i' * n}" for word in ("thing", "deed", "look", "way") for n in range(1, 12)]
    for place, name in enumerate(wordnet.FILES):
        rows = [f'00001740 03 n 01 entity 0 000 | {line}; "and so {line}"  \n' for line in lines[place * 11 :][:11]]
        (folder / name).write_text("  1 This software | is licensed\n" + "".join(rows))
    return [text for line in lines for text in (line, f"and so {line}")]


def test_wordnet_is_read_synset_by_synset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = synsets(tmp_path / "dict")
    options = ["--root", str(tmp_path / "data"), "--source", str(tmp_path / "dict"), "--vocab-size", "60"]
    assert wordnet.main([*options, "--max-length", "90"]) == 0
    assert f"kept {len(expected)} of {len(expected)} items" in capsys.readouterr().out
    assert (tmp_path / "data" / "source" / "sentences.txt").read_text().splitlines() == expected
    (tmp_path / "dict" / "data.adv").unlink()
    assert wordnet.main(["--root", str(tmp_path / "other"), "--source", str(tmp_path / "dict")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "data.adv cannot be read (No such file or directory); install the Debian package wordnet-base" in error
    assert not (tmp_path / "other").exists()


def hold_until_told(root: Path, gate: Path) -> None:
    with hold(root):
        gate.touch()
        while gate.exists():
            time.sleep(0.01)


@pytest.mark.parametrize("recipe", [fashion_mnist, mnist, bible_bbe, wordnet])
def test_a_recipe_does_not_touch_a_root_that_another_process_prepares(
    recipe: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(bible_bbe, "find_text", lambda: "And the man went up to the house.")
    monkeypatch.setattr(wordnet, "glosses", lambda folder: ["a man that went up to the house"])
    root, gate = tmp_path / "data", tmp_path / "gate"
    other = CONTEXT.Process(target=hold_until_told, args=(root, gate))
    other.start()
    while not gate.exists():
        time.sleep(0.01)
    assert recipe.main(["--root", str(root)]) == 2
    assert capsys.readouterr().err == (
        f"{root} is being prepared by another process; wait for it or choose another --root\n"
    )
    assert [path.name for path in root.iterdir()] == [".lock"]
    gate.unlink()
    other.join(60)
    assert list(root.iterdir()) == []
