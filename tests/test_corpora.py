"""Corpora of every form and size: read as a stream, kept item by item, and whatever is wrong is one line or one row."""

import gzip
import hashlib
import io
import json
import random
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from seqvae.cli import main
from seqvae.data import load_codec
from seqvae.data.dataset import SPLITS, WindowDataset
from seqvae.data.preparation import Report
from seqvae.data.text import SentencePieceTokenizer, prepare_text, preparing
from seqvae.data.text.reading import MOST_ROW, Form
from seqvae.data.text.spool import Spool
from tests.helpers.letters import contents
from tests.helpers.worlds import World, train_tiny
from tests.test_text import ODD_TEXTS, read_back, sentences, write_lines

LINES = [*sentences(40), 'she said "no", then left', "na\u00efve \u97f3\u697d"]


def quoted(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"'


def as_table(lines: list[str]) -> str:
    return "id,text\r\n" + "".join(f"{number},{quoted(line)}\r\n" for number, line in enumerate(lines))


def as_tabs(lines: list[str]) -> str:
    return "text\tid\n" + "".join(f"{line}\t{number}\n" for number, line in enumerate(lines))


def as_objects(lines: list[str]) -> str:
    return "".join(json.dumps({"id": number, "text": line}) + "\n" for number, line in enumerate(lines))


def as_lines(lines: list[str]) -> str:
    return "".join(f"{line}\r\n" for line in lines)


FORMS: dict[str, tuple[Callable[[list[str]], str], dict[str, str]]] = {
    ".txt": (as_lines, {}),
    ".csv": (as_table, {"column": "text"}),
    ".tsv": (as_tabs, {"column": "text"}),
    ".jsonl": (as_objects, {"field": "text"}),
    ".ndjson": (as_objects, {"field": "text"}),
}


def prepared(source: Path, root: Path, **options: Any) -> Report:
    return prepare_text(source, root, **{"model_type": "char", "max_length": 100, **options})


def rows(root: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (root / "rejected.jsonl").read_text(encoding="utf-8").splitlines()]


def feed(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))


