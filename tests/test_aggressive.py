"""Aggressive training: who moves in the encoder's own steps, when they end, and what they cannot go with."""

import math
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from seqvae.cli import main
from seqvae.harness import trainer, validation
from seqvae.harness.aggressive import catch_up
from seqvae.harness.engine import Engine
from seqvae.harness.meter import Report
from seqvae.harness.trainer import TrainingStep
from seqvae.objectives import Autoencoder
from seqvae.vae import VAE
from tests.helpers.linear_gaussian import linear_gaussian
from tests.helpers.runs import curve, position
from tests.helpers.worlds import World, configuration, train_tiny

GetWorld = Callable[[str], World]
Capture = pytest.CaptureFixture[str]

X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def loss_of(vae: VAE) -> Tensor:
    return -vae.terms(X, noise=False).elbo.mean()


def caught_up(vae: VAE, losses: list[float] | None, most: int, clip: float = 0.1) -> int:
    """Let the encoder take steps by its gradient; `losses` are what they are told to have cost."""
    engine = Engine(1)
    optimizer = torch.optim.SGD(vae.parameters(), lr=0.3)
    module, prepared = engine.setup(TrainingStep(vae, Autoencoder()), optimizer, compile=False)
    calls = 0

    def gradients() -> list[Report]:
        nonlocal calls
        loss = loss_of(vae)
        told = loss.detach() if losses is None else torch.tensor(losses[calls])
        engine.backward(loss * (math.nan if told.isnan() else 1.0))
        calls += 1
        return [Report(4, 8, {"loss": told}), Report(2, 6, {"loss": told})]

    return catch_up(engine, module, prepared, vae, gradients, most, clip)


def test_only_the_encoder_moves_by_its_own_clipped_gradient() -> None:
    vae, _ = linear_gaussian(error=0.5)
    oracle = deepcopy(vae)
    assert caught_up(vae, None, most=5) == 5
    for _ in range(5):
        oracle.zero_grad()
        loss_of(oracle).backward()
        clip_grad_norm_(oracle.encoder.parameters(), 0.1)
        with torch.no_grad():
            for parameter in oracle.encoder.parameters():
                assert parameter.grad is not None
                parameter.sub_(0.3 * parameter.grad)
    for name, value in oracle.state_dict().items():
        torch.testing.assert_close(vae.state_dict()[name], value)
    untouched = linear_gaussian(error=0.5)[0]
    assert torch.equal(vae.get_parameter("decoder.weight"), untouched.get_parameter("decoder.weight"))
    assert not torch.equal(vae.get_parameter("encoder.weight"), untouched.get_parameter("encoder.weight"))
    assert all(parameter.grad is None for parameter in vae.parameters())


@pytest.mark.parametrize(
    ("losses", "most", "taken"),
    [
        ([5.0] * 10 + [4.0] * 10 + [4.0] * 10 + [3.0] * 10, 40, 30),  # ten that are no better
        ([5.0] * 10 + [4.0] * 10 + [4.0] * 10, 25, 25),  # the cap
        ([5.0] * 10 + [6.0] * 10, 40, 20),
        ([5.0, math.nan, 4.0], 40, 1),
        ([math.nan], 40, 0),
        ([9.0] * 3, 3, 3),
    ],
)
def test_the_encoder_stops_where_it_no_longer_helps(losses: list[float], most: int, taken: int) -> None:
    vae, _ = linear_gaussian(error=0.5)
    assert caught_up(vae, losses, most) == taken
    assert all(parameter.isfinite().all() for parameter in vae.parameters())


AHEAD = (
    "trainer.aggressive_steps=12",
    "trainer.log_every=1",
    "trainer.valid_every=1",
    "trainer.save_every=1",
    "trainer.keep_last=9",
)


def windows_of(world: World, run_dir: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> list[list[int]]:
    """Return the windows of every batch whose gradient a training took, in order."""
    seen: list[list[int]] = []
    gradients = trainer.Trainer._gradients

    def recorded(self: trainer.Trainer, batches: Any, share: float) -> Any:
        reports, windows = gradients(self, batches, share)
        seen.append(windows)
        return reports, windows

    with monkeypatch.context() as patches:
        patches.setattr(trainer.Trainer, "_gradients", recorded)
        patches.setattr(trainer.Trainer, "_watch_the_encoder", lambda self, metrics: None)
        train_tiny(world, run_dir, *overrides)
    return seen


def test_the_encoders_own_steps_see_every_window_in_an_order_of_their_own(
    get_world: GetWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = get_world("text")
    plain = windows_of(world, tmp_path / "plain", monkeypatch)
    ahead = windows_of(world, tmp_path / "ahead", monkeypatch, "trainer.aggressive_steps=3")
    assert ahead[3::4] == plain  # a step of all weights sees what it would have seen
    own = [batch for place, batch in enumerate(ahead) if place % 4 < 3]
    counts = Counter(index for batch in own for index in batch).values()
    assert len(counts) == 54
    assert max(counts) - min(counts) <= 1  # one epoch after another
    assert own[:4] != plain


def test_the_encoders_own_steps_end_when_the_latents_say_no_more(
    get_world: GetWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    nats = iter([0.5, 0.6, 0.6, 0.9, 1.0])
    monkeypatch.setattr(validation, "mutual_information", lambda posterior, generator: next(nats))
    train_tiny(get_world("text"), tmp_path / "run", *AHEAD, "trainer.max_steps=5")
    taken = [value for _, value in curve(tmp_path / "run", "train/encoder_steps")]
    assert all(value >= 10 for value in taken[:3])
    assert taken[3:] == [0, 0]  # and it does not begin again when they do
    assert [position(tmp_path / "run", step)["encoder_caught_up"] for step in (1, 2, 3, 4)] == [
        False,
        False,
        True,
        True,
    ]
    assert "step 3: mutual information no longer grows (0.6 nats after 0.6)" in caplog.text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=lstm_lm"], "trainer.aggressive_steps=12 are steps of the encoder, and a language model has none"),
        (["objective=target_rate"], "trainer.aggressive_steps=12 would move the controller of TargetRate as often as"),
        (["objective=autoencoder"], "trainer.aggressive_steps=12 end when the mutual information no longer grows, and"),
        (["trainer.aggressive_steps=-1"], "trainer.aggressive_steps must be an int >= 0, got -1"),
    ],
)
def test_what_cannot_go_with_them_is_refused_before_the_run_begins(
    overrides: list[str], message: str, get_world: GetWorld, tmp_path: Path, capsys: Capture
) -> None:
    command = ["train", *get_world("text").overrides, "debug=smoke", *AHEAD, *overrides, f"run_dir={tmp_path / 'run'}"]
    assert main(command) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_without_them_nothing_is_said_of_them(get_world: GetWorld, tmp_path: Path) -> None:
    assert configuration(["experiment=text"]).trainer.aggressive_steps == 0
    train_tiny(get_world("text"), tmp_path / "run", "trainer.log_every=1")
    with pytest.raises(KeyError):
        curve(tmp_path / "run", "train/encoder_steps")
