"""Sweeps: every job has its own run directory and is the job that would have run alone."""

import gc
import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from seqvae.cli import main
from seqvae.harness.sweep import Outcome, Outcomes, job_dir
from seqvae.harness.trainer import Trainer
from tests.helpers.worlds import World

GetWorld = Callable[[str], World]
Capture = pytest.CaptureFixture[str]

SWEEP = "runs/smoke-text"


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tiny(get_world: GetWorld) -> list[str]:
    """The overrides that every command here shares."""
    return [*get_world("text").overrides, "debug=smoke"]


def train(capsys: Capture, *arguments: str) -> tuple[int, str, str]:
    """Return exit code, output and errors of a training, in a process that has already done other things."""
    capsys.readouterr()
    torch.rand(7)
    code = main(["train", *arguments])
    return code, *capsys.readouterr()


def manifest(run_dir: str) -> dict[str, str]:
    """Return the sha256 of each file of a run's last checkpoint."""
    (path,) = Path(run_dir, "checkpoints").glob("step-000000004")
    found: dict[str, str] = json.loads((path / "MANIFEST.json").read_text(encoding="utf-8"))
    return found


def open_files() -> int:
    gc.collect()  # what earlier tests forgot
    return len(list(Path("/dev/fd").iterdir()))


def jobs(folder: str = SWEEP) -> set[str]:
    return {path.name for path in Path(folder).iterdir() if not path.name.startswith(".")}


def test_each_job_of_a_sweep_is_bit_for_bit_the_job_run_alone(tiny: list[str], capsys: Capture) -> None:
    code, out, _ = train(capsys, "-m", *tiny, "model.latent_dim=3,5", "seed=7,8")
    assert code == 0
    names = [f"model.latent_dim={size},seed={seed}" for size in (3, 5) for seed in (7, 8)]
    assert jobs() == set(names)
    assert [line.split()[0] for line in out.splitlines()] == ["run", *(f"{SWEEP}/{name}" for name in names)]
    assert out.split()[1:4] == ["seed", "model.latent_dim", "step"]
    assert train(capsys, *tiny, "model.latent_dim=5", "seed=8", "run_dir=alone")[0] == 0
    swept = [manifest(f"{SWEEP}/{name}") for name in names]
    assert swept[3] == manifest("alone")  # weights, optimizer, random numbers, metrics
    assert len({found["model.safetensors"] for found in swept}) == 4  # else equality would prove nothing


def test_a_sweep_leaves_the_process_as_it_was(
    tiny: list[str], capsys: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    def state() -> tuple[object, ...]:
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        return logging.getLogger().handlers[:], handlers, sys.argv[:], Path.cwd()

    train(capsys, "-m", *tiny, "seed=1,2")  # the first one opens what stays open
    before, files = state(), open_files()
    assert train(capsys, "-m", *tiny, "seed=3,4")[0] == 0
    assert state() == before
    assert open_files() <= files
    logs = [Path(SWEEP, f"seed={seed}", "train.log").read_text(encoding="utf-8") for seed in (3, 4)]
    assert [log.count("parameters; ") for log in logs] == [1, 1]
    for seed in (3, 4):
        with FileLock(Path(SWEEP, f"seed={seed}", ".lock"), timeout=0):
            pass


def test_a_job_that_fails_is_one_line_and_the_others_are_trained(tiny: list[str], capsys: Capture) -> None:
    code, out, err = train(capsys, "-m", *tiny, "model.latent_dim=0,3,none")
    assert code == 2
    lines = [line for line in err.splitlines() if line.startswith("seqvae train: ")]
    assert lines == [
        f"seqvae train: {SWEEP}/model.latent_dim=0: latent_dim must be a positive int, got 0",
        f"seqvae train: {SWEEP}/model.latent_dim=none: latent_dim must be a positive int, got 'none'",
    ]
    assert "Traceback" not in err
    assert [line.split()[0] for line in out.splitlines()] == ["run", f"{SWEEP}/model.latent_dim=3"]
    assert jobs() == {"model.latent_dim=3"}


def test_a_bug_in_one_job_keeps_its_traceback_and_spares_the_others(
    tiny: list[str], capsys: Capture, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from seqvae.harness import run

    original = run.assemble  # type: ignore[attr-defined]

    def broken(*arguments: object) -> object:
        if arguments[0]["latent_dim"] == 3:  # type: ignore[index]
            raise RuntimeError("not enough memory:\nyou tried to allocate 1 TiB")
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(run, "assemble", broken)
    code, out, err = train(capsys, "-m", *tiny, "model.latent_dim=3,5")
    assert code == 2
    assert f"{SWEEP}/model.latent_dim=3: RuntimeError: not enough memory: you tried to allocate 1 TiB\n" in err
    assert "Traceback" in caplog.text
    assert f"{SWEEP}/model.latent_dim=5" in out


def test_a_signal_ends_the_whole_sweep_and_resume_auto_goes_on_with_it(
    tiny: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(capsys, *tiny, "seed=1", "run_dir=alone")[0] == 0
    with monkeypatch.context() as patch:
        step = Trainer._step

        def interrupted(trainer: Trainer, batches: Any) -> Any:
            if trainer.progress.step == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(trainer, batches)

        patch.setattr(Trainer, "_step", interrupted)
        assert train(capsys, "-m", *tiny, "seed=1,2")[0] == 128 + signal.SIGTERM
    assert jobs() == {"seed=1"}  # the second one was never begun
    assert train(capsys, "-m", *tiny, "seed=1,2", "resume=auto")[0] == 0
    assert jobs() == {"seed=1", "seed=2"}
    assert manifest(f"{SWEEP}/seed=1")["model.safetensors"] == manifest("alone")["model.safetensors"]


def test_a_second_sweep_collides_goes_on_or_adds(tiny: list[str], capsys: Capture) -> None:
    assert train(capsys, "-m", *tiny, "seed=1,2")[0] == 0
    first = manifest(f"{SWEEP}/seed=1")
    code, _, err = train(capsys, "-m", *tiny, "seed=1,3")
    assert code == 2
    assert f"seqvae train: {SWEEP}/seed=1: run directory {SWEEP}/seed=1 is already in use" in err
    assert jobs() == {"seed=1", "seed=2", "seed=3"}
    code, out, err = train(capsys, "-m", *tiny, "seed=1,2,4", "resume=auto")
    assert code == 0
    assert [line.split()[1:3] for line in out.splitlines() if line.startswith(SWEEP)] == [
        ["1", "4"],
        ["2", "4"],
        ["4", "4"],
    ]
    assert manifest(f"{SWEEP}/seed=1") == first
    assert jobs() == {"seed=1", "seed=2", "seed=3", "seed=4"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.devices=2", "a job of a sweep is one process, got trainer.devices=2"),
        ("resume=elsewhere", "resume=elsewhere goes on with one run; the jobs of a sweep go on with resume=auto"),
    ],
)
def test_what_a_sweep_cannot_do_is_one_line_a_job(
    override: str, message: str, tiny: list[str], capsys: Capture
) -> None:
    code, out, err = train(capsys, "-m", *tiny, "seed=1,2", override)
    assert (code, out.strip()) == (2, "")
    assert [line.partition(": ")[2] for line in err.splitlines() if line.startswith("seqvae train")] == [
        f"{SWEEP}/seed={seed}: {message}" for seed in (1, 2)
    ]
    assert jobs() == set()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.latent_dimm=1,2"], "latent_dimm"),
        (["experiment=text,nowhere"], "nowhere"),
        (["seed=1,,"], "mismatched input"),
    ],
)
def test_a_sweep_over_what_there_is_not_is_one_line(
    overrides: list[str], message: str, tiny: list[str], capsys: Capture
) -> None:
    code, out, err = train(capsys, "-m", *tiny, *overrides)
    lines = [line for line in err.splitlines() if line.strip()]
    assert (code, out, len(lines)) == (2, "", 1)
    assert message in lines[0]


