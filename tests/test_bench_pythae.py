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
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks import pythae as bench
from seqvae.harness.config import build
from seqvae.harness.trainer import TrainingStep
from seqvae.objectives import Loss
from tests.helpers.worlds import MODEL, World

GetWorld = Callable[[str], World]


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


def test_both_sides_see_the_same_pixels_and_are_scored_alike(
    get_world: GetWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    forward = TrainingStep.forward

    def watched(self: TrainingStep, x: Tensor, *arguments: Any) -> Loss:
        if self.vae.training and len(x) == 8:
            seen.append(x)
        return forward(self, x, *arguments)

    def untrained(command: list[str], **_: Any) -> None:
        folder = Path(command[-1])
        save_file(networks(folder), folder / "theirs.safetensors")
        (folder / "theirs.json").write_text(json.dumps({"images/s": 1.0, "images a CPU second": 2.0}))

    monkeypatch.setattr(TrainingStep, "forward", watched)
    monkeypatch.setattr(bench, "interpreter", lambda options: sys.executable)
    monkeypatch.setattr(subprocess, "run", untrained)
    rows = bench.measure(options(get_world("fashion")), tmp_path)  # type: ignore[arg-type]
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
    lines = bench.table(rows).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["pythae 0.1.2", "seqvae"]
    assert {line.count("|") for line in lines} == {len(bench.COLUMNS) + 2}


def test_pythae_trains_the_networks_and_its_weights_come_back_by_our_names(tmp_path: Path) -> None:
    pytest.importorskip("pythae", reason="it needs an environment of its own")
    from benchmarks import pythae_worker

    sizes = dict(size.split("=") for size in MODEL["fashion"])
    model = {"_target_": "seqvae.models.conv", **{name: int(value) for name, value in sizes.items()}}
    spec = {"image_shape": [1, 8, 8], "levels": 2}
    request = {"model": model, "spec": spec, "epochs": 1, "batch_size": 4, "lr": 1e-2, "threads": 1}
    (tmp_path / "request.json").write_text(json.dumps(request))
    pixels = np.random.default_rng(0).integers(0, 2, (8, 1, 8, 8), np.uint8)
    np.savez(tmp_path / "pixels.npz", train=pixels, valid=pixels)
    torch.manual_seed(bench.SEED)
    fresh = networks(tmp_path)
    pythae_worker.train(tmp_path)
    trained = load_file(tmp_path / "theirs.safetensors")
    assert trained.keys() == fresh.keys()
    assert all(trained[name].shape == fresh[name].shape for name in fresh)
    assert any(not torch.equal(trained[name], fresh[name]) for name in fresh)
