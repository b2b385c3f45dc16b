"""Points of latent space that show what it is: walks along its dimensions, the grid of its quantiles, its planes."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from seqvae.priors import PriorDistribution

DRAWS = 20_000  # of the prior, where only draws tell how far it reaches
CELLS = 10_001  # of the grid that a density is summed over
FARTHEST = 6.0  # normal score: what lies beyond has no share left that the sum could tell


def traverse(
    prior: PriorDistribution, centre: Float[Tensor, " latent"], dimensions: Sequence[int], scores: Sequence[float]
) -> Float[Tensor, "rows*columns latent"]:
    """Return a row for each dimension, in which it takes values of the prior and all else is the centre's.

    A score s stands for the prior's quantile at the share of N(0, 1) that lies below s: s itself for N(0, I), and
    farther out for a wider prior.

    Raises:
        ValueError: for a score beyond 6 either way.
    """
    if not all(abs(score) <= FARTHEST for score in scores):
        raise ValueError(f"scores must be between {-FARTHEST:g} and {FARTHEST:g}, got {list(scores)}")
    levels = torch.special.ndtr(torch.tensor(scores, dtype=torch.float64)).tolist()
    z = centre.repeat(len(dimensions), len(scores), 1)
    for row, dimension in enumerate(dimensions):
        z[row, :, dimension] = quantiles(prior, dimension, levels).to(z)
    return z.flatten(0, 1)


@torch.no_grad()
def quantiles(prior: PriorDistribution, dimension: int, levels: Sequence[float]) -> Float[Tensor, " levels"]:
    """Return the values that z of this dimension stays below with these probabilities; float64, on the CPU."""
    draws = _draws(prior)
    axis = torch.eye(draws.shape[1]).to(draws)[:, [dimension]]
    low, high = (draws @ axis).aminmax()
    reach = float(high - low) / 2  # what so many draws miss lies within it
    values = torch.linspace(float(low) - reach, float(high) + reach, CELLS)
    density = prior.projected_log_prob(values.to(draws).unsqueeze(-1), axis).cpu().double().exp()
    values = values.double()
    mass = torch.cumulative_trapezoid(density, values)
    wanted = torch.tensor(levels, dtype=torch.float64) * mass[-1]
    upper = torch.searchsorted(mass, wanted).clamp(1, len(mass) - 1)
    share = (wanted - mass[upper - 1]) / (mass[upper] - mass[upper - 1])
    return torch.lerp(values[upper], values[upper + 1], share)


def quantile_grid(
    prior: PriorDistribution, dimensions: tuple[int, int], side: int
) -> Float[Tensor, "side*side latent"]:
    """Return side * side latents at the middles of equally likely cells of two dimensions.

    The first grows from left to right and the second from below to above, as in a plot of them; all others are the
    prior's mean (Kingma & Welling, 2014, figure 4).

    Raises:
        ValueError: for a side that is not positive.
    """
    if side < 1:
        raise ValueError(f"the grid must be at least 1 wide, got {side}")
    levels = [(place + 0.5) / side for place in range(side)]
    across, upward = (quantiles(prior, dimension, levels) for dimension in dimensions)
    z = prior.mean.repeat(side, side, 1)
    z[..., dimensions[0]] = across.to(z)
    z[..., dimensions[1]] = upward.flip(0).to(z).unsqueeze(1)
    return z.flatten(0, 1)


def largest(amount: Float[Tensor, " latent"], count: int) -> list[int]:
    """Return the dimensions of the largest amount (KL, or variance of the means), the largest first."""
    return amount.argsort(descending=True, stable=True)[:count].tolist()


def two_of(amount: Float[Tensor, " latent"]) -> tuple[int, int]:
    """Return the two dimensions of the largest amount; of two the first and the second.

    Raises:
        ValueError: when there are fewer.
    """
    if len(amount) < 2:
        raise ValueError(f"two latent dimensions are needed, this model has {len(amount)}")
    first, second = (0, 1) if len(amount) == 2 else largest(amount, 2)
    return first, second


def principal_axes(means: Float[Tensor, "n latent"], count: int = 2) -> Float[Tensor, "latent count"]:
    """Return the orthonormal directions along which points vary most, the first most, each with its largest number
    positive.
    """
    centred = means.cpu().double() - means.cpu().double().mean(0)
    _, directions = torch.linalg.eigh(centred.T @ centred)  # the smallest variance first
    axes: Tensor = directions[:, -count:].flip(1)
    return (axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()).to(means)


@torch.no_grad()
def contour_levels(
    prior: PriorDistribution, axes: Float[Tensor, "latent axes"], masses: Sequence[float]
) -> Float[Tensor, " masses"]:
    """Return the log densities along axes above which these shares of the prior lie, in nats."""
    log_density = prior.projected_log_prob(_draws(prior) @ axes, axes)
    return torch.quantile(log_density, 1 - torch.tensor(masses).to(log_density))


def _draws(prior: PriorDistribution) -> Float[Tensor, "draws latent"]:
    """Return the same draws every time."""
    device = prior.mean.device
    return prior.sample(DRAWS, torch.Generator(device).manual_seed(0))
