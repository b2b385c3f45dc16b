"""What a person's folder holds: links, loops, pipes and names of any bytes, and nothing lost without a word."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seqvae.data.dataset import SPLITS, WindowDataset, read_manifest
from seqvae.data.image import prepare_image
from seqvae.data.midi import prepare_midi
from seqvae.data.preparation import Report
from seqvae.data.sources import digest_of, find_files, name_of, other_kinds, printable, split_of
from seqvae.data.text import prepare_text
from tests.helpers.midi import song


def found(source: Path, *suffixes: str) -> list[str]:
    return [path.relative_to(source).as_posix() for path in find_files(source, suffixes or None)]


def test_hidden_files_and_other_endings_are_left_out(tmp_path: Path) -> None:
    for name in ("b.TXT", "a.txt", "sub/c.txt", "notes.md", ".hidden.txt", ".git/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in find_files(tmp_path, [".txt"])] == [
        "a.txt",
        "b.TXT",
        "sub/c.txt",
    ]
    assert find_files(tmp_path / "notes.md") == [tmp_path / "notes.md"]
    (tmp_path / "d.txt.GZ").touch()
    assert find_files(tmp_path, [".txt.gz"]) == [tmp_path / "d.txt.GZ"]
    with pytest.raises(ValueError, match=r"holds no files ending in .mid \(5 files in all\)"):
        find_files(tmp_path, [".mid"])
    with pytest.raises(ValueError, match=r"no such file or folder: .*nowhere"):
        find_files(tmp_path / "nowhere")


def test_files_of_other_kinds_are_counted_by_ending_and_the_rare_ones_together(tmp_path: Path) -> None:
    names = [*(f"{n}.HEIC" for n in range(3)), "a.heic", "no ending", "b.txt", ".hidden.mov", ".git/c.mov"]
    for name in (*names, *(f"x.kind{n}" for n in range(12))):
        (tmp_path / "sub" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sub" / name).touch()
    counted = other_kinds(tmp_path, find_files(tmp_path, [".txt"]))
    assert counted["files of other kinds: .heic"] == 4
    assert counted["files of other kinds: no ending"] == 1
    assert counted["files of other kinds: 4 more endings"] == 4
    assert (len(counted), sum(counted.values())) == (11, 4 + 1 + 12)
    assert other_kinds(tmp_path / "sub" / "b.txt", []) == {}
    assert other_kinds(tmp_path, find_files(tmp_path)) == {}


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train.txt", "train"),
        ("val.txt", "valid"),
        ("dev/a.txt", "valid"),
        ("Validation/deep/a.txt", "valid"),
        ("TEST/a.txt", "test"),
        ("a/train/b.txt", None),
        ("training.txt", None),
        ("train.csv", "train"),
        ("valid.txt.gz", "valid"),
        ("test.jsonl", "test"),
        ("ptb.train.txt", "train"),
        ("ptb.valid.txt", "valid"),
        ("wiki.test.tokens", "test"),
        ("train.test.txt", None),
        ("ptb.train.txt/a.txt", None),
    ],
)
def test_a_split_is_known_by_the_first_name(path: str, split: str | None) -> None:
    assert split_of(Path("source") / path, Path("source")) == split


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "a").mkdir(parents=True)
    (source / "a" / "1.txt").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "2.txt").touch()
    (source / "train").symlink_to(tmp_path / "elsewhere")
    (source / "a" / "up").symlink_to(source)
    (source / "a" / "itself").symlink_to(source / "a")
    (source / "z").symlink_to(source / "a")
    assert found(source, ".txt") == ["a/1.txt", "train/2.txt"]


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.txt").touch()
    scan = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match=r"Permission denied: .*closed"):
        find_files(tmp_path)


def test_a_pipe_as_source_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(OSError, match="Not a directory"):
        find_files(tmp_path / "pipe.txt")


def test_a_digest_changes_with_a_name_a_size_or_a_time(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    os.utime(path, ns=(5, 5))
    (tmp_path / "broken.txt").symlink_to("nowhere")
    seen = {digest_of(find_files(tmp_path), tmp_path)}
    assert seen == {digest_of(find_files(tmp_path), tmp_path)}
    for change in (lambda: os.utime(path, ns=(5, 6)), lambda: path.write_text("four"), lambda: path.rename(f"{path}x")):
        change()
        seen.add(digest_of(find_files(tmp_path), tmp_path))
    assert len(seen) == 4


ODD = [
    b"a\xff.x",
    b"\x1b[2J.x",
    b"line\nbreak.x",
    "right\u202eleft.x".encode(),
    b"comma, space.x",
    "\U0001f3b5 é.x".encode(),
]


def name(raw: bytes, suffix: str) -> str:
    return os.fsdecode(raw.replace(b".x", suffix.encode()))


def text_source(folder: Path) -> Callable[[Path], Report]:
    for place, raw in enumerate(ODD):
        (folder / name(raw, ".txt")).write_text("\n".join(f"line {chr(97 + place)} {chr(97 + n)}" for n in range(5)))
    return lambda root: prepare_text(folder, root, model_type="char")


def midi_source(folder: Path) -> Callable[[Path], Report]:
    for place, raw in enumerate(ODD):
        tune = [(2 * n, 2 * n + 2, 60 + (n * (place + 2)) % 11) for n in range(24)]
        (folder / name(raw, ".mid")).write_bytes(song(tune))
    return lambda root: prepare_midi(folder, root)


def image_source(folder: Path) -> Callable[[Path], Report]:
    rng = np.random.default_rng(0)
    for place, raw in enumerate(ODD):
        kind = folder / name(b"class\xfe\x1b.x" if place % 2 else b"plain.x", "")
        kind.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8)).save(kind / name(raw, ".png"), format="PNG")
    return lambda root: prepare_image(folder, root, size=4)


SOURCES = {".txt": text_source, ".mid": midi_source, ".png": image_source}


@pytest.mark.parametrize("suffix", SOURCES)
def test_any_name_is_prepared_and_printable_wherever_it_is_told(tmp_path: Path, suffix: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    run = SOURCES[suffix](source)
    (source / name(b"bad \xff\x1b.x", suffix)).symlink_to("nowhere")
    root = tmp_path / "root"
    report = run(root)
    assert report.rejected.total() == 1
    names = [item for split in SPLITS for item in WindowDataset(root, split).names]
    (line,) = (root / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    told = [*names, *json.loads(line).values(), *read_manifest(root)["options"].get("label_names", []), report.table()]
    assert all(text.replace("\n", "").isprintable() for text in told)
    assert len(names) == report.kept >= len(ODD)
    assert "bad \\udcff\\x1b" in json.loads(line)["name"]


@pytest.mark.parametrize("suffix", SOURCES)
def test_what_is_no_file_is_rejected_by_name_and_the_rest_is_kept(tmp_path: Path, suffix: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    run = SOURCES[suffix](source)
    (source / f"folder{suffix}").mkdir()
    (source / f"broken{suffix}").symlink_to("nowhere")
    (source / f"itself{suffix}").symlink_to(source / f"itself{suffix}")
    os.mkfifo(source / f"pipe{suffix}")  # whoever opens it waits for ever
    root = tmp_path / "root"
    report = run(root)
    assert report.kept >= len(ODD)
    rejected = [json.loads(line) for line in (root / "rejected.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["name"] for row in rejected} == {f"{name}{suffix}" for name in ("broken", "itself", "pipe")}
    assert {row["rule"] for row in rejected} <= {"cannot be read", "unreadable MIDI"}


@pytest.mark.parametrize("suffix", SOURCES)
def test_a_report_counts_the_files_that_are_of_another_kind(tmp_path: Path, suffix: str) -> None:
    source = tmp_path / "source"
    (source / "train").mkdir(parents=True)
    run = SOURCES[suffix](source)
    for other in ("a.HEIC", "train/b.heic", "train/c\x1b.he\nic", ".hidden.heic"):
        (source / other).touch()
    report = run(tmp_path / "root")
    told = {name: count for name, count in report.counted.items() if name.startswith("files of other kinds")}
    assert told == {"files of other kinds: .heic": 2, "files of other kinds: .he\\nic": 1}
    assert "  counted          2  files of other kinds: .heic\n" in report.table()
    saved = json.loads((tmp_path / "root" / "report.json").read_text(encoding="utf-8"))
    assert saved["counted"] == report.counted


def test_printable_is_one_line_and_leaves_letters_alone() -> None:
    assert printable("Käse 音 🎵, (x)") == "Käse 音 🎵, (x)"
    assert printable("a\nb\x1b[2J\x00\x9b\u202e\udcff") == "a\\nb\\x1b[2J\\x00\\x9b\\u202e\\udcff"
    assert name_of(Path("a/b\n.txt"), Path("a")) == "b\\n.txt"
