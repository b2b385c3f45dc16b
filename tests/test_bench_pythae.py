"""The benchmark beside pythae: both sides see the same pixels and networks, and one evaluator scores them."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks import pythae as bench
from seqvae.harness.config import build
from seqvae.harness.engine import Engine
from seqvae.harness.trainer import TrainingStep
from seqvae.objectives import Loss
from seqvae.schedules import Constant
from tests.helpers.worlds import MODEL, World

GetWorld = Callable[[str], World]


on_a_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="both train on the CPU, and ours takes a GPU it sees")


def options(world: World) -> SimpleNamespace:
    return SimpleNamespace(
        root=world.root,
        epochs=2,
        batch_size=8,
        lr=1e-3,
        limit=None,
        importance_samples=5,
        subset=4,
        set=[f"model.{size}" for size in MODEL["fashion"]],
    )


def networks(folder: Path) -> dict[str, Tensor]:
    """Return the weights of fresh networks as a worker is asked to make them, by the names it gives them back."""
    request = json.loads((folder / "request.json").read_text())
    parts = zip(("encoder", "decoder"), build(request["model"], **request["spec"]), strict=True)
    return {f"{part}.{name}": value for part, module in parts for name, value in module.state_dict().items()}


def untrained(command: list[str], **_: Any) -> None:
    """Leave what a worker leaves, of networks as they were made."""
    folder = Path(command[-1])
    save_file(networks(folder), folder / "theirs.safetensors")
    (folder / "theirs.json").write_text(json.dumps({"images/s": 1.0, "images a CPU second": 2.0}))


@on_a_cpu
def test_both_sides_see_the_same_pixels_and_are_scored_alike(
    get_world: GetWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    forward = TrainingStep.forward

    def watched(self: TrainingStep, x: Tensor, *arguments: Any) -> Loss:
        if self.vae.training and len(x) == 8:
            seen.append(x)
        return forward(self, x, *arguments)

    monkeypatch.setattr(TrainingStep, "forward", watched)
    monkeypatch.setattr(bench, "interpreter", lambda options: sys.executable)
    monkeypatch.setattr(subprocess, "run", untrained)
    rows, (minus, error) = bench.measure(options(get_world("fashion")), tmp_path)  # type: ignore[arg-type]
    exported = np.load(tmp_path / "pixels.npz")["train"]
    known = {picture.tobytes() for picture in exported}
    trained_on = {picture.numpy().tobytes() for x in seen for picture in x}
    assert len(known) > 20
    assert trained_on <= known
    assert len(trained_on) > 20
    theirs, ours = rows.values()
    assert theirs["parameters"] == ours["parameters"] > 0
    for row in (theirs, ours):
        assert 0 < row["NLL"] < -row["ELBO"] + 1
    assert minus == pytest.approx(ours["NLL"] - theirs["NLL"])
    assert 0 < error < theirs["+-"] + ours["+-"]
    lines = bench.table(rows).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["pythae 0.1.2", "seqvae"]
    assert {line.count("|") for line in lines} == {len(bench.COLUMNS) + 2}


def test_what_only_one_side_would_obey_is_refused(
    get_world: GetWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = options(get_world("fashion"))
    monkeypatch.setattr(Engine, "device", torch.device("cuda", 0))
    with pytest.raises(ValueError, match="both train on the CPU, and ours would take cuda:0: hide it"):
        bench.measure(asked, tmp_path)  # type: ignore[arg-type]
    for override in ("optimizer.weight_decay=0.1", "trainer.ema=0.9", "objective.free_nats=1", "model=conv"):
        asked.set = ["model.width=4", override]
        with pytest.raises(ValueError, match=f"what both are built of, model.KEY=VALUE, got '{override}'"):
            bench.measure(asked, tmp_path)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@on_a_cpu
def test_ours_has_a_constant_rate_and_neither_averages_nor_clips(
    get_world: GetWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def told(config: Any) -> None:
        seen.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "interpreter", lambda options: sys.executable)
    monkeypatch.setattr(bench, "train", told)
    monkeypatch.setattr(subprocess, "run", untrained)
    with pytest.raises(KeyboardInterrupt):
        bench.measure(options(get_world("fashion")), tmp_path, seed=3)  # type: ignore[arg-type]
    (config,) = seen
    assert build(OmegaConf.to_container(config.learning_rate)) == Constant(1.0)
    assert {build(OmegaConf.to_container(config.objective)).beta(at) for at in (0.0, 0.5, 1.0)} == {1.0}
    assert config.trainer.ema is None
    assert config.trainer.clip_norm >= 1e9
    assert config.optimizer.weight_decay == 0
    assert config.seed == json.loads((tmp_path / "request.json").read_text())["seed"] == 3


def test_pythae_trains_the_networks_and_its_weights_come_back_by_our_names(tmp_path: Path) -> None:
    pytest.importorskip("pythae", reason="it needs an environment of its own")
    from benchmarks import pythae_worker

    sizes = dict(size.split("=") for size in MODEL["fashion"])
    model = {"_target_": "seqvae.models.conv", **{name: int(value) for name, value in sizes.items()}}
    spec = {"image_shape": [1, 8, 8], "levels": 2}
    request = {"model": model, "spec": spec, "epochs": 1, "batch_size": 4, "lr": 1e-2, "seed": 1, "threads": 1}
    (tmp_path / "request.json").write_text(json.dumps(request))
    pixels = np.random.default_rng(0).integers(0, 2, (8, 1, 8, 8), np.uint8)
    np.savez(tmp_path / "pixels.npz", train=pixels, valid=pixels)
    torch.manual_seed(1)
    fresh = networks(tmp_path)
    pythae_worker.train(tmp_path)
    trained = load_file(tmp_path / "theirs.safetensors")
    assert trained.keys() == fresh.keys()
    assert all(trained[name].shape == fresh[name].shape for name in fresh)
    assert any(not torch.equal(trained[name], fresh[name]) for name in fresh)
