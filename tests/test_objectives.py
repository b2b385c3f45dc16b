"""Objectives: what is weighted, what is floored, and what refuses to be combined."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seqvae.objectives import IWAE, Autoencoder, BetaELBO, CapacityELBO, DReG, TargetRate
from seqvae.priors import MixtureDistribution, MixtureOfGaussians, Prior
from seqvae.schedules import Constant, Linear
from seqvae.vae import VAE
from tests.helpers.linear_gaussian import linear_gaussian


@pytest.fixture
def world() -> tuple[VAE, Tensor]:
    vae, evidence = linear_gaussian(error=0.3)
    torch.manual_seed(0)
    return vae, evidence.sample((64,))


def loss_of(objective: Any, world: tuple[VAE, Tensor], progress: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
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


def encoder_gradient(objective: Any, world: tuple[VAE, Tensor]) -> Tensor:
    """Return the loss's gradient in the mean's weights and the log-variance of each dimension: [latent parameters]."""
    world[0].zero_grad()
    loss_of(objective, world)[0].backward()
    found = [world[0].get_parameter(f"encoder.{name}").grad for name in ("weight", "log_variance")]
    return torch.cat([gradient.view(2, -1) for gradient in found if gradient is not None], 1)


def test_a_dimension_below_its_floor_has_no_gradient_from_the_kl_and_one_above_has_all_of_it(
    world: tuple[VAE, Tensor],
) -> None:
    vae, x = world
    means = vae.encoder(x).kl_to_standard_normal().mean(0).detach()
    free, paid = (encoder_gradient(BetaELBO(Constant(beta)), world) for beta in (0.0, 1.0))
    assert ((free - paid).abs() > 1e-3).all()
    floored = encoder_gradient(BetaELBO(Constant(1.0), free_nats=float(means.mean())), world)
    below = (means < means.mean()).unsqueeze(1)
    assert below.sum() == 1
    torch.testing.assert_close(floored, torch.where(below, free, paid))


def test_free_nats_on_the_total_are_free_where_the_kl_is_an_estimate(world: tuple[VAE, Tensor]) -> None:
    """A mixture of one standard normal: the same prior, whose KL is drawn. All examples are one, so its KL is known."""
    vae, x = world
    many = x[:1].expand(4000, -1)
    exact = float(vae.encoder(x[:1]).kl_to_standard_normal().sum().detach())
    vae.prior = MixtureOfGaussians(2, components=1).double()
    nn.init.zeros_(vae.prior.get_parameter("mean"))
    torch.manual_seed(0)
    estimate = vae.terms(many).total_kl.detach()
    assert (estimate - exact - 0.5).clamp(min=0).mean() > 0.1  # what clamping every estimate would cost
    for allowance, price in ((exact + 0.5, 0.0), (exact - 0.5, 0.5)):
        objective = BetaELBO(Constant(1.0), free_nats_total=allowance)
        loss, metrics = loss_of(objective, (vae, many))
        assert float(loss.detach() + metrics["log_likelihood"]) == pytest.approx(price, abs=0.1)
        same = encoder_gradient(BetaELBO(Constant(1.0 if price else 0.0)), (vae, many))
        torch.testing.assert_close(encoder_gradient(objective, (vae, many)), same)


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


@pytest.mark.parametrize("capacity", [0.0, 0.5, 50.0])
def test_capacity_prices_the_distance_of_the_mean_kl_from_it_on_either_side(
    world: tuple[VAE, Tensor], capacity: float
) -> None:
    loss, metrics = loss_of(CapacityELBO(Linear(0.0, capacity, share=0.5), gamma=3.0), world, progress=0.25)
    assert metrics["capacity"] == pytest.approx(capacity / 2)
    paid = loss.detach() + metrics["log_likelihood"]
    torch.testing.assert_close(paid, 3.0 * (metrics["kl"] - capacity / 2).abs())
    assert float(metrics["elbo"]) == pytest.approx(float(metrics["log_likelihood"] - metrics["kl"]))


def test_what_is_not_linear_in_the_mean_kl_asks_for_that_of_all_processes(world: tuple[VAE, Tensor]) -> None:
    def everywhere(values: Tensor) -> Tensor:
        return torch.full_like(values.mean(0), 7.0)

    estimated, _ = linear_gaussian()
    estimated.prior = MixtureOfGaussians(2, components=3).double()
    for priced, vae in (
        (CapacityELBO(Constant(2.0), gamma=1.0), world[0]),
        (BetaELBO(Constant(1.0), free_nats_total=2.0), estimated),
    ):
        loss, metrics = priced(vae, world[1], 1.0, everywhere)
        torch.testing.assert_close(loss.detach(), 5.0 - metrics["log_likelihood"])
    high, low = TargetRate(nats=1.0), TargetRate(nats=100.0)
    for objective in (high, low):
        objective(*world, 0.0, everywhere)
    assert high.log_beta > math.log(0.01) > low.log_beta


def test_the_autoencoder_decodes_the_mean_and_pays_no_kl(world: tuple[VAE, Tensor]) -> None:
    vae, x = world
    loss, metrics = loss_of(Autoencoder(), world)
    oracle = vae.decoder.log_prob(x, vae.encoder(x).mean).mean()
    torch.testing.assert_close(loss, -oracle)
    assert set(metrics) == {"log_likelihood_at_mean"}  # without noise there is no ELBO to report
    loss.backward()
    gradients = [parameter.grad for parameter in vae.parameters()]
    assert all(gradient is not None for gradient in gradients)  # processes that add them up want every one
    variance = vae.get_parameter("encoder.log_variance").grad
    assert variance is not None
    assert not variance.any()


def test_the_autoencoders_elbo_is_that_of_a_vae_and_drawn_in_validation_alone(world: tuple[VAE, Tensor]) -> None:
    vae, x = world
    vae.eval()
    _, metrics = loss_of(Autoencoder(), world)
    torch.manual_seed(0)
    torch.testing.assert_close(metrics["elbo"], vae.terms(x).elbo.detach().mean())
    assert metrics["log_likelihood"] < metrics["log_likelihood_at_mean"]


def test_the_autoencoder_alone_has_no_noise_and_refuses_a_prior_that_it_would_not_train(
    world: tuple[VAE, Tensor],
) -> None:
    kinds = (Autoencoder, BetaELBO, CapacityELBO, DReG, IWAE, TargetRate)
    assert [kind for kind in kinds if not kind.noise] == [Autoencoder]
    vae, x = world
    vae.prior = MixtureOfGaussians(2, components=3).double()
    with pytest.raises(ValueError, match="an autoencoder has no KL to train a MixtureOfGaussians with"):
        Autoencoder()(vae, x, 0.0)


@pytest.mark.parametrize("kind", [IWAE, DReG])
def test_the_importance_weighted_loss_lies_between_elbo_and_evidence(kind: Any) -> None:
    vae, evidence = linear_gaussian(error=0.3)
    x = evidence.sample((4000,))
    exact = float(evidence.log_prob(x).mean())
    bounds = []
    for samples in (1, 5, 50):
        loss, metrics = loss_of(kind(Constant(1.0), samples=samples), (vae, x))
        torch.testing.assert_close(-loss.detach(), metrics["iw_bound"])
        bounds.append(float(metrics["iw_bound"]))
    assert bounds[0] < bounds[1] < bounds[2] < exact + 0.02
    assert bounds[2] == pytest.approx(exact, abs=0.02)
    assert bounds[0] == pytest.approx(float(metrics["elbo"]), abs=0.05)


@pytest.mark.parametrize("kind", [IWAE, DReG])
def test_the_importance_weighted_loss_is_exact_when_the_posterior_is(kind: Any) -> None:
    vae, evidence = linear_gaussian()
    x = evidence.sample((16,))
    loss, _ = loss_of(kind(Constant(1.0), samples=3), (vae, x))
    torch.testing.assert_close(-loss.detach(), evidence.log_prob(x).mean(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", [IWAE, DReG])
@pytest.mark.parametrize("beta", [0.0, 0.4])
def test_beta_weighs_the_importance_weights_and_not_the_bound(
    world: tuple[VAE, Tensor], kind: Any, beta: float
) -> None:
    loss, metrics = loss_of(kind(Constant(beta), samples=4), world)
    torch.manual_seed(0)
    terms = world[0].terms(world[1], 4)
    weighted = terms.log_likelihood + beta * (terms.log_prior - terms.log_posterior)
    torch.testing.assert_close(loss, -(weighted.logsumexp(0) - math.log(4)).mean())
    torch.testing.assert_close(metrics["iw_bound"], (terms.log_weights.logsumexp(0) - math.log(4)).mean().detach())


def gradients(objective: Any, vae: VAE, x: Tensor, draws: int) -> dict[str, Tensor]:
    """Return the gradient of each parameter in each of many draws: [draws parameters]."""
    rows: dict[str, list[Tensor]] = {}
    torch.manual_seed(0)
    for _ in range(draws):
        vae.zero_grad()
        objective(vae, x, 1.0).loss.backward()
        for name, parameter in vae.named_parameters():
            assert parameter.grad is not None
            rows.setdefault(name.split(".")[0], []).append(parameter.grad.flatten().clone())
    width = {"encoder": 2, "decoder": 1}
    return {
        part: torch.cat([torch.stack(some[start :: width[part]]) for start in range(width[part])], 1)
        for part, some in rows.items()
    }


@pytest.mark.parametrize("beta", [0.3, 1.0, 4.0])
def test_the_encoder_that_is_optimal_for_a_beta_has_no_gradient_there_and_one_at_another(beta: float) -> None:
    vae, evidence = linear_gaussian(beta=beta)
    torch.manual_seed(0)
    x, draws = evidence.sample((32,)), 100
    here, elsewhere = (
        gradients(BetaELBO(Constant(weight), samples=16), vae, x, draws)["encoder"] for weight in (beta, 1.5 * beta)
    )
    errors = [found.mean(0).abs() / (found.var(0) / draws).sqrt() for found in (here, elsewhere)]
    assert errors[0].max() < 4
    assert errors[1].median() > 10


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_the_doubly_reparameterised_gradient_has_iwaes_mean_and_less_noise(beta: float) -> None:
    vae, evidence = linear_gaussian(error=0.6)
    x = evidence.sample((32,))
    draws = 300
    found = {kind: gradients(kind(Constant(beta), samples=16), vae, x, draws) for kind in (IWAE, DReG)}
    for part in ("encoder", "decoder"):
        one, other = found[IWAE][part], found[DReG][part]
        error = ((one.var(0) + other.var(0)) / draws).sqrt()
        assert ((one.mean(0) - other.mean(0)).abs() < 4 * error).all(), part
        # the agreement means something: there are gradients that are many errors away from zero
        assert (one.mean(0).abs() > 10 * error).any(), part
    assert (found[DReG]["encoder"].var(0) < 0.5 * found[IWAE]["encoder"].var(0)).all()


class PosteriorsOfPoints(Prior):
    """A prior as a VampPrior is one, of points that are not learned: all its gradient goes to the encoder."""

    def __init__(self, points: Tensor) -> None:
        super().__init__(2)
        self.points = points

    def forward(self, encoder: nn.Module) -> MixtureDistribution:
        return MixtureDistribution(torch.zeros(len(self.points)).double(), encoder(self.points))


def test_the_doubly_reparameterised_gradient_has_iwaes_mean_where_the_prior_is_made_of_posteriors() -> None:
    vae, evidence = linear_gaussian(error=0.6)
    x, draws = evidence.sample((32,)), 300
    with_standard = gradients(DReG(Constant(1.0), samples=16), vae, x, 50)["encoder"]
    vae.prior = PosteriorsOfPoints(evidence.sample((3,)))
    one, other = (
        gradients(objective, vae, x, draws)["encoder"]
        for objective in (IWAE(Constant(1.0), samples=16), DReG(Constant(1.0), samples=16))
    )
    error = ((one.var(0) + other.var(0)) / draws).sqrt()
    assert ((one.mean(0) - other.mean(0)).abs() < 4 * error).all()
    assert ((one.mean(0) - with_standard.mean(0)).abs() > 10 * error).any()  # the prior has a say in it


def test_with_an_exact_posterior_the_doubly_reparameterised_gradient_of_the_encoder_has_no_noise() -> None:
    vae, evidence = linear_gaussian()
    x = evidence.sample((8,))
    assert gradients(IWAE(Constant(1.0)), vae, x, 2)["encoder"].abs().max() > 1e-3
    assert gradients(DReG(Constant(1.0)), vae, x, 2)["encoder"].abs().max() < 1e-12


@pytest.mark.parametrize("nats", [0.4, 1.5])
@pytest.mark.parametrize("kind", ["target_rate", "capacity"])
def test_a_rate_is_held_by_a_model_that_is_free_to_take_any(kind: str, nats: float) -> None:
    vae, evidence = linear_gaussian(error=0.3)
    held: dict[str, Any] = {
        "target_rate": lambda: TargetRate(nats, gain=0.05),
        "capacity": lambda: CapacityELBO(Constant(nats), gamma=10.0),
    }
    objective = held[kind]()
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.02)
    torch.manual_seed(0)
    rates = []
    for _ in range(600):
        result = objective(vae, evidence.sample((64,)), 0.0)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        rates.append(float(result.metrics["kl"]))
    assert sum(rates[-100:]) / 100 == pytest.approx(nats, rel=0.05)
    assert max(rates[:100]) > 1.2 * nats  # where it began, or went at the low beta of the controller


def test_a_target_rate_is_a_beta_elbo_at_the_beta_it_reports(world: tuple[VAE, Tensor]) -> None:
    loss, metrics = loss_of(TargetRate(nats=1.0, start=0.3), world)
    torch.testing.assert_close(loss.detach(), -metrics["log_likelihood"] + metrics["beta"] * metrics["kl"])
    assert 0 < metrics["beta"] < 1


def test_a_validation_leaves_the_controller_alone_and_does_not_depend_on_it(world: tuple[VAE, Tensor]) -> None:
    losses = []
    for start in (0.01, 0.5):
        objective = TargetRate(nats=5.0, start=start)
        before = objective.log_beta.clone()
        world[0].eval()
        loss, metrics = loss_of(objective, world)
        assert torch.equal(objective.log_beta, before)
        world[0].train()
        loss_of(objective, world)
        assert not torch.equal(objective.log_beta, before)
        losses.append(loss.detach())
    assert torch.equal(*losses)
    torch.testing.assert_close(losses[0], -metrics["log_likelihood"] + 10.0 * (metrics["kl"] - 5.0).abs())


def test_a_step_that_is_not_finite_does_not_move_the_controller(world: tuple[VAE, Tensor]) -> None:
    objective = TargetRate(nats=5.0)
    before = objective.log_beta.clone()
    objective(*world, 0.0, lambda values: torch.full_like(values[0], math.nan))
    assert torch.equal(objective.log_beta, before)
    objective(*world, 0.0)
    assert not torch.equal(objective.log_beta, before)


def test_the_controller_refuses_a_number_format_it_cannot_count_in(world: tuple[VAE, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"cannot count in torch\.bfloat16: use trainer\.precision=bf16-mixed"):
        TargetRate(nats=5.0).bfloat16()(*world, 0.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CapacityELBO(Constant(1.0), gamma=0.0), "gamma must be a positive number, got 0.0"),
        (
            lambda: CapacityELBO(Linear(0.0, -2.0)),
            "capacity at the training's end must be a number of nats >= 0, got -2",
        ),
        (lambda: CapacityELBO(25.0), "capacity must be a schedule, got 25.0"),  # type: ignore[arg-type]
        (lambda: IWAE(Constant(), samples=0), "samples must be a positive int, got 0"),
        (lambda: DReG(Constant(), samples=2.5), "samples must be a positive int, got 2.5"),  # type: ignore[arg-type]
        (lambda: DReG(1.0), "beta must be a schedule, got 1.0"),  # type: ignore[arg-type]
        (lambda: TargetRate(nats=0), "nats must be a positive number, got 0"),
        (lambda: TargetRate(nats="8"), "nats must be a positive number, got '8'"),  # type: ignore[arg-type]
        (lambda: TargetRate(nats=8, start=20.0), "start must lie between lowest=0.0001 and highest=10.0, got 20.0"),
    ],
)
def test_numbers_that_make_no_sense_are_refused_by_name(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_free_nats_for_each_dimension_need_a_prior_with_a_closed_form() -> None:
    vae, evidence = linear_gaussian()
    vae.prior = MixtureOfGaussians(2, components=3).double()
    with pytest.raises(ValueError, match="this prior has none, use free_nats_total"):
        BetaELBO(Constant(), free_nats=0.1)(vae, evidence.sample((4,)), 1.0)
