"""Preparation and prepared datasets: nothing lost, nothing half-written, the same bytes whatever the engine."""

import json
import pickle
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqvae.data import preparation
from seqvae.data.codec import Codec, Preview, strip
from seqvae.data.dataset import SPLITS, WindowDataset, fingerprint, read_manifest, sha256
from seqvae.data.preparation import (
    Outcome,
    Record,
    Rejected,
    Report,
    assign_splits,
    complete_splits,
    find_files,
    prepare,
    split_of,
)


class Letters(Codec[str]):
    """Lower-case words, a token a letter: the smallest codec there is."""

    @property
    def options(self) -> dict[str, Any]:
        return {}

    @property
    def spec(self) -> dict[str, Any]:
        return {"vocab_size": 26, "max_length": 40, "end_id": None, "unk_id": None}

    def windows(self, item: str) -> list[Tensor]:
        return [torch.tensor([ord(letter) - ord("a") for letter in item])]

    def join(self, tensors: Sequence[Tensor], like: str | None = None) -> str:
        return "".join(chr(ord("a") + index) for index in strip(tensors[0]).tolist())

    def sizes(self, tensor: Tensor) -> dict[str, int]:
        return {"letter": len(tensor)}

    def score(self, truth: Sequence[Tensor], predicted: Sequence[Tensor]) -> dict[str, float]:
        return {}

    def read(self, source: str) -> list[str]:
        return [source]

    def write(self, item: str, path: Path) -> None:
        path.write_text(item)

    def preview(self, items: Sequence[str], columns: int | None = None) -> Preview:
        return Preview(text="\n".join(items))


def convert(word: str) -> Outcome:
    """Convert "song/abc" to the item abc of the group song; "train:abc" keeps its split; digits are rejected."""
    split, _, rest = word.rpartition(":")
    group, _, letters = rest.rpartition("/")
    if not letters.isalpha():
        return Rejected(word, "not a word", f"{letters!r}")
    window = Letters().windows(letters)[0].numpy()
    return Record(word, group or letters, [window], split or None, dropped={"an empty bar": 1})


def make(root: Path, words: Sequence[str], **options: Any) -> Report:
    return prepare(root, words, convert, Letters(), kind="letters", options={}, **options)


def words(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices("abcdefghij", k=draw.randint(5, 12))) for _ in range(count)]


def read_back(root: Path) -> dict[str, list[str]]:
    datasets = {split: WindowDataset(root, split) for split in SPLITS}
    return {split: [Letters().join([dataset[i]]) for i in range(len(dataset))] for split, dataset in datasets.items()}


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "SHARD_SIZE", 8)


def test_every_item_comes_back_from_the_prepared_dataset(tmp_path: Path, small_shards: None) -> None:
    items = words(60)
    report = make(tmp_path / "data", items)
    split = read_back(tmp_path / "data")
    assert Counter(word for part in split.values() for word in part) == Counter(items)
    assert (
        report.items == {name: len(part) for name, part in split.items()} == read_manifest(tmp_path / "data")["splits"]
    )
    names = {name: WindowDataset(tmp_path / "data", name).names for name in SPLITS}
    assert names == split


def test_the_engine_does_not_change_a_byte(tmp_path: Path, small_shards: None) -> None:
    items = [*words(30), "12", *words(5)]
    make(tmp_path / "one", items)
    make(tmp_path / "two", items, engine="loky", jobs=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_after_a_kill_only_the_missing_shards_are_converted(tmp_path: Path, small_shards: None) -> None:
    items, converted = words(30), []
    killed = True

    def interruptible(word: str) -> Outcome:
        if killed and word == items[19]:
            raise KeyboardInterrupt
        converted.append(word)
        return convert(word)

    def run(**options: Any) -> None:
        prepare(tmp_path / "data", items, interruptible, Letters(), kind="letters", options={}, **options)

    with pytest.raises(KeyboardInterrupt):
        run()
    assert converted == items[:19]
    assert not {path.name for path in (tmp_path / "data").iterdir()} & {"dataset.json", *SPLITS}
    with pytest.raises(ValueError, match="not a prepared dataset"):
        read_manifest(tmp_path / "data")
    killed = False
    converted.clear()
    run()
    assert converted == items[16:]  # two shards of 8 were whole
    make(tmp_path / "straight", items)
    assert contents(tmp_path / "data") == contents(tmp_path / "straight")


def test_shards_of_other_content_are_not_taken_over(tmp_path: Path, small_shards: None) -> None:
    items, killed, converted = words(30), True, []

    def interruptible(word: str) -> Outcome:
        converted.append(word)
        if killed and word == items[19]:
            raise KeyboardInterrupt
        return convert(word)

    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path, items, interruptible, Letters(), kind="letters", options={}, key="a")
    killed = False
    converted.clear()
    prepare(tmp_path, items, interruptible, Letters(), kind="letters", options={}, key="b")
    assert converted == items


