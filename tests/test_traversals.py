"""Points of latent space to look at, against closed forms: quantiles, contours, projections, the KL of a dimension."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal

from seqvae.aggregate import RotatedMixture
from seqvae.evaluation import mean_kl_by_dimension
from seqvae.gaussian import DiagonalGaussian
from seqvae.priors import MixtureDistribution, PriorDistribution, StandardNormal
from seqvae.traversals import contour_levels, largest, principal_axes, quantile_grid, quantiles, traverse, two_of

NORMAL = StandardNormal(4)(nn.Identity())
LEVELS = [0.001, 0.05, 0.5, 0.8, 0.999]


def orthogonal(size: int, seed: int = 0) -> Tensor:
    square = torch.randn(size, size, generator=torch.Generator().manual_seed(seed))
    basis: Tensor = torch.linalg.qr(square).Q
    return basis


def mixture(components: int = 3, latent: int = 4) -> MixtureDistribution:
    generator = torch.Generator().manual_seed(1)
    mean, log_variance = torch.randn(2, components, latent, generator=generator)
    return MixtureDistribution(torch.randn(components, generator=generator), DiagonalGaussian(2 * mean, log_variance))


LAWS: dict[str, PriorDistribution] = {
    "normal": NORMAL,
    "mixture": mixture(),
    "rotated": RotatedMixture(orthogonal(4, seed=5), mixture()),
}


@pytest.mark.parametrize("name", LAWS)
def test_a_projection_on_all_axes_is_the_density_itself(name: str) -> None:
    law, axes, z = LAWS[name], orthogonal(4), torch.randn(3, 7, 4)
    torch.testing.assert_close(law.projected_log_prob(z @ axes, axes), law.log_prob(z), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LAWS)
def test_mean_and_deviation_of_a_law_are_those_of_its_draws(name: str) -> None:
    drawn = LAWS[name].sample(200_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(LAWS[name].mean, drawn.mean(0), atol=0.03, rtol=0.0)
    torch.testing.assert_close(LAWS[name].deviation, drawn.std(0), atol=0.0, rtol=0.01)


def test_a_mixture_projected_on_a_plane_is_torchs_mixture_of_full_gaussians() -> None:
    law, axes, points = mixture(), orthogonal(4)[:, :2], torch.randn(5, 9, 2)
    covariance = torch.stack([axes.T @ torch.diag(row.exp()) @ axes for row in law.components.log_variance])
    parts = MultivariateNormal(law.components.mean @ axes, covariance)
    truth = MixtureSameFamily(Categorical(logits=law.logits), parts)
    torch.testing.assert_close(law.projected_log_prob(points, axes), truth.log_prob(points), rtol=1e-4, atol=1e-4)


def test_quantiles_of_the_normal_are_those_of_its_inverse_distribution() -> None:
    truth = torch.special.ndtri(torch.tensor(LEVELS, dtype=torch.float64))
    torch.testing.assert_close(quantiles(NORMAL, 2, LEVELS), truth, atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("name", LAWS)
def test_so_many_draws_stay_below_a_quantile(name: str) -> None:
    drawn = LAWS[name].sample(200_000, torch.Generator().manual_seed(9))[:, 1]
    shares = torch.stack([(drawn < value).double().mean() for value in quantiles(LAWS[name], 1, LEVELS)])
    torch.testing.assert_close(shares, torch.tensor(LEVELS, dtype=torch.float64), atol=4e-3, rtol=0.0)


def test_the_grid_of_quantiles_is_a_plot_of_two_dimensions_with_the_others_at_the_mean() -> None:
    law = mixture()
    z = quantile_grid(law, (3, 1), side=3).view(3, 3, 4)
    across, upward = (quantiles(law, dimension, [1 / 6, 0.5, 5 / 6]).float() for dimension in (3, 1))
    for row in range(3):
        torch.testing.assert_close(z[row, :, 3], across)
        torch.testing.assert_close(z[:, row, 1], upward.flip(0))
    assert torch.equal(z[..., [0, 2]], law.mean[[0, 2]].expand(3, 3, 2))
    with pytest.raises(ValueError, match="at least 1 wide, got 0"):
        quantile_grid(law, (0, 1), side=0)


@pytest.mark.parametrize("name", LAWS)
def test_a_traversal_changes_one_dimension_a_row_and_nothing_else(name: str) -> None:
    law, centre, scores = LAWS[name], torch.randn(4), [-3.0, 0.0, 3.0]
    z = traverse(law, centre, [2, 0], scores).view(2, 3, 4)
    for row, dimension in enumerate((2, 0)):
        others = [d for d in range(4) if d != dimension]
        levels = Normal(0.0, 1.0).cdf(torch.tensor(scores, dtype=torch.float64)).tolist()
        torch.testing.assert_close(z[row, :, dimension], quantiles(law, dimension, levels).float())
        assert torch.equal(z[row][:, others], centre[others].expand(3, 3))


@pytest.mark.parametrize("deviation", [1.0, 6.0])
def test_a_traversal_reaches_as_far_as_the_prior_does(deviation: float) -> None:
    parts = DiagonalGaussian(torch.full((2, 4), 0.5), torch.full((2, 4), 2 * math.log(deviation)))
    scores = torch.tensor([-6.0, -3.0, 0.0, 1.5, 6.0])
    z = traverse(MixtureDistribution(torch.zeros(2), parts), torch.zeros(4), [3], scores.tolist())
    torch.testing.assert_close(z[:, 3], 0.5 + deviation * scores, atol=1e-4, rtol=1e-4)
    plain = traverse(NORMAL, torch.zeros(4), [3], scores.tolist())
    torch.testing.assert_close(plain[:, 3], scores, atol=1e-5, rtol=0.0)
    with pytest.raises(ValueError, match=r"scores must be between -6 and 6, got \[0.0, 7.0\]"):
        traverse(NORMAL, torch.zeros(4), [3], [0.0, 7.0])


def test_a_normals_contours_hold_the_mass_that_circles_do() -> None:
    masses = [0.99, 0.86, 0.39]
    squared_radii = torch.tensor([-2 * math.log1p(-mass) for mass in masses])  # mass = 1 - exp(-r^2 / 2)
    truth = -0.5 * squared_radii - math.log(2 * math.pi)
    torch.testing.assert_close(contour_levels(NORMAL, torch.eye(4)[:, :2], masses), truth, atol=0.1, rtol=0.0)


def test_principal_axes_are_the_eigenvectors_of_the_covariance() -> None:
    points = torch.randn(500, 3) @ torch.diag(torch.tensor([1.0, 3.0, 0.2])) @ orthogonal(3) + 7
    axes = principal_axes(points)
    _, vectors = torch.linalg.eigh(torch.cov(points.double().T))
    truth = vectors.flip(1)[:, :2].float()
    torch.testing.assert_close((axes * truth).sum(0).abs(), torch.ones(2), atol=1e-4, rtol=0.0)
    assert all(column[column.abs().argmax()] > 0 for column in axes.T)
    assert principal_axes(points[:1]).shape == (3, 2)


def test_two_dimensions_are_those_of_the_largest_kl_and_of_two_the_first_and_second() -> None:
    assert largest(torch.tensor([0.1, 2.0, 0.0, 1.0]), 3) == [1, 3, 0]
    assert two_of(torch.tensor([0.1, 2.0, 0.0, 3.0])) == (3, 1)
    assert two_of(torch.tensor([0.1, 2.0])) == (0, 1)
    with pytest.raises(ValueError, match="two latent dimensions are needed, this model has 1"):
        two_of(torch.tensor([0.1]))


def test_the_kl_of_a_dimension_is_the_closed_form_and_its_estimate_agrees() -> None:
    generator = torch.Generator().manual_seed(0)
    q = DiagonalGaussian(torch.randn(20_000, 4, generator=generator), torch.randn(20_000, 4, generator=generator) - 2)
    truth = mean_kl_by_dimension(q, NORMAL)
    torch.testing.assert_close(truth, q.kl_to_standard_normal().mean(0))
    twice = MixtureDistribution(torch.zeros(2), DiagonalGaussian(torch.zeros(2, 4), torch.zeros(2, 4)))  # N(0, I), too
    torch.testing.assert_close(mean_kl_by_dimension(q, twice, generator), truth, atol=0.03, rtol=0.0)
