"""SIGTERM, SIGINT and SIGKILL: what is asked to stop saves first, and what is killed goes on as if it had not been."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from seqvae.cli import main
from seqvae.harness import checkpoint
from seqvae.harness import validation as harness_validation
from seqvae.harness.signals import StopSignals
from seqvae.harness.trainer import Trainer
from tests.helpers.processes import end, start, together
from tests.helpers.runs import curve, position, steps, weights
from tests.helpers.worlds import World

GetWorld = Callable[[str], World]

STEPS = 8


def command(world: World, run_dir: Path, *overrides: str) -> list[str]:
    return [
        "train",
        *world.overrides,
        f"run_dir={run_dir}",
        "data.batch_size=8",
        "data.limit=20",
        f"trainer.max_steps={STEPS}",
        "trainer.max_minutes=null",
        "trainer.valid_every=4",
        "trainer.save_every=100",
        "trainer.log_every=1",
        "trainer.keep_last=100",
        *overrides,
    ]


def train_with_a_signal(command: list[str], where: str, number: int, times: int = 1, group: bool = False) -> int:
    """Run the command; this process (or its group) gets the signal in the fourth step, in validation or in a save."""

    struck = False

    def strike() -> None:
        nonlocal struck
        for _ in range(0 if struck else times):
            struck = True
            os.killpg(0, number) if group else os.kill(os.getpid(), number)

    step = Trainer._step
    save, batches = vars(checkpoint)["save_file"], vars(harness_validation)["valid_loader"]

    def struck_step(self: Trainer, *arguments: Any) -> Any:
        if self.progress.step == 3 and self.engine.rank == self.engine.world_size - 1:
            strike()
        return step(self, *arguments)

    def struck_batches(*arguments: Any, **options: Any) -> Iterator[Any]:
        for batch in batches(*arguments, **options):
            yield batch
            strike()

    def struck_save(*arguments: Any) -> None:
        strike()
        save(*arguments)

    if group:
        os.setpgrp()
    patched: dict[str, tuple[Any, str, Any]] = {
        "step": (Trainer, "_step", struck_step),
        "validation": (harness_validation, "valid_loader", struck_batches),
        "save": (checkpoint, "save_file", struck_save),
    }
    owner, name, replacement = patched[where]
    with mock.patch.object(owner, name, replacement):
        return main(command)


@pytest.fixture(scope="module")
def whole(get_world: GetWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    assert end(start(main, command(get_world("text"), folder / "run"), output=folder / "log")) == 0
    return folder / "run"


def goes_on(world: World, run_dir: Path, whole: Path) -> None:
    """Check that `resume=auto`, in the same run directory and without a word of where, ends as the whole run did."""
    assert end(start(main, command(world, run_dir, "resume=auto"), output=run_dir.with_suffix(".log"))) == 0
    assert weights(run_dir, STEPS) == weights(whole, STEPS)
    assert position(run_dir, STEPS) == position(whole, STEPS)
    for tag in ("train/loss", "valid/objective"):
        assert curve(run_dir, tag) == curve(whole, tag)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize(("where", "due"), [("step", True), ("validation", True), ("save", False)])
def test_a_signal_saves_within_the_step_and_the_run_goes_on(
    where: str, due: bool, number: int, code: int, whole: Path, get_world: GetWorld, tmp_path: Path
) -> None:
    run_dir, log = tmp_path / "run", tmp_path / "run.log"
    process = start(train_with_a_signal, command(get_world("text"), run_dir), where, number, output=log)
    assert end(process) == code, log.read_text()
    assert steps(run_dir) == [4]
    assert checkpoint.last(run_dir) is not None
    assert position(run_dir, 4)["validation_due"] == due
    assert f"stopped by {signal.Signals(number).name} at step 4; go on with resume=auto" in log.read_text()
    assert "Traceback" not in log.read_text()
    goes_on(get_world("text"), run_dir, whole)


def test_a_second_signal_leaves_at_once(whole: Path, get_world: GetWorld, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = start(
        train_with_a_signal, command(get_world("text"), run_dir), "save", signal.SIGTERM, 2, output=tmp_path / "run.log"
    )
    assert end(process) == 143
    assert steps(run_dir) == []
    assert [path.name[:5] for path in (run_dir / "checkpoints").iterdir()] == [".tmp-"]  # what the save had begun
    goes_on(get_world("text"), run_dir, whole)
    assert not list((run_dir / "checkpoints").glob(".tmp-*"))


def test_a_signal_to_every_process_of_a_group_spares_the_loaders_workers(
    whole: Path, get_world: GetWorld, tmp_path: Path
) -> None:
    run_dir, log = tmp_path / "run", tmp_path / "run.log"
    line = command(get_world("text"), run_dir, "data.workers=2")
    process = start(train_with_a_signal, line, "step", signal.SIGTERM, 1, True, output=log)
    assert end(process) == 143, log.read_text()
    assert steps(run_dir) == [4]
    assert "Traceback" not in log.read_text()


def test_several_processes_stop_at_the_same_step_though_one_was_asked(get_world: GetWorld, tmp_path: Path) -> None:
    run_dir, log = tmp_path / "run", tmp_path / "run.log"
    line = command(get_world("text"), run_dir)
    assert together(2, train_with_a_signal, line, "step", signal.SIGTERM, output=log) == [143, 143], log.read_text()
    assert steps(run_dir) == [4]
    assert together(2, main, [*line, "resume=auto"], output=log) == [0, 0], log.read_text()
    assert steps(run_dir)[-1] == STEPS


def test_the_handlers_that_were_there_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with StopSignals():
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] != before
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


KILLS = 20
STORM_STEPS = 120


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_never_had_been(get_world: GetWorld, tmp_path: Path) -> None:
    def line(run_dir: Path) -> list[str]:
        sizes = [f"trainer.max_steps={STORM_STEPS}", "trainer.valid_every=40", "trainer.save_every=2"]
        return command(get_world("text"), run_dir, *sizes, "trainer.keep_last=2", "trainer.ema=0.9", "resume=auto")

    whole, run_dir, log = tmp_path / "whole", tmp_path / "run", tmp_path / "log"
    began = time.monotonic()
    assert end(start(main, line(whole), output=log)) == 0
    chance, kills, unreadable, furthest = random.Random(0), 0, 0, 0
    seconds = time.monotonic() - began
    while kills < KILLS:
        process = start(main, line(run_dir), output=log)
        known = furthest
        while process.is_alive() and furthest == known:  # it must get somewhere, or the storm would never end
            furthest = max([known, *steps(run_dir)])
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 2 * seconds / STORM_STEPS))
        process.kill()
        assert end(process) in (-signal.SIGKILL, 0), log.read_text()
        assert process.exitcode != 0, "the run was over before the storm: make it longer"
        kills += 1
        for path in checkpoint.checkpoints(run_dir):
            try:
                checkpoint.verify(path)
            except checkpoint.CheckpointError:
                unreadable += 1
    assert unreadable == 0
    assert end(start(main, line(run_dir), output=log)) == 0, log.read_text()
    assert weights(run_dir, STORM_STEPS) == weights(whole, STORM_STEPS)
    assert weights(run_dir, STORM_STEPS, "training.json") == weights(whole, STORM_STEPS, "training.json")
    assert curve(run_dir) == curve(whole)
    assert not list((run_dir / "checkpoints").glob(".tmp-*"))
