"""Several processes: one run, every example once and of equal weight, one writer, and an end when one of them dies."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import train as entry
from seqvae.data.batching import BatchOrder, valid_loader
from seqvae.data.dataset import WindowDataset
from seqvae.gaussian import DiagonalGaussian
from seqvae.harness import engine as harness_engine
from seqvae.harness import run as harness_run
from seqvae.harness.config import load
from seqvae.harness.engine import Engine
from seqvae.harness.trainer import Trainer
from seqvae.objectives import batch_mean
from tests.helpers.processes import end, start, start_job, together
from tests.helpers.runs import curve, run_training, step_path, steps
from tests.helpers.worlds import World

GetWorld = Callable[[str], World]

CHECKOUT = Path(entry.__file__).parent


def noise_of_the_example(self: DiagonalGaussian, samples: int = 1, generator: torch.Generator | None = None) -> Tensor:
    """Stand in for rsample: the noise belongs to the example, wherever and beside whatever it is seen."""
    dims = torch.arange(self.mean.shape[1], dtype=self.mean.dtype)
    noise = torch.cos(9.0 * self.mean.detach() + dims)
    return (self.mean + torch.exp(0.5 * self.log_variance) * noise).expand(samples, -1, -1)


class OneProcessForTwo(BatchOrder):
    """Lays the batches that two processes would see in a step together, for one."""

    def __init__(self, lengths: Any, batch_size: int, max_tokens: int | None, seed: int, world_size: int) -> None:
        assert world_size == 1
        super().__init__(lengths, batch_size, max_tokens, seed, world_size=2)

    def epoch(self, epoch: int, rank: int = 0) -> list[list[int]]:
        pairs = zip(super().epoch(epoch, 0), super().epoch(epoch, 1), strict=True)
        return [[index for index in first + second if index >= 0] for first, second in pairs]


def exact(command: list[str], one_for_two: bool = False, own_means: bool = False) -> None:
    """Train with the noise handed in; `own_means` takes means over a process's own batch alone."""
    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(DiagonalGaussian, "rsample", noise_of_the_example))
        if one_for_two:
            patches.enter_context(mock.patch.object(harness_run, "BatchOrder", OneProcessForTwo))
        if own_means:
            patches.enter_context(mock.patch.object(Engine, "batch_mean", return_value=batch_mean))
        run_training(command)


def exact_command(world: World, run_dir: Path, *overrides: str) -> list[str]:
    return [
        *world.overrides,
        f"run_dir={run_dir}",
        "trainer.precision=64-true",
        "trainer.max_steps=5",
        "trainer.valid_every=5",
        "trainer.log_every=1",
        "trainer.max_minutes=null",
        *overrides,
    ]


def final(run_dir: Path, step: int = 5) -> tuple[dict[str, Tensor], dict[str, float]]:
    config = json.loads((step_path(run_dir, step) / "config.json").read_text(encoding="utf-8"))
    return load_file(step_path(run_dir, step) / "model.safetensors"), config["metrics"]


