"""Objectives: what is weighted, what is floored, and what refuses to be combined."""

from typing import Any

import pytest
import torch
from torch import Tensor

from seqvae.objectives import BetaELBO
from seqvae.schedules import Constant, Linear
from seqvae.vae import VAE
from tests.helpers.linear_gaussian import linear_gaussian


@pytest.fixture
def world() -> tuple[VAE, Tensor]:
    vae, evidence = linear_gaussian(error=0.3)
    return vae, evidence.sample((64,))


def loss_of(objective: BetaELBO, world: tuple[VAE, Tensor], progress: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(0)
    result = objective(*world, progress)
    return result.loss, result.metrics


def test_at_beta_one_the_loss_is_the_negative_elbo(world: tuple[VAE, Tensor]) -> None:
    loss, metrics = loss_of(BetaELBO(Constant(1.0)), world)
    torch.testing.assert_close(loss.detach(), -metrics["elbo"])


@pytest.mark.parametrize("progress", [0.0, 0.1, 0.25, 1.0])
def test_beta_follows_its_schedule_and_the_elbo_does_not(world: tuple[VAE, Tensor], progress: float) -> None:
    beta = Linear(0.0, 2.0, share=0.5)
    loss, metrics = loss_of(BetaELBO(beta), world, progress)
    assert metrics["beta"] == pytest.approx(beta(progress))
    torch.testing.assert_close(loss.detach(), -metrics["log_likelihood"] + beta(progress) * metrics["kl"])
    torch.testing.assert_close(metrics["elbo"], metrics["log_likelihood"] - metrics["kl"])


def test_free_nats_floor_each_dimension_on_the_batch_mean(world: tuple[VAE, Tensor]) -> None:
    vae, x = world
    means = vae.encoder(x).kl_to_standard_normal().mean(0).detach()
    floor = float(means.min() + means.max()) / 2  # one dimension lies below, one above
    loss, metrics = loss_of(BetaELBO(Constant(1.0), free_nats=floor), world)
    paid = loss.detach() + metrics["log_likelihood"]
    torch.testing.assert_close(paid, torch.maximum(means, torch.tensor(floor)).sum().detach())


def test_free_nats_on_the_total_are_subtracted_from_each_example(world: tuple[VAE, Tensor]) -> None:
    vae, x = world
    totals = vae.encoder(x).kl_to_standard_normal().sum(-1).detach()
    allowance = float(totals.median())
    loss, metrics = loss_of(BetaELBO(Constant(1.0), free_nats_total=allowance), world)
    torch.testing.assert_close(
        loss.detach() + metrics["log_likelihood"], (totals - allowance).clamp(min=0).mean().detach()
    )


def test_beta_counts_with_free_nats_too(world: tuple[VAE, Tensor]) -> None:
    every: tuple[dict[str, Any], ...] = ({"free_nats": 0.3}, {"free_nats_total": 0.3}, {})
    for options in every:
        full, metrics = loss_of(BetaELBO(Constant(1.0), **options), world)
        half, _ = loss_of(BetaELBO(Constant(0.5), **options), world)
        paid = full.detach() + metrics["log_likelihood"]
        torch.testing.assert_close(half.detach() + metrics["log_likelihood"], 0.5 * paid)


def test_a_dimension_below_its_floor_has_no_gradient_from_the_kl(world: tuple[VAE, Tensor]) -> None:
    vae, x = world
    floor = 1e3
    posterior = vae.encoder(x)
    posterior.kl_to_standard_normal().mean(0).clamp(min=floor).sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in vae.encoder.parameters())


def test_several_samples_estimate_the_same_elbo_with_less_noise(world: tuple[VAE, Tensor]) -> None:
    def spread(samples: int) -> tuple[float, float]:
        torch.manual_seed(0)
        losses = torch.stack([BetaELBO(Constant(), samples=samples)(*world, 1.0).loss.detach() for _ in range(200)])
        return float(losses.mean()), float(losses.std())

    (mean_one, noise_one), (mean_many, noise_many) = spread(1), spread(16)
    assert mean_one == pytest.approx(mean_many, abs=4 * noise_one / 200**0.5)
    assert noise_many < 0.5 * noise_one


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"free_nats": -1.0}, "free_nats must be a number of nats >= 0, got -1.0"),
        ({"free_nats_total": float("nan")}, "free_nats_total must be a number of nats >= 0, got nan"),
        ({"free_nats": 1.0, "free_nats_total": 2.0}, "only one of them"),
        ({"samples": 0}, "samples must be a positive int, got 0"),
        ({"beta": 0.5}, "beta must be a schedule, got 0.5"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BetaELBO(**{"beta": Constant(), **options})  # type: ignore[arg-type]
