"""The bench of text VAEs: every row trains, a killed bench goes on, and its numbers are what they say."""

import argparse
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import text as bench
from seqvae.cli import main as seqvae
from seqvae.data.dataset import WindowDataset
from seqvae.harness.config import load
from tests.helpers import processes
from tests.helpers.runs import crashed, steps
from tests.helpers.worlds import MODEL, World

TINY = ["--set", *(f"model.{size}" for size in MODEL["text"]), "data.batch_size=16"]
SPEED = ("tokens_per_second", "minutes")

GetWorld = Callable[[str], World]
Tables = dict[str, list[dict[str, Any]]]


class Ended:
    """A process that has come to its end."""

    def __init__(self, returncode: int) -> None:
        self.returncode = returncode

    def poll(self) -> int:
        return self.returncode

    def terminate(self) -> None:
        raise AssertionError("it has ended")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Train within this process, and return the names of the runs that were started."""
    names: list[str] = []

    def start(run: bench.Run, threads: int) -> Ended:
        names.append(run.name)
        code = seqvae(["train", *run.overrides, "resume=auto"])
        run.path.with_name(f"{run.name}.log").write_text("as it says\n" if code else "")
        return Ended(code)

    monkeypatch.setattr(bench, "start", start)
    return names


@pytest.fixture
def root(get_world: GetWorld) -> Path:
    return get_world("text").root


def arguments(root: Path, folder: Path, *more: str, count: int = 2) -> list[str]:
    numbers = ["--steps", str(count), "--importance-samples", "3"]
    places = ["--runs", str(folder / "runs"), "--json", str(folder / "tables.json"), "-o", str(folder / "tables.md")]
    return ["--root", str(root), *numbers, *places, *more, *TINY]


def tables(folder: Path) -> Tables:
    """Return what a bench wrote, without what differs from run to run."""
    found: Tables = json.loads((folder / "tables.json").read_text())
    return {
        title: [{key: value for key, value in row.items() if key not in SPEED} for row in rows]
        for title, rows in found.items()
    }


@pytest.mark.slow
def test_every_row_of_the_bench_trains_and_is_measured(root: Path, tmp_path: Path, trained: list[str]) -> None:
    assert bench.main(arguments(root, tmp_path, "--frontier")) == 0
    plan = bench.read_plan(bench.ROWS)
    assert sorted(trained) == sorted(f"{name}-0" for name in plan.rows)
    found: Tables = json.loads((tmp_path / "tables.json").read_text())
    for title, rows in plan.tables.items():
        assert [row["row"] for row in found[title]] == list(dict.fromkeys([plan.reference, *rows]))
        for row in found[title]:
            assert all(np.isfinite(value) for value in row.values() if isinstance(value, float))
            assert (row["minus_reference"] is None) == (row["row"] == plan.reference)
            assert (
                f"| {row['row']} | 0 | {row['nll']:.2f} ± {row['nll_error']:.2f} |"
                in (tmp_path / "tables.md").read_text()
            )


def test_a_bench_that_was_killed_goes_on_and_ends_with_the_same_table(
    root: Path, tmp_path: Path, trained: list[str]
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert bench.main(arguments(root, whole, "--rows", "lm,annealed", count=4)) == 0
    said = f"--rows lm,annealed --steps 4 --importance-samples 3 {' '.join(TINY)}"  # all that the numbers depend on
    assert f"`make bench-text BENCH='{said}'`: " in (whole / "tables.md").read_text()
    shutil.copytree(whole / "runs" / "lm-0", killed / "runs" / "lm-0")
    crashed(whole / "runs" / "annealed-0", 2, killed / "runs" / "annealed-0")
    assert trained == ["lm-0", "annealed-0"]
    trained.clear()
    assert bench.main(arguments(root, killed, "--rows", "lm,annealed", count=4)) == 0
    assert trained == ["annealed-0"]
    assert tables(killed) == tables(whole)


def test_what_has_been_trained_and_measured_is_neither_again(
    root: Path, tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bench.main(arguments(root, tmp_path, "--rows", "lm")) == 0
    first = tables(tmp_path)
    measured: list[str] = []
    evaluate = bench.evaluate
    monkeypatch.setattr(bench, "evaluate", lambda *args: measured.append("once more") or evaluate(*args))  # type: ignore[func-returns-value]
    assert bench.main(arguments(root, tmp_path, "--rows", "lm")) == 0
    assert (trained, measured) == (["lm-0"], [])
    assert tables(tmp_path) == first
    assert bench.main([*arguments(root, tmp_path, "--rows", "lm"), "--importance-samples", "4"]) == 0
    assert (trained, measured) == (["lm-0"], ["once more"])


def test_the_numbers_are_those_of_the_same_sentences_one_by_one(root: Path, tmp_path: Path, trained: list[str]) -> None:
    assert bench.main(arguments(root, tmp_path, "--rows", "lm,annealed", "--seeds", "1")) == 0
    rows = {row["row"]: row for row in tables(tmp_path)["cures"]}
    vae = load(tmp_path / "runs" / "lm-1").vae
    dataset = WindowDataset(root, "test")
    nothing = torch.zeros(1, 0)
    with torch.no_grad():
        nll = [-float(vae.decoder.log_prob(dataset[i].unsqueeze(0), nothing)) for i in range(len(dataset))]
    assert rows["lm"]["nll"] == pytest.approx(np.mean(nll), rel=1e-5)
    assert rows["lm"]["elbo"] == pytest.approx(-np.mean(nll), rel=1e-5)
    kept = [json.loads((tmp_path / "runs" / f"{name}-1" / "bench.json").read_text())["nll"] for name in rows]
    difference = np.subtract(kept[1], kept[0])
    assert rows["annealed"]["minus_reference"] == pytest.approx(difference.mean())
    assert rows["annealed"]["minus_reference_error"] == pytest.approx(difference.std(ddof=1) / len(difference) ** 0.5)


def test_the_sentences_are_drawn_once_for_all_rows(root: Path) -> None:
    dataset = WindowDataset(root, "train")
    drawn = [bench.chosen_sentences(dataset, 20, seed) for seed in (0, 0, 1)]
    assert drawn[0].tolist() == drawn[1].tolist() != drawn[2].tolist()
    assert len(set(drawn[0].tolist())) == 20
    assert sorted(bench.chosen_sentences(dataset, 10**6, 0).tolist()) == list(range(len(dataset)))


def test_a_row_waits_for_the_one_it_begins_with_and_counts_its_minutes(
    root: Path, tmp_path: Path, trained: list[str]
) -> None:
    assert bench.main(arguments(root, tmp_path, "--rows", "pretrained", "--jobs", "2")) == 0
    assert trained == ["autoencoder-0", "pretrained-0"]
    assert (
        f"init_from: {tmp_path / 'runs' / 'autoencoder-0'}\n"
        in (tmp_path / "runs" / "pretrained-0" / "config.yaml").read_text()
    )
    found: Tables = json.loads((tmp_path / "tables.json").read_text())
    plan, options = bench.read_plan(bench.ROWS), argparse.Namespace(root=root, runs=tmp_path / "runs", set=[])
    own, before = (bench.speed(bench.make_run(plan, name, 0, options)) for name in ("pretrained", "autoencoder"))
    assert found["cures"][0]["minutes"] == own["minutes"] > before["minutes"] > 0


def test_a_row_that_was_trained_with_other_keys_is_refused(
    root: Path, tmp_path: Path, trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(arguments(root, tmp_path, "--rows", "lm")) == 0
    assert bench.main([*arguments(root, tmp_path, "--rows", "lm"), "optimizer.lr=0.5"]) == 2
    assert_told(capsys, "lm-0 was trained with optimizer.lr: 0.0.* -> 0.5: remove it")
    assert trained == ["lm-0"]


@pytest.mark.parametrize(
    ("rows", "more", "told"),
    [
        ("{lm: {model: lstm_lm}, odd: {model.none: 1}}", [], "odd-0 cannot be composed: .*model.none"),
        ("{lm: {init_from: nowhere}}", [], "lm begins with nowhere, which is no row"),
        ("{lm: {}}", ["--rows", "lm,other"], "there is no row 'other'; there are lm"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_before_anything_is_trained(
    rows: str,
    more: list[str],
    told: str,
    root: Path,
    tmp_path: Path,
    trained: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert bench.main(arguments(root, tmp_path, "--plan", plan(tmp_path, rows), *more)) == 2
    assert_told(capsys, told)
    assert trained == []


def test_a_row_that_fails_is_told_and_the_others_go_on(
    root: Path, tmp_path: Path, trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "{odd: {model.dropout: 2}, next: {init_from: odd}, lm: {model: lstm_lm}}"
    assert bench.main(arguments(root, tmp_path, "--plan", plan(tmp_path, rows))) == 1
    assert trained == ["lm-0", "odd-0"]
    assert_told(capsys, "odd-0: failed: as it says\nnext-0: failed: odd-0, which it begins with, failed")
    assert [row["row"] for row in tables(tmp_path)["cures"]] == ["lm"]


@pytest.mark.slow
def test_a_bench_that_is_told_to_stop_tells_its_training(root: Path, tmp_path: Path) -> None:
    argv = arguments(root, tmp_path, "--rows", "lm", count=20_000)
    process = processes.start(bench.main, argv, output=tmp_path / "output")
    log = tmp_path / "runs" / "lm-0.log"
    for _ in range(600):
        if log.is_file() and "elbo" in log.read_text():
            break
        time.sleep(0.1)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    assert processes.end(process) == 143
    assert "stopped by SIGTERM" in log.read_text()
    (reached,) = steps(tmp_path / "runs" / "lm-0")
    assert 0 < reached < 20_000


def plan(folder: Path, rows: str) -> str:
    """Write a plan of one table."""
    lines = [line for line in bench.ROWS.read_text().split("before:")[0].splitlines() if not line.startswith("#")]
    (folder / "plan.yaml").write_text("\n".join([*lines, "before: {}", f"tables: {{cures: {rows}}}"]))
    return str(folder / "plan.yaml")


def assert_told(capsys: pytest.CaptureFixture[str], pattern: str) -> None:
    with pytest.raises(ValueError, match=pattern):
        raise ValueError(capsys.readouterr().err)