def furthest(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


# 15 windows in batches of 4: steps of 8 and 7 windows; of 3: the last step has a batch for one process alone;
# of 7: batches of 7 and 7, and of 1 and nothing
@pytest.mark.parametrize(
    ("name", "batch_size"), [("melody", 4), ("text", 3), ("text", 7), ("fashion", 3)], ids=lambda value: str(value)
)
def test_two_processes_are_one_with_a_batch_twice_as_large(
    name: str, batch_size: int, get_world: GetWorld, tmp_path: Path
) -> None:
    # the floor lies among the dimensions' means, so that taking it over half of the batch would be another objective
    floor = {"melody": 0.016, "text": 0.0145, "fashion": 0.0205}[name]
    overrides = [f"data.batch_size={batch_size}", "data.limit=15", f"objective.free_nats={floor}"]
    overrides += [
        "objective.beta.start=1.0",
        "objective.beta.end=1.0",
        *(["model.dropout=0", "trainer.aggressive_steps=2"] if name == "text" else []),
    ]
    one, two, wrong = tmp_path / "one", tmp_path / "two", tmp_path / "wrong"
    exact(exact_command(get_world(name), one, *overrides), one_for_two=True)
    log = tmp_path / "log"
    assert together(2, exact, exact_command(get_world(name), two, *overrides), output=log) == [0, 0], log.read_text()
    (weights, metrics), (expected, expected_metrics) = final(two), final(one)
    assert all(tensor.dtype == torch.float64 for tensor in weights.values())
    assert furthest(weights, expected) < 1e-6
    for metric, value in expected_metrics.items():
        if metric != "objective":  # free nats are a floor on means over batches, and validation cuts other ones
            assert metrics[metric] == pytest.approx(value, abs=1e-6)
    losses = [[loss for _, loss in curve(run)] for run in (two, one)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)  # TensorBoard holds float32
    command = exact_command(get_world(name), wrong, *overrides)
    assert together(2, exact, command, False, True, output=log) == [0, 0], log.read_text()
    assert furthest(final(wrong)[0], expected) > 1e-6


@pytest.mark.parametrize("name", ["melody", "fashion"])
def test_accumulating_is_a_batch_that_many_times_larger(name: str, get_world: GetWorld, tmp_path: Path) -> None:
    for batch_size, parts in ((12, 1), (4, 3), (3, 4)):
        command = exact_command(
            get_world(name), tmp_path / str(parts), f"data.batch_size={batch_size}", "data.limit=12"
        )
        exact([*command, f"trainer.accumulate={parts}"])
    expected, expected_metrics = final(tmp_path / "1")
    for parts in (3, 4):
        weights, metrics = final(tmp_path / str(parts))
        assert furthest(weights, expected) < 1e-6
        assert metrics == pytest.approx(expected_metrics, abs=1e-6)


def train_with_own_statistics(command: list[str]) -> None:
    with mock.patch.object(Engine, "share_buffers"):
        run_training(command)


@pytest.mark.parametrize("ema", ["null", "0.5"])
def test_two_processes_validate_the_very_model_that_is_saved(ema: str, get_world: GetWorld, tmp_path: Path) -> None:
    world, log = get_world("text"), tmp_path / "log"
    farthest = []
    for train in (run_training, train_with_own_statistics):
        run_dir = tmp_path / train.__name__
        overrides = ("model.posterior_gamma=0.6", f"trainer.ema={ema}", "model.word_dropout=0.3", "data.batch_size=4")
        command = exact_command(world, run_dir, *overrides)
        assert together(2, train, command, output=log) == [0, 0], log.read_text()
        trained, dataset = load(step_path(run_dir, 5)), WindowDataset(world.root, "valid")
        batches = valid_loader(dataset, trained.codec, batch_size=4)
        with torch.no_grad():
            kls = torch.cat([trained.vae.double().terms(batch.x).total_kl for batch in batches])
        farthest.append(abs(float(kls.mean()) - final(run_dir)[1]["kl"]))
    assert farthest[0] < 1e-7  # a loaded model has float32 weights
    assert farthest[1] > 1e-4  # the statistics of another process's own batches


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("windows", [1, 3, 16, 17, 23])
def test_an_epoch_shows_every_window_once_whatever_the_number_of_processes(world_size: int, windows: int) -> None:
    order = BatchOrder(np.arange(windows) % 3 + 4, 4, world_size=world_size)
    for epoch in range(3):
        ranks = [order.epoch(epoch, rank) for rank in range(world_size)]
        seen = [index for rank in ranks for batch in rank for index in batch if index >= 0]
        assert sorted(seen) == list(range(windows))
        assert {len(rank) for rank in ranks} == {order.steps}


def watched_command(world: World, run_dir: Path, *overrides: str) -> list[str]:
    return [*world.overrides, "debug=smoke", f"run_dir={run_dir}", "trainer.max_minutes=null", *overrides]


def train_and_watch_files(command: list[str], folder: str) -> int:
    """Return 77 if this process changes a file below `folder`."""
    changed: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.mkdir", "os.rename", "os.remove") and str(arguments[0]).startswith(folder):
            reads = event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            changed.extend([] if reads else [f"{event} {arguments[0]}"])

    sys.addaudithook(watch)
    run_training(command)
    print(changed)
    return 77 if changed else 0


def test_the_main_process_alone_writes_and_there_is_one_run_directory(get_world: GetWorld, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    command = watched_command(get_world("text"), folder / "run")
    assert together(2, train_and_watch_files, command, str(folder), output=tmp_path / "log") == [77, 0]
    assert [path.name for path in folder.iterdir()] == ["run"]
    assert len(list((folder / "run" / "tensorboard").glob("events*"))) == 1


def train_until_one_dies(command: list[str], how: str) -> None:
    step = Trainer._step

    def last_step(self: Trainer, batches: Any) -> Any:
        if self.progress.step == 2 and self.engine.rank == 1:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)
        return step(self, batches)

    with mock.patch.object(Trainer, "_step", last_step):
        run_training(command)


def test_a_dead_process_ends_the_job(get_world: GetWorld, tmp_path: Path) -> None:
    command = watched_command(get_world("text"), tmp_path / "run")
    codes = together(2, train_until_one_dies, command, "killed", output=tmp_path / "log")
    assert codes[1] == -signal.SIGKILL
    assert codes[0] != 0
    assert steps(tmp_path / "run") == [2]


def test_a_process_that_hangs_ends_the_others_after_the_timeout(get_world: GetWorld, tmp_path: Path) -> None:
    command = watched_command(get_world("text"), tmp_path / "run", "trainer.timeout_minutes=0.4")
    waiting, hanging = start_job(2, train_until_one_dies, command, "hangs", output=tmp_path / "log")
    try:
        assert end(waiting) != 0
        assert hanging.is_alive()
    finally:
        for process in (waiting, hanging):
            process.kill()
    assert steps(tmp_path / "run") == [2]  # where the other one hangs
    assert "imed out" in (tmp_path / "log").read_text()


def test_a_run_directory_in_use_is_refused_by_every_process(get_world: GetWorld, tmp_path: Path) -> None:
    from filelock import FileLock

    (tmp_path / "run").mkdir()
    log = tmp_path / "log"
    with FileLock(tmp_path / "run" / ".lock"):
        codes = together(2, run_training, watched_command(get_world("text"), tmp_path / "run"), output=log)
    assert codes == [1, 1]
    assert log.read_text().count("is being trained in by another process") >= 2


@pytest.mark.parametrize(
    ("environment", "devices", "expected"),
    [
        ({}, 3, (3, 1)),
        ({}, "auto", (torch.cuda.device_count() or 1, 1)),
        ({"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "3"}, "auto", (2, 3)),
        ({"SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_PROCID": "5"}, "auto", (4, 2)),
        ({"SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_PROCID": "5"}, 4, (4, 2)),
        ({"SLURM_NTASKS": "8", "SLURM_NNODES": "2"}, 1, (1, 1)),  # in a batch script, not started by srun
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, "auto", (torch.cuda.device_count() or 1, 1)),
    ],
)
def test_the_launcher_says_how_many_processes_there_are(
    environment: dict[str, str], devices: int | str, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert harness_engine._layout(devices) == expected


def test_a_number_of_devices_that_the_launcher_contradicts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"trainer\.devices is 3, but torchrun started 2 processes on this machine"):
        Engine(devices=3)


def test_srun_starts_the_processes_of_one_job(get_world: GetWorld, tmp_path: Path) -> None:
    command = watched_command(get_world("text"), tmp_path / "run")
    job = {"SLURM_NTASKS": "2", "SLURM_NNODES": "1", "SLURM_NODELIST": "localhost", "SLURM_JOB_NAME": "train"}
    job |= {"SLURM_JOB_ID": str(os.getpid()), "SLURM_NODEID": "0", "SLURM_NTASKS_PER_NODE": "2"}
    log = tmp_path / "log"
    ranks = [
        start(run_training, command, output=log, **job, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank))
        for rank in range(2)
    ]
    assert [end(rank) for rank in ranks] == [0, 0], log.read_text()
    assert json.loads((step_path(tmp_path / "run", 4) / "training.json").read_text())["world_size"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "devices"])
def test_the_documented_commands_train_with_two_processes(launcher: str, get_world: GetWorld, tmp_path: Path) -> None:
    command = watched_command(get_world("text"), tmp_path / "run")
    if launcher == "torchrun":
        line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        line += [str(CHECKOUT / "train.py"), *command]
    else:
        line = [sys.executable, str(CHECKOUT / "train.py"), *command, "trainer.devices=2"]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert finished.returncode == 0, finished.stderr
    assert json.loads((step_path(tmp_path / "run", 4) / "training.json").read_text())["world_size"] == 2
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_more_processes_than_gpus_train_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert Engine(devices=2).device.type == "cpu"
    assert "2 processes on this machine and 1 GPU: they train on the CPU" in caplog.text
