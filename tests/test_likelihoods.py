"""Likelihoods of pixels against torch.distributions, brute-force sums over every level, and their own draws."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    Distribution,
    Normal,
    SigmoidTransform,
    TransformedDistribution,
    Uniform,
)
from torch.distributions import ContinuousBernoulli as TorchContinuousBernoulli

from seqvae.models import (
    Bernoulli,
    ContinuousBernoulli,
    DiscretizedGaussian,
    DiscretizedLogistic,
    MixtureOfLogistics,
    conv,
)
from seqvae.models.likelihoods import Likelihood

COMPONENTS = 3
OF_256: dict[str, Callable[[], Likelihood]] = {
    "gaussian": DiscretizedGaussian,
    "logistic": DiscretizedLogistic,
    "mixture": lambda: MixtureOfLogistics(COMPONENTS),
}
EVERY_LEVEL = torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 1)
LOGITS = torch.tensor([-80.0, -5.0, -0.31, -0.29, -1e-6, 0.0, 1e-3, 0.29, 0.31, 1.0, 20.0], dtype=torch.float64)


def bounded(log_scale: Tensor) -> Tensor:
    return torch.exp(4.5 * torch.tanh((log_scale + 2.5) / 4.5) - 2.5)


def logistic(mean: Tensor, scale: Tensor) -> Distribution:
    uniform = Uniform(torch.zeros_like(mean), torch.ones_like(mean))
    return TransformedDistribution(uniform, [SigmoidTransform().inv, AffineTransform(mean, scale)])


FAMILY: dict[str, Any] = {"gaussian": Normal, "logistic": logistic, "mixture": logistic}


def pixel(kind: str, channels: int = 1, log_scale: float | None = None, seed: int = 0) -> Tensor:
    """Return random parameters of one pixel [1 maps 1 1] in float64, all with one log-scale where it is given."""
    maps = OF_256[kind]().maps(channels, 256)
    parameters = torch.randn(1, maps, 1, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if log_scale is not None:
        each = parameters.view(COMPONENTS, -1)[:, 1:] if kind == "mixture" else parameters.view(1, -1)
        each[:, channels : 2 * channels] = log_scale
    return parameters


def log_probs(kind: str, parameters: Tensor, x: Tensor) -> Tensor:
    return OF_256[kind]().log_prob(parameters.expand(len(x), -1, -1, -1), x)


def bin_of(family: Any, mean: Tensor, scale: Tensor, level: int) -> Tensor:
    """Return P(level) as the difference of two values of the distribution function, -1 and 1 being the end levels."""
    lower, upper = ((2 * level + side) / 255 - 1 for side in (-1, 1))
    above = family(mean, scale).cdf(torch.full_like(mean, upper)) if level < 255 else torch.ones_like(mean)
    below = family(mean, scale).cdf(torch.full_like(mean, lower)) if level > 0 else torch.zeros_like(mean)
    return above - below


@pytest.mark.parametrize("kind", OF_256)
@pytest.mark.parametrize("log_scale", [-40.0, -5.0, -2.0, 0.0, 3.0, 40.0])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_the_probabilities_of_all_256_levels_sum_to_one(
    kind: str, log_scale: float, dtype: torch.dtype, error: float
) -> None:
    total = log_probs(kind, pixel(kind, log_scale=log_scale).to(dtype), EVERY_LEVEL).exp().sum()
    assert total.dtype == dtype
    assert total.item() == pytest.approx(1.0, abs=error)


@pytest.mark.parametrize("kind", OF_256)
@pytest.mark.parametrize("red", [0, 97, 255])
def test_the_probabilities_of_all_greens_and_blues_sum_to_that_of_the_red(kind: str, red: int) -> None:
    parameters = pixel(kind, channels=3)
    of_red = parameters.view(COMPONENTS if kind == "mixture" else 1, -1)
    of_red = of_red[:, [0, 1, 4]] if kind == "mixture" else of_red[:, [0, 3]]
    side = torch.arange(256, dtype=torch.uint8)
    others = torch.cartesian_prod(side, side)
    x = torch.cat([torch.full((len(others), 1), red, dtype=torch.uint8), others], 1).view(-1, 3, 1, 1)
    total = log_probs(kind, parameters, x).logsumexp(0)
    expected = log_probs(kind, of_red.reshape(1, -1, 1, 1), EVERY_LEVEL[red : red + 1])
    torch.testing.assert_close(total, expected[0])


@pytest.mark.parametrize("kind", ["gaussian", "logistic"])
@pytest.mark.parametrize("level", [0, 1, 128, 254, 255])
def test_a_level_has_the_probability_of_its_bin(kind: str, level: int) -> None:
    mean, log_scale = torch.randn(2, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parameters = torch.stack([mean, log_scale], 1).view(9, 2, 1, 1)
    scale = bounded(log_scale)
    found = OF_256[kind]().log_prob(parameters, torch.full((9, 1, 1, 1), level, dtype=torch.uint8))
    torch.testing.assert_close(found.exp(), bin_of(FAMILY[kind], mean, scale, level), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("colour", [(0, 3, 255), (80, 80, 81), (255, 0, 128)])
def test_a_mixtures_colour_has_the_probability_of_its_channels_one_given_the_other(colour: tuple[int, ...]) -> None:
    parameters = pixel("mixture", channels=3)
    x = torch.tensor(colour, dtype=torch.uint8).view(1, 3, 1, 1)
    r, g, _ = (2 * level / 255 - 1 for level in colour)
    total = torch.zeros((), dtype=torch.float64)
    rows = parameters.view(COMPONENTS, 10)
    weights = rows[:, 0].softmax(0)
    for weight, row in zip(weights, rows, strict=True):
        mean, scale, (a, b, c) = row[1:4], bounded(row[4:7]), row[7:].tanh()
        means = (mean[0], mean[1] + a * r, mean[2] + b * r + c * g)
        parts = [bin_of(logistic, m, s, level) for m, s, level in zip(means, scale, colour, strict=True)]
        total += weight * parts[0] * parts[1] * parts[2]
    torch.testing.assert_close(log_probs("mixture", parameters, x)[0], total.log())


@pytest.mark.parametrize("kind", ["gaussian", "logistic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_level_far_from_the_mean_keeps_its_probability_and_its_gradient(kind: str, dtype: torch.dtype) -> None:
    """Far out both values of the distribution function are 0 or 1 and their difference nothing; the bin is not."""
    for mean, level in ((-0.9, 220), (0.9, 20)):
        log_scale = torch.tensor(-4.0, dtype=torch.float64)
        scale = bounded(log_scale)
        width = 2 / 255
        grid = (level * width - 1) + width * ((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000 - 0.5)
        density = FAMILY[kind](torch.full_like(grid, mean), scale.expand_as(grid)).log_prob(grid)
        expected = density.logsumexp(0) + math.log(width / 20_000)
        parameters = torch.tensor([mean, -4.0], dtype=dtype).view(1, 2, 1, 1).requires_grad_()
        found = OF_256[kind]().log_prob(parameters, torch.full((1, 1, 1, 1), level, dtype=torch.uint8))
        torch.testing.assert_close(found[0].double(), expected, rtol=1e-5, atol=1e-4)
        assert expected < -60
        found.sum().backward()
        assert parameters.grad is not None
        towards = parameters.grad.flatten()
        assert towards.isfinite().all()
        assert towards[0].sign() == (1 if level > 128 else -1)  # the mean goes to the pixel
        assert towards[1] > 0  # and the scale grows


@pytest.mark.parametrize("kind", OF_256)
def test_every_level_of_a_wild_network_has_a_finite_gradient_in_float32(kind: str) -> None:
    for spread in (0.0, 1.0, 30.0):
        parameters = spread * pixel(kind, channels=3).float().expand(256, -1, -1, -1)
        parameters = parameters.clone().requires_grad_()
        OF_256[kind]().log_prob(parameters, EVERY_LEVEL.expand(-1, 3, -1, -1)).sum().backward()
        assert parameters.grad is not None
        assert parameters.grad.isfinite().all(), spread


@pytest.mark.parametrize("kind", ["gaussian", "logistic", "mixture"])
@pytest.mark.parametrize("log_scale", [-6.0, -2.0, 1.0])
def test_the_expected_pixel_is_the_sum_over_levels_to_half_a_level(kind: str, log_scale: float) -> None:
    for seed in range(5):
        parameters = pixel(kind, log_scale=log_scale, seed=seed)
        probabilities = log_probs(kind, parameters, EVERY_LEVEL).exp()
        expected = (probabilities * torch.arange(256) / 255).sum()
        assert OF_256[kind]().mean(parameters).item() == pytest.approx(expected.item(), abs=0.51 / 255)


@pytest.mark.parametrize("kind", OF_256)
@pytest.mark.parametrize("channels", [1, 3])
def test_draws_are_levels_and_as_frequent_as_their_probabilities(kind: str, channels: int) -> None:
    parameters = pixel(kind, channels, log_scale=-1.0)
    many = 40_000
    drawn = OF_256[kind]().sample(parameters.expand(many, -1, -1, -1), generator=torch.Generator().manual_seed(0))
    levels = (drawn * 255).round()
    torch.testing.assert_close(drawn * 255, levels, rtol=0.0, atol=1e-9)
    # the mean of -log p over draws is the entropy; cheaper and stricter than a histogram of 256^3 colours
    nats = log_probs(kind, parameters, levels.to(torch.uint8))
    if channels == 1:
        every = log_probs(kind, parameters, EVERY_LEVEL)
        entropy = -(every.exp() * every).sum()
        assert -nats.mean().item() == pytest.approx(entropy.item(), abs=4 * nats.std().item() / many**0.5)
        share = (levels.flatten().long().bincount(minlength=256) / many).double()
        assert (share - every.exp()).abs().max() < 5 * math.sqrt(0.25 / many)
    expected = OF_256[kind]().mean(parameters).flatten()
    torch.testing.assert_close(drawn.mean(0).flatten(), expected, rtol=0.0, atol=0.02)


@pytest.mark.parametrize("kind", [*OF_256, "continuous"])
def test_a_low_temperature_draws_nearer_to_what_is_likely(kind: str) -> None:
    likelihood = ContinuousBernoulli() if kind == "continuous" else OF_256[kind]()
    parameters = torch.full((1, 1, 1, 1), 2.0).double() if kind == "continuous" else pixel(kind, log_scale=-1.0)
    warm, cold = (
        likelihood.sample(parameters.expand(2000, -1, -1, -1), temperature, torch.Generator().manual_seed(0))
        for temperature in (1.0, 0.1)
    )
    assert cold.std() < 0.7 * warm.std()


def test_the_continuous_bernoulli_is_torchs() -> None:
    x = torch.tensor([0, 1, 100, 255], dtype=torch.uint8)
    pairs = torch.cartesian_prod(LOGITS, x.double() / 255)
    truth = TorchContinuousBernoulli(logits=pairs[:, 0])
    parameters = pairs[:, 0].view(-1, 1, 1, 1)
    found = ContinuousBernoulli().log_prob(parameters, (pairs[:, 1] * 255).round().to(torch.uint8).view(-1, 1, 1, 1))
    inside = pairs[:, 0].abs() < 30  # torch works with probabilities: beyond, no digit is left of them
    torch.testing.assert_close(found[inside], truth.log_prob(pairs[:, 1])[inside], rtol=1e-6, atol=1e-6)


def test_the_continuous_bernoulli_integrates_to_one() -> None:
    densities = ContinuousBernoulli().log_prob(
        LOGITS.view(-1, 1, 1, 1).repeat_interleave(256, 0), EVERY_LEVEL.repeat(11, 1, 1, 1)
    )
    integral = torch.trapezoid(densities.exp().view(11, 256), dx=1 / 255, dim=1)
    assert (integral - 1).abs()[LOGITS.abs() < 6].max() < 1e-4
    assert (integral - 1).abs()[LOGITS.abs() >= 6].max() < 0.02


def test_the_continuous_bernoullis_expectation_is_the_gradient_of_its_normaliser() -> None:
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-6)):
        logits = LOGITS.to(dtype).view(-1, 1, 1, 1).requires_grad_()
        ContinuousBernoulli().log_prob(logits, torch.zeros(11, 1, 1, 1, dtype=torch.uint8)).sum().backward()
        assert logits.grad is not None
        expected = ContinuousBernoulli().mean(logits.detach())
        torch.testing.assert_close(-logits.grad, expected, rtol=0.0, atol=tolerance)
        assert ((expected > 0) & (expected < 1)).all()
        assert expected[5].item() == 0.5


def test_draws_of_the_continuous_bernoulli_have_its_expectation() -> None:
    parameters = LOGITS.view(1, 1, 1, -1)
    drawn = ContinuousBernoulli().sample(
        parameters.expand(40_000, -1, -1, -1), generator=torch.Generator().manual_seed(0)
    )
    assert 0 <= drawn.min() <= drawn.max() <= 1
    torch.testing.assert_close(drawn.mean(0), ContinuousBernoulli().mean(parameters)[0], rtol=0.0, atol=0.006)


def test_only_the_continuous_bernoulli_is_a_density() -> None:
    assert ContinuousBernoulli().is_density
    assert not any(likelihood.is_density for likelihood in (Bernoulli(), *(make() for make in OF_256.values())))


@pytest.mark.parametrize(
    ("likelihood", "levels", "message"),
    [
        (Bernoulli(), 256, r"Bernoulli likelihood needs pixels of 2 levels \(data.view.binarize=true\), got 256"),
        (ContinuousBernoulli(), 2, r"needs pixels of 256 levels \(data.view.binarize=false\), got 2"),
        (DiscretizedGaussian(), 2, "discretized Gaussian likelihood needs pixels of 256 levels"),
        (DiscretizedLogistic(), 2, "discretized logistic likelihood needs pixels of 256 levels"),
        (MixtureOfLogistics(), 2, "mixture of logistics likelihood needs pixels of 256 levels"),
    ],
)
def test_a_likelihood_refuses_pixels_of_other_levels(likelihood: Likelihood, levels: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        conv(image_shape=(1, 8, 8), levels=levels, likelihood=likelihood)


def test_a_mixture_needs_components() -> None:
    with pytest.raises(ValueError, match="components must be a positive int, got 0"):
        MixtureOfLogistics(0)


LIKELIHOODS: list[Likelihood] = [
    ContinuousBernoulli(),
    DiscretizedGaussian(),
    DiscretizedLogistic(),
    MixtureOfLogistics(2),
]


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda likelihood: type(likelihood).__name__)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 9, 14), (1, 64, 64)])
def test_pictures_of_any_size_and_colour_come_back_in_shape(
    likelihood: Likelihood, shape: tuple[int, int, int]
) -> None:
    encoder, decoder = conv(image_shape=shape, levels=256, latent_dim=3, width=4, features=8, likelihood=likelihood)
    x = torch.randint(0, 256, (2, *shape), dtype=torch.uint8)
    z = encoder(x).mean
    assert decoder.log_prob(x, z).shape == (2,)
    assert decoder.log_prob(x, z).isfinite().all()
    assert decoder.predict(x, z).shape == decoder.sample(z).shape == x.shape
    assert decoder.is_density == likelihood.is_density


def test_pixels_are_drawn_by_the_generator_alone() -> None:
    for likelihood in LIKELIHOODS:
        parameters = torch.zeros(1, likelihood.maps(3, 256), 4, 4)
        first, again = (likelihood.sample(parameters, generator=torch.Generator().manual_seed(5)) for _ in range(2))
        assert torch.equal(first, again)
