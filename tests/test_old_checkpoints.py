"""Checkpoints that were written once and must load for ever: the answers they gave then stand beside them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from seqvae.cli import main
from seqvae.harness import checkpoint
from seqvae.harness.config import Trained, load
from tests.assets.make import answers

ASSETS = Path(__file__).parent / "assets"
OLD = sorted(path.parent for path in ASSETS.glob("format-*/*/MANIFEST.json"))


def expected(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    return content


def answered(path: Path, trained: Trained) -> dict[str, list[Any]]:
    dtype = torch.uint8 if path.name == "fashion" else torch.int64
    return answers(trained, [torch.tensor(window, dtype=dtype) for window in expected(path)["windows"]])


def differences(path: Path, trained: Trained) -> float:
    """Return how far the answers are from those that were written down; infinite for another sequence."""
    farthest = 0.0
    for name, values in answered(path, trained).items():
        for value, then in zip(map(torch.tensor, values), map(torch.tensor, expected(path)[name]), strict=True):
            if value.shape != then.shape:
                return torch.inf
            scale = then.double().abs().clamp(min=1.0)
            farthest = max(farthest, float(((value - then).double().abs() / scale).max()))
    return farthest


def test_there_is_one_of_each_format_and_model() -> None:
    names = {path.relative_to(ASSETS).as_posix() for path in OLD}
    assert names == {
        f"format-{number}/{name}"
        for number in range(1, checkpoint.FORMAT + 1)
        for name in ("melody", "text", "fashion")
    }
    assert sum(file.stat().st_size for file in ASSETS.rglob("format-*/**/*") if file.is_file()) < 60_000


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.relative_to(ASSETS).as_posix())
def test_an_old_checkpoint_answers_as_it_did(path: Path) -> None:
    trained = load(path)
    assert trained.path == path
    assert len({*map(str, expected(path)["greedy"])}) > 1  # z says something
    assert differences(path, trained) < 1e-5


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.relative_to(ASSETS).as_posix())
def test_other_weights_answer_differently(path: Path) -> None:
    for name, _ in load(path).vae.named_parameters():
        trained = load(path)
        with torch.no_grad():
            trained.vae.get_parameter(name).mul_(1.5)
        assert differences(path, trained) > 1e-5, name


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.relative_to(ASSETS).as_posix())
def test_the_commands_take_an_old_checkpoint(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copied = shutil.copytree(path, tmp_path / "old")
    assert main(["info", str(copied), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["experiment"] == path.name
    assert main(["sample", str(copied), "-n", "2", "-o", str(tmp_path / "out")]) == 0
    values = checkpoint.read_training(path).values
    assert values["step"] > 0
