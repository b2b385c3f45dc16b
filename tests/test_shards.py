"""Shards: whoever converts them, and whoever is killed meanwhile, the dataset is the same to the byte."""

import importlib
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dask
import pytest

from seqvae.cli import main
from seqvae.data import shards
from seqvae.data.preparation import Outcome, Record, Rejected, prepare
from seqvae.data.shards import Shards
from tests.helpers.letters import Letters, contents, convert, make, words

distributed: Any = importlib.import_module("distributed")  # whose types are no strict ones


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_SIZE", 8)


ITEMS = [*words(30), "12", *words(5)]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The dataset of ITEMS as it is when nothing happens."""
    root = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_SIZE", 8)
        make(root, ITEMS)
    return contents(root)


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "jobs"), [("loky", 1), ("loky", 2), ("dask", 2)])
def test_the_engine_does_not_change_a_byte(tmp_path: Path, straight: dict[str, bytes], engine: str, jobs: int) -> None:
    make(tmp_path, ITEMS, engine=engine, jobs=jobs)
    assert contents(tmp_path) == straight
    assert {"dataset.json", "report.json", "rejected.jsonl", "train/values.bin"} < straight.keys()


def test_outcomes_come_back_in_order_as_they_were(tmp_path: Path) -> None:
    work = Shards(tmp_path / "shards", ITEMS, convert)
    work.run()
    for item, outcome in zip(ITEMS, work, strict=True):
        expected = convert(item)
        if isinstance(expected, Record) and isinstance(outcome, Record):
            assert [window.tolist() for window in outcome.windows] == [window.tolist() for window in expected.windows]
        else:
            assert isinstance(outcome, Rejected)
            assert outcome == expected


@pytest.mark.parametrize("damage", ["empty", "cut", "a flipped bit"])
def test_only_a_missing_or_damaged_shard_is_converted_again(tmp_path: Path, damage: str) -> None:
    converted: list[str] = []

    def noted(word: str) -> Outcome:
        converted.append(word)
        return convert(word)

    work = Shards(tmp_path / "shards", ITEMS, noted)
    work.run()
    assert converted == ITEMS
    before = contents(tmp_path)
    work._path(0).unlink()
    content = bytearray(before["shards/000002.npz"])
    content[len(content) // 2] ^= 1
    work._path(2).write_bytes({"empty": b"", "cut": bytes(content[:-9]), "a flipped bit": bytes(content)}[damage])
    (tmp_path / "shards" / "000001.npz.left.tmp").touch()
    converted.clear()
    work.run()
    assert converted == [*ITEMS[:8], *ITEMS[16:24]]
    assert contents(tmp_path) == before


def deadly(deaths: Path, last: int, word: str) -> Outcome:
    """Convert a word; the one that stands at 19 kills its worker, `last` times. Every conversion leaves a line."""
    with (deaths / "log").open("a") as file:
        file.write(f"{word}\n")
    if word == ITEMS[19] and len(list(deaths.glob("death*"))) < last:
        (deaths / f"death {os.getpid()}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return convert(word)


def prepare_deadly(root: Path, deaths: Path, last: int, engine: str) -> None:
    deaths.mkdir(exist_ok=True)
    prepare(root, ITEMS, partial(deadly, deaths, last), Letters(), kind="letters", options={}, engine=engine)


@pytest.fixture
def deaths_allowed() -> Iterator[None]:
    with dask.config.set({"distributed.scheduler.allowed-failures": 1}):
        yield


@pytest.mark.slow
def test_with_dask_a_killed_worker_costs_only_its_shard(tmp_path: Path, straight: dict[str, bytes]) -> None:
    prepare_deadly(tmp_path / "root", tmp_path / "deaths", 1, "dask")
    assert contents(tmp_path / "root") == straight
    assert len(list((tmp_path / "deaths").glob("death*"))) == 1
    counts = Counter((tmp_path / "deaths" / "log").read_text().split())
    assert counts - Counter(ITEMS) == Counter(ITEMS[16:20])  # converted a second time


@pytest.mark.slow
def test_a_shard_that_kills_every_worker_is_one_error_and_the_others_are_kept(
    tmp_path: Path, straight: dict[str, bytes], deaths_allowed: None
) -> None:
    with pytest.raises(OSError, match=r"root cannot be prepared: a worker was killed while it converted"):
        prepare_deadly(tmp_path / "root", tmp_path / "deaths", 2, "dask")
    prepare_deadly(tmp_path / "root", tmp_path / "deaths", 2, "sequential")
    assert contents(tmp_path / "root") == straight


@pytest.mark.slow
def test_a_killed_worker_of_this_machine_is_one_error_and_another_run_goes_on(
    tmp_path: Path, straight: dict[str, bytes]
) -> None:
    with pytest.raises(OSError, match="a worker was killed while it converted; is the memory too small"):
        prepare_deadly(tmp_path / "root", tmp_path / "deaths", 1, "loky")
    prepare_deadly(tmp_path / "root", tmp_path / "deaths", 1, "sequential")
    assert contents(tmp_path / "root") == straight


@pytest.mark.slow
def test_the_scheduler_that_dask_is_told_is_used(tmp_path: Path, straight: dict[str, bytes]) -> None:
    with distributed.LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=":0") as cluster:
        told = dask.config.collect_env({"DASK_SCHEDULER_ADDRESS": cluster.scheduler_address})
        with dask.config.set(told):
            make(tmp_path / "root", ITEMS, engine="dask")
            with distributed.Client(cluster, set_as_default=False) as client:
                done = client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.transition_log))
            assert done > 0
            assert contents(tmp_path / "root") == straight
            with pytest.raises(ValueError, match=r"the cluster at tcp://.* leave the number of jobs \(2\) out"):
                make(tmp_path / "other", ITEMS, engine="dask", jobs=2)


def test_a_scheduler_that_does_not_answer_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    (tmp_path / "lines.txt").write_text("\n".join(ITEMS))
    told = {"scheduler-address": "tcp://127.0.0.1:9", "distributed.comm.timeouts.connect": "200ms"}
    with dask.config.set(told):
        assert main(_command(tmp_path, "--engine", "dask")) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "127.0.0.1:9" in error


def test_without_dask_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lines.txt").write_text("\n".join(ITEMS))
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main(_command(tmp_path, "--engine", "dask")) == 2
    assert capsys.readouterr().err == (
        'seqvae prepare: the engine dask is not installed; get it with: pip install "seqvae[dask]"\n'
    )


def _command(folder: Path, *more: str) -> list[str]:
    root, lines = str(folder / "root"), str(folder / "lines.txt")
    return ["prepare", "text", lines, "--root", root, "--model-type", "char", *more]


@pytest.mark.parametrize(
    ("engine", "jobs", "message"),
    [
        ("spark", -1, "engine must be one of sequential, loky, dask, got 'spark'"),
        ("loky", 0, "jobs must be a positive int, or -1 for one a core, got 0"),
        ("loky", -2, "jobs must be a positive int, or -1 for one a core, got -2"),
        ("sequential", 2, "the sequential engine is one process; 2 jobs need the engine loky or dask"),
    ],
)
def test_an_engine_or_a_number_of_jobs_that_makes_no_sense_is_named(
    tmp_path: Path, engine: str, jobs: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(tmp_path, ITEMS, engine=engine, jobs=jobs)
