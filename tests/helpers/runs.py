"""What tests ask of a run directory: its weights, its curves, and itself as a crash would leave it."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from seqvae.harness import checkpoint
from seqvae.harness.run import train
from tests.helpers.worlds import configuration


def run_training(overrides: list[str]) -> None:
    """Train as a command line with these overrides would."""
    train(configuration(overrides))


def step_path(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step-{step:09d}"


def steps(run_dir: Path) -> list[int]:
    """Return the steps of the checkpoints that a run has."""
    return [int(path.name.removeprefix("step-")) for path in checkpoint.checkpoints(run_dir)]


def weights(run_dir: Path, step: int, file: str = "model.safetensors") -> str:
    """Return the sha256 of the weights at a step."""
    return hashlib.sha256((step_path(run_dir, step) / file).read_bytes()).hexdigest()


def position(run_dir: Path, step: int) -> dict[str, Any]:
    """Return what a checkpoint knows of its training's progress."""
    values: dict[str, Any] = json.loads((step_path(run_dir, step) / "training.json").read_text(encoding="utf-8"))
    return values


def curve(run_dir: Path, tag: str = "train/loss") -> list[tuple[int, float]]:
    """Return what TensorBoard shows: each step as often as it shows it."""
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def crashed(run_dir: Path, step: int, target: Path) -> Path:
    """Return a copy of a run as a crash some time after its checkpoint at `step` would leave it."""
    shutil.copytree(run_dir, target)
    for path in checkpoint.checkpoints(target):
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    return target
