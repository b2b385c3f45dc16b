"""Scheduled sampling: whose tokens a decoder is fed, when, and who never notices."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from seqvae.cli import main
from seqvae.harness.trainer import TrainingStep
from seqvae.models import hierarchical, lstm
from seqvae.models.hierarchical import HierarchicalDecoder
from seqvae.models.layers import past_of
from seqvae.models.lstm import LSTMDecoder
from seqvae.objectives import IWAE, Autoencoder, BetaELBO, ScheduledSampling
from seqvae.priors import StandardNormal
from seqvae.schedules import Constant, Linear, Schedule
from seqvae.vae import VAE
from tests.helpers.runs import curve, weights
from tests.helpers.worlds import World, train_tiny

GetWorld = Callable[[str], World]
SequenceDecoder = LSTMDecoder | HierarchicalDecoder

SIZES: dict[str, Any] = {"latent_dim": 3, "embedding_dim": 4, "encoder_hidden_dim": 5, "hidden_dim": 6}
MODELS: dict[str, Callable[..., Any]] = {
    "flat": lambda **facts: lstm(**facts, **SIZES),
    "hierarchical": lambda **facts: hierarchical(**facts, **SIZES, segment_length=3, conductor_dim=7),
}
LENGTH, WORDS = 7, 5


def world(model: str = "flat", **facts: Any) -> tuple[VAE, Tensor]:
    torch.manual_seed(0)
    encoder, decoder = MODELS[model](vocab_size=WORDS, max_length=LENGTH, **facts)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(3.0)  # or what it writes would hardly depend on what it read
    return VAE(encoder, decoder, StandardNormal(3)).double().train(), torch.randint(0, WORDS, (6, LENGTH))


def fed(vae: VAE, x: Tensor, rate: float, passes: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    """Return what a training step feeds the decoder at last, and the latents it decodes."""
    seen: list[tuple[Tensor, Tensor]] = []
    log_prob = vae.decoder.log_prob

    def spy(x: Tensor, z: Tensor, past: Tensor) -> Tensor:
        seen.append((past, z.detach()))
        return log_prob(x, z, past)  # type: ignore[call-arg]

    with monkeypatch.context() as patches:
        patches.setattr(vae.decoder, "log_prob", spy)
        step = TrainingStep(vae, BetaELBO(Constant()), ScheduledSampling(Constant(rate), passes))
        step(x, 0.5)
    ((past, z),) = seen
    return past, z


def token_by_token(decoder: SequenceDecoder, x: Tensor, z: Tensor, own: Tensor, point: Tensor) -> Tensor:
    """Return the past of scheduled sampling as Bengio et al. (2015) have it: each token after what was fed before."""
    token, state, past = torch.full_like(x[:, 0], -1), decoder.start(z), []
    for time in range(x.shape[1]):
        past.append(token)
        logits, state = decoder.step(token, state)  # type: ignore[arg-type]
        drawn = (logits.softmax(-1).cumsum(-1) <= point[:, time : time + 1]).sum(-1)
        if time + 1 < x.shape[1]:
            token = torch.where(own[:, time + 1], drawn, x[:, time])
    return torch.stack(past, 1)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_as_many_passes_as_tokens_are_sampling_token_by_token(
    model: str, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae, x = world(model)
    draws: list[Tensor] = []
    rand = torch.rand

    def remembered(*sizes: Any, **options: Any) -> Tensor:
        draws.append(rand(*sizes, **options))
        return draws[-1]

    for passes in range(1, LENGTH):
        draws.clear()
        torch.manual_seed(1)
        with monkeypatch.context() as patches:
            patches.setattr(torch, "rand", remembered)
            past, z = fed(vae, x, rate, passes, monkeypatch)
        own, point = draws
        assert isinstance(vae.decoder, SequenceDecoder)
        exact = token_by_token(vae.decoder, x, z, own < rate, point)
        right = (past == exact).all(0)
        assert right[: passes + 1].all()  # the first input is nothing, and nothing can be wrong about it
        if passes == 1:
            assert not right.all()  # later errors follow true tokens
    assert right.all()


@pytest.mark.parametrize("model", MODELS)
def test_at_a_rate_of_nothing_a_step_is_the_plain_step(model: str) -> None:
    vae, x = world(model)
    found = []
    for sampling in (None, ScheduledSampling(Linear(0.0, 1.0, 1.0), passes=2)):
        torch.manual_seed(1)
        vae.zero_grad()
        loss, _ = TrainingStep(vae, BetaELBO(Constant()), sampling)(x, 0.0)
        loss.backward()
        found.append([loss, torch.rand(1), *(parameter.grad for parameter in vae.parameters())])
    for plain, own in zip(*found, strict=True):
        assert torch.equal(plain, own)


@pytest.mark.parametrize("model", MODELS)
def test_the_gradient_takes_the_past_as_given(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vae, x = world(model)
    torch.manual_seed(1)
    past, z = fed(vae, x, 0.7, 2, monkeypatch)
    assert (past != past_of(x)).any()
    torch.manual_seed(1)
    loss, _ = TrainingStep(vae, BetaELBO(Constant(0.0)), ScheduledSampling(Constant(0.7), 2))(x, 0.5)
    torch.testing.assert_close(loss, -vae.decoder.log_prob(x, z, past).mean())  # type: ignore[call-arg]
    parameters = list(vae.decoder.parameters())
    ours = torch.autograd.grad(loss, parameters)
    theirs = torch.autograd.grad(-vae.decoder.log_prob(x, z, past).mean(), parameters)  # type: ignore[call-arg]
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("model", MODELS)
def test_the_share_of_replaced_tokens_is_the_rate_and_they_follow_the_models_distribution(model: str) -> None:
    vae, x = world(model)
    decoder = vae.decoder
    assert isinstance(decoder, SequenceDecoder)
    row, z = x[:1].expand(20_000, -1), torch.randn(1, 3).double().expand(20_000, -1)
    drawn = decoder.draw(past_of(row), z, torch.rand(row.shape))
    expected = decoder.logits(x[:1], z[:1]).softmax(-1)[0]
    counts = torch.nn.functional.one_hot(drawn, WORDS).double().mean(0)
    torch.testing.assert_close(counts, expected, atol=0.015, rtol=0.0)


def test_each_token_is_replaced_with_the_probability_of_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, x = world()
    with torch.no_grad():
        output = vae.decoder.get_parameter("output.bias")
        output[0] = 1e9  # all that it writes
    for rate in (0.2, 0.9):
        past, _ = fed(vae, 1 + x.repeat(500, 1) % (WORDS - 1), rate, 1, monkeypatch)
        assert not (past[:, 0] != -1).any()
        share = (past[:, 1:] == 0).double().mean(0)
        torch.testing.assert_close(share, torch.full_like(share, rate), atol=0.03, rtol=0.0)


def test_what_fills_a_row_stays_and_an_end_is_never_fed(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, x = world(end_id=1)
    x = torch.where(x == 1, 2, x)
    x[:, 4], x[:3, 5:] = 1, -1
    with torch.no_grad():
        vae.decoder.get_parameter("output.bias")[1] = 50.0  # it would end at once
    past, _ = fed(vae, x, 1.0, 1, monkeypatch)
    assert torch.equal(past == -1, past_of(x) == -1)
    assert not (past == 1).any()
    assert (fed(vae, x, 0.0, 1, monkeypatch)[0] == 1).any()


def test_only_a_training_step_feeds_it_and_what_it_reports_has_a_name_of_its_own() -> None:
    vae, x = world()
    sampling = ScheduledSampling(Constant(1.0))
    for objective in (BetaELBO(Constant()), IWAE(Constant()), Autoencoder()):
        plain = {"elbo", "log_likelihood", "log_likelihood_at_mean", "iw_bound"}
        reported = TrainingStep(vae, objective, sampling)(x, 0.0).metrics
        direct = objective(vae, x, 0.0).metrics
        assert not plain & reported.keys()
        assert {name.removesuffix("_own_past") for name in reported} == direct.keys() | {"sampling_rate"}
        assert plain & direct.keys()
    assert reported["sampling_rate"] == 1.0


FROM_THE_FIRST = ("sampling=scheduled", "sampling.rate.start=1.0", "trainer.log_every=1")


def test_a_validation_and_what_is_best_by_it_see_the_true_past(get_world: GetWorld, tmp_path: Path) -> None:
    runs = tmp_path / "plain", tmp_path / "own"
    for run, sampling in zip(runs, ((), FROM_THE_FIRST), strict=True):
        train_tiny(get_world("melody"), run, "optimizer.lr=1e-30", "data.workers=0", "trainer.log_every=1", *sampling)
    plain, own = runs
    for name in ("objective", "elbo", "log_likelihood"):
        assert curve(own, f"valid/{name}") == curve(plain, f"valid/{name}")
    assert curve(own, "train/loss") != curve(plain, "train/loss")
    assert [rate for _, rate in curve(own, "train/sampling_rate")] == [1.0] * 4
    with pytest.raises(KeyError):
        curve(own, "train/elbo")


def test_it_changes_what_is_learned_by_its_rate_at_that_time(get_world: GetWorld, tmp_path: Path) -> None:
    rates = {"plain": (), "still": ("sampling=scheduled", "sampling.rate.end=0.0"), "own": FROM_THE_FIRST}
    for name, overrides in rates.items():
        train_tiny(get_world("melody"), tmp_path / name, "data.workers=0", *overrides)
    final = {name: weights(tmp_path / name, 4) for name in rates}
    assert final["still"] == final["plain"] != final["own"]


def test_a_model_without_a_past_is_refused_before_the_run_begins(
    get_world: GetWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*get_world("fashion").overrides, "debug=smoke", "sampling=scheduled", f"run_dir={tmp_path / 'run'}"]
    assert main(["train", *command]) == 2
    said = capsys.readouterr().err.strip()
    assert "scheduled sampling replaces a sequence's past, and ConvDecoder has none" in said.splitlines()[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("rate", "passes", "message"),
    [
        (Constant(), 0, "passes must be a positive int, got 0"),
        (Constant(), True, "passes must be a positive int, got True"),
        (Constant(1.5), 1, "rate at the training's start must be a probability, got 1.5"),
        (Linear(0.0, -0.1), 1, "rate at the training's end must be a probability, got -0.1"),
        (0.5, 1, "rate must be a schedule, got 0.5"),
    ],
)
def test_numbers_that_make_no_sense_are_refused_by_name(rate: Schedule, passes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScheduledSampling(rate, passes)