def test_a_conversion_that_raises_leaves_nothing_that_looks_prepared(tmp_path: Path) -> None:
    def broken(word: str) -> Outcome:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        prepare(tmp_path, words(4), broken, Letters(), kind="letters", options={})
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".tmp"]


def test_rejected_items_are_counted_and_named(tmp_path: Path) -> None:
    earlier = [Rejected("README", "no text")]
    report = make(tmp_path, [*words(10), "12", "3"], earlier=earlier)
    assert report.rejected == {"not a word": 2, "no text": 1}
    assert report.kept == 10
    assert report.dropped["an empty bar"] == 10
    lines = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert [(line["name"], line["rule"]) for line in lines] == [
        ("README", "no text"),
        ("12", "not a word"),
        ("3", "not a word"),
    ]
    saved = json.loads((tmp_path / "report.json").read_text())
    assert (saved["kept"], saved["rejected"]) == (10, {"not a word": 2, "no text": 1})
    assert "kept 10 of 13 items" in report.table()
    assert "2  not a word" in report.table()


def test_an_error_names_the_rule_that_took_everything(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"every item was rejected \(3 x not a word\)"):
        make(tmp_path, ["1", "2", "3"])
    with pytest.raises(ValueError, match="no items found"):
        make(tmp_path / "none", [])


def test_a_prepared_dataset_is_never_overwritten(tmp_path: Path) -> None:
    make(tmp_path, words(10))
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="already holds a prepared dataset"):
        make(tmp_path, words(10, seed=1))
    assert contents(tmp_path) == before


def test_an_unknown_engine_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="engine must be one of sequential, loky, dask, got 'spark'"):
        make(tmp_path, words(4), engine="spark")


def test_repeats_are_dropped_and_counted_or_kept_and_flagged(tmp_path: Path) -> None:
    items = ["train:a", "train:a", "train:b", "valid:a", "valid:c", "test:d", "test:d", "test:b"]
    report = make(tmp_path / "once", items)
    assert read_back(tmp_path / "once") == {"train": ["a", "b"], "valid": ["a", "c"], "test": ["d", "b"]}
    assert report.dropped["repeats a window of its split"] == 2
    assert report.seen_in_train == {"train": 0, "valid": 1, "test": 1}
    flags = WindowDataset(tmp_path / "once", "valid").column("seen_in_train")
    assert flags.tolist() == [1, 0]
    make(tmp_path / "all", items, drop_repeats=False)
    kept = {"train": ["a", "a", "b"], "valid": ["a", "c"], "test": ["d", "d", "b"]}
    assert read_back(tmp_path / "all") == kept  # what the source gave, item by item


def test_items_of_one_group_stand_in_one_split(tmp_path: Path) -> None:
    items = [f"{group}/{word}" for group in words(12, seed=3) for word in words(4, seed=len(group))]
    make(tmp_path, items, drop_repeats=False)
    places: dict[str, set[str]] = {}
    for split in SPLITS:
        for name in WindowDataset(tmp_path, split).names:
            places.setdefault(name.split("/")[0], set()).add(split)
    assert all(len(splits) == 1 for splits in places.values())
    assert set().union(*places.values()) == set(SPLITS)


@settings(deadline=None)
@given(st.sets(st.text(max_size=5), min_size=3, max_size=60), st.integers(0, 5), st.randoms())
def test_the_split_depends_on_groups_and_seed_alone(groups: set[str], seed: int, draw: random.Random) -> None:
    shuffled = [*groups, *groups]
    draw.shuffle(shuffled)
    splits = assign_splits(shuffled, seed)
    assert splits == assign_splits(sorted(groups), seed)
    counts = Counter(splits.values())
    held_out = max(1, round(0.05 * len(groups)))
    assert counts == {"test": held_out, "valid": held_out, "train": len(groups) - 2 * held_out}


def test_another_seed_draws_another_split() -> None:
    assert assign_splits(words(50), 0) != assign_splits(words(50), 1)


def test_two_groups_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="at least 3 different items to be split, got 2"):
        assign_splits(["a", "b", "a"])