# Every form holds the same items


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The splits of LINES when they are lines of a file."""
    root = tmp_path_factory.mktemp("plain")
    prepared(write_lines(root / "lines.txt", LINES), root / "data")
    return read_back(root / "data")


@pytest.mark.parametrize("way", ["file", "packed", "folder", "standard input"])
@pytest.mark.parametrize("ending", FORMS)
def test_the_items_of_every_form_are_those_of_plain_lines(
    ending: str, way: str, plain: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, options = FORMS[ending]
    if way == "standard input" and ending == ".tsv":
        pytest.skip("a table that comes without a name is CSV")
    content = write(LINES).encode()
    path = tmp_path / "in" / f"x{ending}{'.gz' if way == 'packed' else ''}"
    path.parent.mkdir()
    path.write_bytes(gzip.compress(content) if way == "packed" else content)
    (path.parent / "other.dat").write_bytes(b"no text")
    source = {"folder": path.parent, "standard input": Path("-")}.get(way, path)
    feed(monkeypatch, content)
    report = prepared(source, tmp_path / "data", **options)
    assert report.rejected == {}
    assert {split: sorted(part) for split, part in read_back(tmp_path / "data").items()} == {
        split: sorted(part) for split, part in plain.items()
    }


@pytest.mark.parametrize("ending", FORMS)
@pytest.mark.parametrize("name", ["{}", "ptb.{}"])
def test_a_published_split_is_kept_in_every_form(name: str, ending: str, tmp_path: Path) -> None:
    write, options = FORMS[ending]
    parts = {"train": LINES[:30], "valid": [LINES[0], *LINES[30:34]], "test": LINES[34:]}
    for split, lines in parts.items():
        path = tmp_path / "in" / f"{name.format(split)}{ending}.gz"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(write(lines).encode()))
    prepared(tmp_path / "in", tmp_path / "data", **options)
    back = read_back(tmp_path / "data")
    unknown = {letter for line in LINES[30:] for letter in line} - set("".join(LINES[:30]))
    expected = {
        split: ["".join("\u2047" if c in unknown else c for c in line) for line in lines]
        for split, lines in parts.items()
    }
    assert unknown  # nothing of the vocabulary is of valid or test
    assert [len(part) for part in back.values()] == [len(part) for part in expected.values()]
    assert back["train"] == expected["train"]
    assert all(
        ("\u2047" in got) == ("\u2047" in line) for got, line in zip(back["test"], expected["test"], strict=True)
    )


@pytest.mark.parametrize("ending", FORMS)
def test_paragraphs_are_cut_into_sentences_in_every_form(ending: str, tmp_path: Path) -> None:
    write, options = FORMS[ending]
    sentences_ = [f"Mr. Smith saw {n * 'very '}big dogs." for n in range(12)]
    paragraphs = [" ".join(sentences_[place : place + 3]) for place in range(0, 12, 3)]
    content = "\n\n".join(paragraphs).replace(" saw ", "\nsaw ") if ending == ".txt" else write(paragraphs)
    path = tmp_path / f"x{ending}"
    path.write_text(content, encoding="utf-8")
    prepared(path, tmp_path / "data", split_sentences=True, **options)
    assert sorted(line for part in read_back(tmp_path / "data").values() for line in part) == sorted(sentences_)
    names = [name for split in SPLITS for name in WindowDataset(tmp_path / "data", split).names]
    assert len(set(names)) == 12
    assert f"x{ending}:{2 if options.get('column') else 1}.3" in names


def test_a_paragraph_without_end_is_cut_as_it_comes(tmp_path: Path) -> None:
    words = [f"word{number}" for number in range(40_000)]
    text = "\n".join(f"{word}." if n % 7 == 6 else word for n, word in enumerate(words, 0)).replace("word", "Word")
    path = tmp_path / "x.txt"
    path.write_text(text)
    found = list(Form(split_sentences=True).read(path, "x", hashlib.sha256(), 10_000))
    items = [item[1] for item in found if isinstance(item, tuple) and len(item) == 2]
    assert " ".join(items) == text.replace("\n", " ")
    assert {len(item.split()) for item in items[:-1]} == {7}


def test_bytes_and_identity_keep_a_corpus_as_it_is(tmp_path: Path) -> None:
    lines = [*LINES, *(text for text in ODD_TEXTS if text.strip() and not set("\0\r\n") & set(text))]
    source = write_lines(tmp_path / "lines.txt", lines)
    options: dict[str, Any] = {"normalization": "identity", "byte_fallback": True, "vocab_size": 400}
    prepared(source, tmp_path / "data", model_type="unigram", max_length=200, **options)
    assert Counter(line for part in read_back(tmp_path / "data").values() for line in part) == Counter(lines)


# What is wrong is one line, or one row of the report


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("x.csv", as_table(LINES), {}, r"x\.csv ends in \.csv: say which column holds the text \(--column\)"),
        ("x.jsonl.gz", "", {}, r"x\.jsonl\.gz ends in \.jsonl: say which field holds the text \(--field\)"),
        ("x.csv", as_table(LINES), {"column": "body"}, r"\(1 x no column 'body': it has id, text\)"),
        ("x.csv", "", {"column": "body"}, r"\(1 x no column 'body': it has none\)"),
        ("x.csv", as_table(LINES), {"column": "id", "field": "id"}, "in a column .'id'. or in a field .'id'., not in"),
        ("x.jsonl", as_objects(LINES), {"field": "body"}, r"\(42 x no field 'body': it has id, text\)"),
        ("x.jsonl", as_objects(LINES), {"field": "id"}, r"\(42 x the field 'id' is no string: 0\)"),
        ("x.jsonl", as_lines(LINES), {"field": "text"}, r"\(42 x no JSON: Expecting value"),
        ("x.jsonl", "[1]\n2\n", {"field": "text"}, r"\(2 x no field 'text': it is no object but \[1\]\)"),
        ("x.txt", "", {}, r"was rejected \(no lines\)"),
        ("x.txt", "\n \r\n\t\n", {}, r"\(3 x empty line\)"),
        ("x.txt", "one line\n", {}, "a dataset needs at least 3 different items to be split, got 1"),
        ("x.txt", as_lines(LINES), {"fit_characters": 10}, "fit_characters must be an int of at least 10000, got 10"),
        ("x.txt.gz", as_lines(LINES), {}, r"\(1 x cannot be read: Not a gzipped file"),
        ("empty/x.csv", as_table(LINES), {}, r"empty holds no files ending in \.txt, \.txt\.gz \(1 files in all\)"),
    ],
)
def test_a_corpus_that_cannot_be_used_is_one_line(
    name: str, content: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content, encoding="utf-8", newline="")
    with pytest.raises(ValueError, match=message) as raised:
        prepared(path.parent if "/" in name else path, tmp_path / "data", **options)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "data").exists()


DEEP = '{"text":' + "[" * 100_000
SURROGATE = '{"text": "half \\ud800 a pair"}'
COLUMN, FIELD = {"column": "text"}, {"field": "text"}


@pytest.mark.parametrize(
    ("ending", "bad", "rejected"),
    [
        (".txt", b"caf\xe9", {"not UTF-8": 1}),  # Latin-1
        (".txt", "caf\u00e9".encode("utf-16"), {"not UTF-8": 1}),
        (".txt", "cafe".encode("utf-16-le"), {"holds a NUL character": 1}),
        (".txt", b"nul \0 nul", {"holds a NUL character": 1}),
        (".txt", b"\n\n \t", {"empty line": 3}),
        (".txt", b"x" * 10_000_000, {"longer than 10,000 characters": 1}),
        (".txt", "\u97f3".encode() * 10_001, {"longer than 10,000 characters": 1}),
        (".csv", b'9,"' + b"x" * 10_001 + b'"', {"longer than 10,000 characters": 1}),
        (".csv", b"9", {"a row without that column": 1}),
        (".csv", b"", {"empty line": 1}),
        (".csv", b"9,", {"empty line": 1}),
        (".csv", b'9,"never closed', {"a damaged row": 1}),
        (".csv", b'9,"closed" too early', {"a damaged row": 1}),
        (".csv", b'9,"two lines,\r\none \xff of them"', {"a damaged row": 1, "not UTF-8": 1}),
        (".csv", b"9,caf\xe9", {"not UTF-8": 1}),
        (".csv", b"9,nul \0", {"holds a NUL character": 1}),
        (".csv", b"x" * 20_000_000, {"longer than 4,194,304 characters": 1}),
        (".tsv", b"x" * 200_000, {"a damaged row": 1}),
        (".jsonl", b"{", {"no JSON": 1}),
        (".jsonl", b"9" * 5000, {"no JSON": 1}),
        (".jsonl", DEEP.encode(), {"no JSON": 1}),
        (".jsonl", b"[]", {"no field 'text'": 1}),
        (".jsonl", b'{"text": null}', {"the field 'text' is no string": 1}),
        (".jsonl", b'{"text": ["a"]}', {"the field 'text' is no string": 1}),
        (".jsonl", SURROGATE.encode(), {"no Unicode text": 1}),
        (".jsonl", b'{"text": "nul \\u0000"}', {"holds a NUL character": 1}),
        (".jsonl", b'{"text": " "}', {"empty line": 1}),
        (".jsonl", b"", {"empty line": 1}),
    ],
)
def test_what_is_no_item_is_rejected_by_its_rule_and_the_rest_is_kept(
    ending: str, bad: bytes, rejected: dict[str, int], tmp_path: Path
) -> None:
    write, options = FORMS[ending]
    good = write(LINES).encode().splitlines(keepends=True)
    path = tmp_path / f"x{ending}"
    path.write_bytes(b"".join([*good[:20], bad, b"\n", *good[20:]]))
    report = prepared(path, tmp_path / "data", **options)
    assert report.rejected == rejected
    assert sorted(line for part in read_back(tmp_path / "data").values() for line in part) == sorted(LINES)
    first = rows(tmp_path / "data")[0]
    assert first["name"] == f"x{ending}:21"
    assert len(json.dumps(first)) < 500


def test_a_quote_that_is_never_closed_costs_one_row_however_long_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    lines = [f"row number {number}" for number in range(20_000)]  # more than the csv module takes for one cell
    path.write_text("text\n" + "".join(f"{line}\n" for line in [*lines[:9], '"never closed', *lines[9:]]))
    report = prepared(path, tmp_path / "data", **COLUMN)
    assert (report.kept, report.rejected) == (20_000, {"a damaged row": 1})
    (row,) = rows(tmp_path / "data")
    assert row["name"] == "x.csv:11"
    assert "is a quote never closed?" in row["detail"]


def test_a_cell_of_several_lines_is_one_item_of_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(as_table([*LINES, "one\r\ntwo\nthree, four"]), newline="")
    prepared(path, tmp_path / "data", **COLUMN)
    assert "one two three, four" in {line for part in read_back(tmp_path / "data").values() for line in part}


@pytest.mark.parametrize("cut", [5, -30])
def test_what_stands_in_a_packed_file_before_its_damage_is_kept(cut: int, tmp_path: Path) -> None:
    write_lines(tmp_path / "in" / "a.txt", LINES)
    more = [f"{line} {number}" for number, line in enumerate(sentences(200, seed=1) * 20)]
    (tmp_path / "in" / "b.txt.gz").write_bytes(gzip.compress(as_lines(more).encode())[:cut])
    report = prepared(tmp_path / "in", tmp_path / "data")
    assert report.rejected["cannot be read"] == 1
    assert (report.kept > 3000) == (cut < 0)
    row = next(row for row in rows(tmp_path / "data") if row["rule"] == "cannot be read")
    assert row["name"] == "b.txt.gz"
    assert "ended before" in row["detail"]


@pytest.mark.parametrize("options", [{}, {"split_sentences": True}, COLUMN, FIELD])
def test_a_bomb_is_read_as_a_stream(options: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    with gzip.open(path, "wb") as file:
        for _ in range(100):
            file.write(b"x" * 2**20)
    assert path.stat().st_size < 2**18
    tracemalloc.start()
    (found,) = Form(**options).read(path, "x.gz", hashlib.sha256(), 10_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "longer than" in str(found) or "no column" in str(found)
    assert peak < (5 * MOST_ROW if options else 2**20)


# Standard input, and preparing again


def test_standard_input_is_refused_for_an_existing_root_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["prepare", "text", "-", "--root", str(tmp_path / "data"), "--model-type", "char"]
    feed(monkeypatch, as_lines(LINES).encode())
    assert main([*command, "--engine", "sequential"]) == 0
    assert WindowDataset(tmp_path / "data", "train").names[0].startswith("-:")
    before = contents(tmp_path / "data")
    monkeypatch.setattr(sys, "stdin", None)
    capsys.readouterr()
    assert main([*command, "--engine", "sequential"]) == 2
    error = capsys.readouterr().err
    assert error == f"seqvae prepare: {tmp_path / 'data'} already holds a prepared dataset; remove it or choose " + (
        "another --root\n"
    )
    assert contents(tmp_path / "data") == before
    feed(monkeypatch, b"\n")
    assert main(["prepare", "text", "-", "--root", str(tmp_path / "none")]) == 2
    assert "every line of standard input was rejected (1 x empty line)" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["-", "x.txt"])
def test_a_preparation_that_is_stopped_goes_on_with_what_is_missing(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Spool, "PART", 8)
    monkeypatch.chdir(tmp_path)
    content = as_lines([*LINES, "", LINES[0]]).encode()
    Path("x.txt").write_bytes(content)
    converted, convert, stop = [], preparing._convert, True

    def interruptible(tokenizer: SentencePieceTokenizer, min_length: int, line: Any) -> Any:
        converted.append(line.name)
        if stop and len(converted) == 20:
            raise KeyboardInterrupt
        return convert(tokenizer, min_length, line)

    monkeypatch.setattr(preparing, "_convert", interruptible)
    feed(monkeypatch, content)
    with pytest.raises(KeyboardInterrupt):
        prepared(Path(source), Path("data"))
    assert not Path("data", "dataset.json").exists()
    stop = False
    converted.clear()
    feed(monkeypatch, content)
    prepared(Path(source), Path("data"))
    assert converted == [f"{source}:{number}" for number in range(17, 45)]
    feed(monkeypatch, content)
    prepared(Path(source), Path("straight"))
    assert contents(Path("data")) == contents(Path("straight"))


@pytest.mark.slow
def test_the_engine_does_not_change_a_byte_of_a_corpus_in_many_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Spool, "PART", 8)
    source = write_lines(tmp_path / "x.txt", [*LINES, "", LINES[0], "x" * 200])
    for engine, jobs in (("sequential", 1), ("loky", 2), ("dask", 2)):
        prepared(source, tmp_path / engine, engine=engine, jobs=jobs)
        assert contents(tmp_path / engine) == contents(tmp_path / "sequential")


# Larger than memory


@pytest.mark.slow
def test_memory_grows_by_bytes_a_line_and_not_by_its_text(tmp_path: Path) -> None:
    peaks = []
    words = ["".join(random.Random(n).choices("abcdefgh", k=60)) for n in range(200)]
    for count in (6_000, 18_000):
        path = tmp_path / f"{count}.txt"
        draw = random.Random(0)
        path.write_text("\n".join(" ".join(draw.choices(words, k=10)) for _ in range(count)))
        tracemalloc.start()
        prepared(path, tmp_path / f"data{count}", model_type="word")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 12_000 < 100  # bytes, where a line has 609


def test_a_large_train_is_sampled_for_the_vocabulary_and_the_report_says_so(tmp_path: Path) -> None:
    lines = [f"{line} {number}" for number, line in enumerate(sentences(300) * 2)]
    source = write_lines(tmp_path / "lines.txt", lines)
    models = []
    for name in ("a", "b"):
        report = prepared(source, tmp_path / name, model_type="unigram", vocab_size=100, fit_characters=10_000)
        models.append((tmp_path / name / "codec" / "tokenizer.model").read_bytes())
        total, fitted = report.counted["characters in train"], report.counted[preparing.FITTED]
        assert total == sum(map(len, read_back(tmp_path / name)["train"]))
        assert fitted == pytest.approx(10_000, rel=0.2)  # drawn line by line
        assert f"{fitted:>9,}  {preparing.FITTED}" in report.table()
    assert models[0] == models[1]
    report = prepared(source, tmp_path / "c", model_type="unigram", vocab_size=100, fit_characters=total)
    assert report.counted == {}
    assert (tmp_path / "c" / "codec" / "tokenizer.model").read_bytes() != models[0]


def test_words_are_counted_in_all_of_train_whatever_the_sample(tmp_path: Path) -> None:
    lines = [f"{line} w{number % 100}" for number, line in enumerate(sentences(300) * 2)]
    prepared(write_lines(tmp_path / "train.txt", lines).parent, tmp_path / "data", model_type="word", vocab_size=2000)
    codec = load_codec(tmp_path / "data" / "codec")
    trained = read_back(tmp_path / "data")["train"]
    assert codec.spec["vocab_size"] == len({word for line in trained for word in line.split()}) + 2


# A corpus as the field has them: words, <unk> among them, in three files


@pytest.mark.slow
def test_a_corpus_of_words_goes_from_its_files_to_a_perplexity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    parts = {}
    for split, count, seed in (("train", 60, 0), ("valid", 9, 1), ("test", 9, 2)):
        lines = [[*line[:-1].split()[:-1], "<unk>", "N", line[-1]] for line in sentences(count, seed)]
        parts[split] = [" ".join(words) for words in lines]
        write_lines(Path("ptb", f"ptb.{split}.txt"), [f" {line} " for line in parts[split]])
    parts["test"].append("unheard-of words")
    write_lines(Path("ptb", "ptb.test.txt"), parts["test"])
    command = ["prepare", "text", "ptb", "--root", "data", "--model-type", "word", "--vocab-size", "10000"]
    assert main([*command, "--engine", "sequential"]) == 0
    words = {word for line in parts["train"] for word in line.split()} - {"<unk>"}
    codec = load_codec(Path("data", "codec"))
    assert codec.spec["vocab_size"] == len(words) + 2  # <unk> and the end
    back = read_back(Path("data"))
    assert back["train"] == parts["train"]
    assert back["test"] == [
        " ".join(word if word in words else "<unk>" for word in line.split()) for line in parts["test"]
    ]
    run = train_tiny(World("text", Path("data").absolute(), ("", ""), ""), tmp_path / "run")
    capsys.readouterr()
    assert main(["evaluate", str(run.path), "--json", "--importance-samples", "4"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    expected = sum(len(line.split()) + 1 for line in parts["test"])  # words and one end a sentence
    assert metrics["nll"] * metrics["examples"] / metrics["nats_per_word"] == pytest.approx(expected)
