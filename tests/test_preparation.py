"""Preparation and prepared datasets: nothing lost, nothing half-written, the same bytes whatever the engine."""

import errno
import hashlib
import itertools
import json
import logging
import os
import pickle
import random
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqvae.cli import main
from seqvae.data import shards
from seqvae.data.dataset import SPLITS, WindowDataset, fingerprint, read_manifest, sha256
from seqvae.data.preparation import (
    UNSPLIT,
    Outcome,
    Record,
    Rejected,
    complete_splits,
    first_places,
    hold,
    key_of,
    prepare,
)
from tests.helpers.letters import Letters, contents, convert, make, read_back, words
from tests.helpers.processes import CONTEXT, exit_code, killed_at


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_SIZE", 8)


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


# Killed, refused, out of room: whatever happens, a root is a whole dataset or none, and another run completes it


def make_small(root: Path, items: Sequence[str]) -> None:
    shards.SHARD_SIZE = 8  # in a process of its own
    os.fsync = lambda fd: None  # what is written outlives a process without it
    make(root, items)


ITEMS = [*words(20), "12"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The dataset of ITEMS as it is when nothing happens."""
    root = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_SIZE", 8)
        make(root, ITEMS)
    return contents(root)


@pytest.mark.slow
def test_killed_before_any_file_operation_a_rerun_completes_the_same_dataset(
    tmp_path: Path, small_shards: None, straight: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL before the first, the second, ... of all operations on files, until the preparation comes to its end."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # for speed
    finished_before = 0
    for operation in range(200):
        root = tmp_path / str(operation)
        if not killed_at(operation, root, make_small, root, ITEMS):
            assert contents(root) == straight
            break
        if (root / "dataset.json").exists():
            finished_before += 1
            with pytest.raises(ValueError, match="already holds a prepared dataset"):
                make(root, ITEMS)
        else:
            with pytest.raises(ValueError, match="not a prepared dataset"):
                WindowDataset(root, "train")
            make(root, ITEMS)
        assert {name: content for name, content in contents(root).items() if name != ".lock"} == straight, operation
    assert 60 < operation < 199
    assert finished_before > 3  # the sweeping at the end was interrupted too


@pytest.mark.slow
def test_killed_again_and_again_a_preparation_ends(
    tmp_path: Path, small_shards: None, straight: dict[str, bytes]
) -> None:
    kills = 0
    while not (tmp_path / "dataset.json").exists():
        operation = random.Random(kills).randint(0, 20 + 6 * kills)  # lives grow longer
        kills += killed_at(operation, tmp_path, make_small, tmp_path, ITEMS)
    assert {name: content for name, content in contents(tmp_path).items() if name[0] != "."} == straight
    assert kills > 5


def test_a_process_killed_while_it_converts_loses_only_its_shard(
    tmp_path: Path, small_shards: None, straight: dict[str, bytes]
) -> None:
    converted = []

    def noted(word: str) -> Outcome:
        converted.append(word)
        return convert(word)

    assert exit_code(make_deadly, tmp_path) == -signal.SIGKILL
    prepare(tmp_path, ITEMS, noted, Letters(), kind="letters", options={})
    assert converted == ITEMS[8:]  # the first shard of 8 was whole, the second was at its fifth word
    assert contents(tmp_path) == straight


def make_deadly(root: Path) -> None:
    shards.SHARD_SIZE = 8
    prepare(root, ITEMS, kill_at_the_thirteenth, Letters(), kind="letters", options={})


def kill_at_the_thirteenth(word: str) -> Outcome:
    if word == ITEMS[12]:
        os.kill(os.getpid(), signal.SIGKILL)
    return convert(word)


def convert_when_told(gate: Path, word: str) -> Outcome:
    gate.with_suffix(".waiting").touch()
    while not gate.exists():
        time.sleep(0.01)
    return convert(word)


def make_when_told(root: Path, gate: Path) -> None:
    shards.SHARD_SIZE = 8
    prepare(root, ITEMS, partial(convert_when_told, gate), Letters(), kind="letters", options={})


def test_a_second_preparation_of_a_root_is_refused_while_the_first_goes_on(
    tmp_path: Path, straight: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    root, gate = tmp_path / "root", tmp_path / "gate"
    first = CONTEXT.Process(target=make_when_told, args=(root, gate))
    first.start()
    while not gate.with_suffix(".waiting").exists():
        time.sleep(0.01)
    (tmp_path / "lines.txt").write_text("\n".join(ITEMS))
    command = ["prepare", "text", str(tmp_path / "lines.txt"), "--root", str(root), "--model-type", "char"]
    assert main([*command, "--engine", "sequential"]) == 2
    error = capsys.readouterr().err
    assert (
        error == f"seqvae prepare: {root} is being prepared by another process; wait for it or choose another --root\n"
    )
    gate.touch()
    first.join(60)
    assert contents(root) == straight


def test_a_recipe_may_hold_its_root_around_the_preparation(tmp_path: Path) -> None:
    with hold(tmp_path):
        make(tmp_path, ITEMS)
        assert not (tmp_path / ".lock").exists() or (tmp_path / "dataset.json").exists()
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize("name", ["train", "valid", "codec", "report.json"])
def test_what_is_not_ours_is_never_touched(tmp_path: Path, name: str) -> None:
    """As when pictures in folders train and test are to be prepared into the folder where they stand."""
    mine = tmp_path / name / "mine.png" if "." not in name else tmp_path / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_bytes(b"the only copy")
    (tmp_path / ".partial").mkdir()  # of a preparation that was killed before it had moved anything
    with pytest.raises(ValueError, match=f"holds '{name}', which a dataset there would overwrite"):
        make(tmp_path, ITEMS)
    assert mine.read_bytes() == b"the only copy"


def test_leftovers_of_other_options_are_told_kept_and_at_last_swept(
    tmp_path: Path, small_shards: None, straight: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    def broken(word: str) -> Outcome:
        if word == ITEMS[12]:
            raise KeyboardInterrupt
        return convert(word)

    for options in ({"bars": 1}, {"bars": 2}):
        with pytest.raises(KeyboardInterrupt), caplog.at_level(logging.INFO):
            prepare(tmp_path, ITEMS, broken, Letters(), kind="letters", options=options)
    assert len(list(tmp_path.glob(".shards-*/000000.npz"))) == 2  # neither cost the other its work
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path} holds unfinished work of other options or sources, which is of no use here"
    ]
    make(tmp_path, ITEMS)
    assert contents(tmp_path) == straight
    assert not list(tmp_path.glob(".*"))


def failing(function: Callable[..., Any], after: int, error: BaseException) -> Callable[..., Any]:
    """Return the function that does its work `after` times and then raises."""
    left = itertools.count(after, -1)

    def wrapped(*arguments: Any, **options: Any) -> Any:
        if next(left) <= 0:
            raise error
        return function(*arguments, **options)

    return wrapped


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize(
    ("owner", "name", "after"),
    [
        (np, "savez", 0),
        (np, "savez", 2),
        (np, "save", 0),
        (np, "save", 5),
        (Path, "mkdir", 0),
        (Path, "mkdir", 2),
        (Path, "write_text", 0),
        (Path, "write_text", 2),
        (os, "fsync", 1),
        (os, "fsync", 6),
        (Path, "rename", 0),
        (Path, "rename", 3),
        (Path, "rename", 6),
    ],
)
def test_a_disk_that_is_full_or_read_only_is_one_line_and_no_dataset(
    tmp_path: Path, small_shards: None, straight: dict[str, bytes], owner: Any, name: str, after: int, number: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, failing(getattr(owner, name), after, OSError(number, os.strerror(number))))
        with pytest.raises(OSError, match=f"root cannot be prepared: {os.strerror(number)} ") as raised:
            make(tmp_path / "root", ITEMS)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.rglob("*.tmp"))
    with pytest.raises(ValueError, match="not a prepared dataset"):
        WindowDataset(tmp_path / "root", "train")
    make(tmp_path / "root", ITEMS)
    assert contents(tmp_path / "root") == straight


def make_within(size: int, root: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    with pytest.raises(OSError, match=f"root cannot be prepared: {os.strerror(errno.EFBIG)} "):
        make(root, words(600))


def test_the_system_itself_cutting_a_file_short_leaves_no_dataset(tmp_path: Path) -> None:
    """A limit on the size of files fails in the middle of a write, as a full disk does, and needs no rights."""
    make(tmp_path / "straight", words(600))
    assert exit_code(make_within, 10_000, tmp_path / "root") == 0
    assert not (tmp_path / "root" / "dataset.json").exists()
    assert not list(tmp_path.rglob("*.npz"))
    make(tmp_path / "root", words(600))
    assert contents(tmp_path / "root") == contents(tmp_path / "straight")


def test_a_root_that_cannot_be_made_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "lines.txt").write_text("\n".join(ITEMS))
    root = tmp_path / "lines.txt" / "root"
    assert main(["prepare", "text", str(tmp_path / "lines.txt"), "--root", str(root), "--model-type", "char"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{root} cannot be prepared: Not a directory" in error


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_root_without_permission_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="root cannot be prepared: Permission denied"):
        make(tmp_path / "root", ITEMS)


def test_an_interrupted_command_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lines.txt").write_text("\n".join(ITEMS))
    monkeypatch.setattr(shards, "_convert_shard", failing(print, 0, KeyboardInterrupt()))
    command = ["prepare", "text", str(tmp_path / "lines.txt"), "--root", str(tmp_path / "root"), "--model-type", "char"]
    assert main([*command, "--engine", "sequential"]) == 130
    assert capsys.readouterr().err == "seqvae prepare: interrupted\n"


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


def drawn(groups: Sequence[str], given: Sequence[str | None] | None = None, seed: int = 0) -> list[str]:
    """Return the split of each group, by name."""
    keys = np.array([key_of(group, seed) for group in groups], np.uint64)
    sides = [UNSPLIT if split is None else SPLITS.index(split) for split in given or [None] * len(groups)]
    return [SPLITS[side] for side in complete_splits(keys, np.array(sides, np.int8))]


@settings(deadline=None)
@given(st.sets(st.text(max_size=5), min_size=3, max_size=60), st.integers(0, 5), st.randoms())
def test_the_split_depends_on_groups_and_seed_alone(groups: set[str], seed: int, draw: random.Random) -> None:
    shuffled = [*groups, *groups]
    draw.shuffle(shuffled)
    splits = dict(zip(sorted(groups), drawn(sorted(groups), seed=seed), strict=True))
    assert drawn(shuffled, seed=seed) == [splits[group] for group in shuffled]
    order = sorted(groups, key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).digest())
    held_out = max(1, round(0.05 * len(groups)))
    expected = ["test"] * held_out + ["valid"] * held_out + ["train"] * (len(groups) - 2 * held_out)
    assert [splits[group] for group in order] == expected


def test_another_seed_draws_another_split() -> None:
    assert drawn(words(50)) != drawn(words(50), seed=1)


def test_two_groups_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="at least 3 different items to be split, got 2"):
        drawn(["a", "b", "a"])


@pytest.mark.parametrize(
    ("given", "lacking"),
    [((), {"valid", "test"}), (("test",), {"valid"}), (("valid",), {"test"}), (("valid", "test"), set())],
)
def test_a_given_split_is_kept_and_what_lacks_is_cut_out_of_train(given: tuple[str, ...], lacking: set[str]) -> None:
    groups: dict[str, str | None] = {f"train{i}": "train" for i in range(20)} | {f"free{i}": None for i in range(20)}
    groups |= {f"{split}{i}": split for split in given for i in range(5)}
    splits = dict(zip(groups, drawn(list(groups), list(groups.values())), strict=True))
    assert all(splits[group] == split for group, split in groups.items() if split in ("valid", "test"))
    assert {split for group, split in splits.items() if groups[group] in (None, "train")} == {"train"} | lacking


@given(st.lists(st.integers(0, 40)))
def test_first_places_are_those_of_a_set_that_grows(keys: list[int]) -> None:
    expected = [key not in keys[:place] for place, key in enumerate(keys)]
    assert first_places(np.array(keys, np.uint64)).tolist() == expected


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


@pytest.mark.parametrize("change", [-1, 1])
def test_values_that_are_cut_short_or_too_many_are_refused(tmp_path: Path, change: int) -> None:
    make(tmp_path, words(10))
    path = tmp_path / "train" / "values.bin"
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + b"x")
    size = len(content)
    with pytest.raises(
        ValueError, match=rf"values\.bin holds {size + change} bytes, not {size}; prepare the data again"
    ):
        WindowDataset(tmp_path, "train")


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