@pytest.mark.parametrize(
    ("given", "lacking"),
    [((), {"valid", "test"}), (("test",), {"valid"}), (("valid",), {"test"}), (("valid", "test"), set())],
)
def test_a_given_split_is_kept_and_what_lacks_is_cut_out_of_train(given: tuple[str, ...], lacking: set[str]) -> None:
    groups: dict[str, str | None] = {f"train{i}": "train" for i in range(20)} | {f"free{i}": None for i in range(20)}
    groups |= {f"{split}{i}": split for split in given for i in range(5)}
    splits = complete_splits(groups, seed=0)
    assert splits.keys() == groups.keys()
    assert all(splits[group] == split for group, split in groups.items() if split in ("valid", "test"))
    drawn = {split for group, split in splits.items() if groups[group] in (None, "train")}
    assert drawn == {"train"} | lacking


def test_a_dataset_of_a_split_source_keeps_it_and_completes_it(tmp_path: Path) -> None:
    held_out = words(6, seed=9)
    make(tmp_path, [f"train:{word}" for word in words(40)] + [f"test:{word}" for word in held_out])
    split = read_back(tmp_path)
    assert split["test"] == held_out
    assert set(split["valid"]) < set(words(40))
    assert not set(split["valid"]) & set(split["train"])


def test_workers_get_the_dataset_without_its_values(tmp_path: Path) -> None:
    make(tmp_path, words(600))
    dataset = WindowDataset(tmp_path, "train")
    first = dataset[0]
    copy = pickle.loads(pickle.dumps(dataset))
    assert "_values" not in copy.__dict__
    assert torch.equal(copy[0], first)
    assert all(torch.equal(copy[i], dataset[i]) for i in range(len(dataset)))


def test_an_index_or_a_name_out_of_the_dataset_is_told_with_its_bounds(tmp_path: Path) -> None:
    make(tmp_path, words(10))
    dataset = WindowDataset(tmp_path, "test")
    for index in (-1, len(dataset)):
        with pytest.raises(IndexError, match=f"test has windows 0 to {len(dataset) - 1}, got {index}"):
            dataset[index]
    with pytest.raises(ValueError, match="split must be one of train, valid, test, got 'dev'"):
        WindowDataset(tmp_path, "dev")
    with pytest.raises(ValueError, match="has no column 'label'"):
        dataset.column("label")


def test_the_manifest_holds_the_digest_of_every_file_that_trains(tmp_path: Path) -> None:
    make(tmp_path, words(20))
    manifest = read_manifest(tmp_path)
    assert {name: sha256(tmp_path / name) for name in manifest["files"]} == manifest["files"]
    assert {"train/values.bin", "test/offsets.npy", "codec/codec.json"} < manifest["files"].keys()
    changed = manifest["files"] | {"train/values.bin": "0"}
    assert manifest["fingerprint"] == fingerprint(manifest["files"]) != fingerprint(changed)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "damaged"),
        ("{", "damaged"),
        ("[]", "damaged"),
        ("{}", "damaged"),
        ('{"format": "one"}', "damaged"),
        ('{"format": 99}', "has format 99, this seqvae reads up to 1"),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(ValueError, match=f"dataset.json.*{reason}"):
        read_manifest(tmp_path)


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
    with pytest.raises(ValueError, match=r"holds no files ending in .mid \(4 files in all\)"):
        find_files(tmp_path, [".mid"])
    with pytest.raises(ValueError, match=r"no such file or folder: .*nowhere"):
        find_files(tmp_path / "nowhere")


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
    ],
)
def test_a_split_is_known_by_the_first_name(path: str, split: str | None) -> None:
    assert split_of(Path("source") / path, Path("source")) == split


def test_windows_of_a_wide_vocabulary_are_stored_whole(tmp_path: Path) -> None:
    class Wide(Letters):
        @property
        def spec(self) -> dict[str, Any]:
            return super().spec | {"vocab_size": 70_000}

    windows = [np.array([n, 69_999, 65_536 + n]) for n in range(5)]

    def record(number: int) -> Outcome:
        return Record(str(number), str(number), [windows[number]])

    prepare(tmp_path, range(5), record, Wide(), kind="wide", options={})
    found = [
        dataset[i].tolist() for dataset in (WindowDataset(tmp_path, s) for s in SPLITS) for i in range(len(dataset))
    ]
    assert sorted(found) == sorted(window.tolist() for window in windows)