@pytest.mark.parametrize(
    ("overrides", "constant", "name"),
    [
        (["a=1", "b.c=2"], {"a=1"}, "runs/x/b.c=2"),
        (["a=1", "b=2"], set(), "runs/x/a=1,b=2"),
        (["a=1"], {"a=1"}, "runs/x"),
        (["data.root=../one two", "+k=[1,2]"], set(), "runs/x/data.root=.._one_two,+k=_1,2_"),
    ],
)
def test_a_jobs_folder_is_named_by_what_the_sweep_varies(
    overrides: Sequence[str], constant: set[str], name: str
) -> None:
    assert job_dir("runs/x", overrides, constant) == name


def test_a_value_that_all_jobs_share_does_not_name_them_however_it_was_written(
    tiny: list[str], capsys: Capture
) -> None:
    train(capsys, "-m", *tiny, "data.fresh_views=false", "optimizer.betas=[0.8, 0.9]", "seed=range(1,3)")
    assert jobs() == {"seed=1", "seed=2"}


def test_outcomes_come_in_the_order_of_the_jobs(tmp_path: Path) -> None:
    expected = [Outcome(number, f"runs/{number}", None if number % 2 else "why") for number in range(12)]
    for outcome in reversed(expected):
        Outcomes(tmp_path).add(outcome)
    assert Outcomes(tmp_path).read() == expected


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("hydra_plugins") is None, reason="needs the extra `sweep`")
def test_jobs_side_by_side_are_the_same_jobs(tiny: list[str], capsys: Capture) -> None:
    command = [sys.executable, "-c", "from seqvae.cli import main; raise SystemExit(main())", "train", "-m", *tiny]
    parallel = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "run_dir=parallel"]
    done = subprocess.run(
        [*command, "model.latent_dim=3,0", "seed=7,8", *parallel], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 2
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        "run",
        *(f"parallel/model.latent_dim=3,seed={seed}" for seed in (7, 8)),
    ]
    failed = [line for line in done.stderr.splitlines() if line.startswith("seqvae train: ")]
    assert failed == [
        f"seqvae train: parallel/model.latent_dim=0,seed={seed}: latent_dim must be a positive int, got 0"
        for seed in (7, 8)
    ]
    assert train(capsys, *tiny, "model.latent_dim=3", "seed=8", "run_dir=alone")[0] == 0
    assert manifest("parallel/model.latent_dim=3,seed=8") == manifest("alone")
    assert "step 4/4" in Path("parallel/model.latent_dim=3,seed=8/train.log").read_text(encoding="utf-8")
