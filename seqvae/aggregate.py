"""The aggregate posterior q(z) = E[q(z|x)] over the data: a mixture of Gaussians fitted to it, to draw latents from.

Where the KL weighs little, posteriors fill another part of latent space than the prior, and what the decoder makes of
the prior's draws is none of its training. The mixture's components are diagonal along the axes of the aggregate
posterior's own covariance: one component is the full Gaussian with its mean and covariance.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from seqvae.gaussian import LOG_TWO_PI, VARIANCE_FLOOR, DiagonalGaussian
from seqvae.priors import MixtureDistribution

COMPONENTS = 10
ROUNDS = 100  # of EM at most
ENOUGH = 1e-3  # nats that a round must gain, or it is the last
SHRINKAGE = 10.0  # so many windows' worth of the common variance are added to each component's own


@dataclass(frozen=True)
class RotatedMixture:
    """A mixture of Gaussians that are diagonal along the columns of an orthogonal `basis`."""

    basis: Float[Tensor, "latent latent"]
    mixture: MixtureDistribution  # of z @ basis

    @property
    def mean(self) -> Float[Tensor, " latent"]:
        """E[z]."""
        return self.basis @ self.mixture.mean

    @property
    def deviation(self) -> Float[Tensor, " latent"]:
        """The standard deviation of each dimension of z."""
        components = self.mixture.components
        within = components.log_variance.exp() @ self.basis.T.square()
        between = (components.mean @ self.basis.T - self.mean).square()
        return (torch.softmax(self.mixture.logits, 0) @ (within + between)).sqrt()

    def log_prob(self, z: Float[Tensor, "*samples batch latent"]) -> Float[Tensor, "*samples batch"]:
        """Return the log density in nats."""
        return self.mixture.log_prob(z @ self.basis)

    def projected_log_prob(
        self, points: Float[Tensor, "*n axes"], axes: Float[Tensor, "latent axes"]
    ) -> Float[Tensor, "*n"]:
        """Return the log density of z @ axes in nats; see `PriorDistribution.projected_log_prob`."""
        return self.mixture.projected_log_prob(points, self.basis.T @ axes)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n latent"]:
        """Draw n latents."""
        return self.mixture.sample(n, generator) @ self.basis.T

    def walk(
        self, z: Float[Tensor, "n latent"], drift: float, generator: torch.Generator | None = None
    ) -> Float[Tensor, "n latent"]:
        """Return a neighbour of each latent; see `PriorDistribution.walk`."""
        return self.mixture.walk(z @ self.basis, drift, generator) @ self.basis.T

    def kl(self, posterior: DiagonalGaussian) -> None:
        """Return None: there is no closed form."""
        return None

    def tensors(self) -> dict[str, Tensor]:
        """Return what a file keeps of it."""
        components = self.mixture.components
        return {
            "basis": self.basis,
            "logits": self.mixture.logits,
            "mean": components.mean,
            "log_variance": components.log_variance,
        }


def from_tensors(tensors: dict[str, Tensor], latent_dim: int) -> RotatedMixture:
    """Return the mixture of `RotatedMixture.tensors`.

    Raises:
        ValueError: when they are no mixture over so many latent dimensions.
    """
    names = ("basis", "logits", "mean", "log_variance")
    if sorted(tensors) != sorted(names):
        raise ValueError(f"it holds {', '.join(sorted(tensors)) or 'nothing'}, not {', '.join(names)}")
    basis, logits, mean, log_variance = (tensors[name].float() for name in names)
    components = len(logits) if logits.ndim == 1 else 0
    wanted = [(latent_dim, latent_dim), (max(components, 1),), *[(max(components, 1), latent_dim)] * 2]
    found = [tuple(tensor.shape) for tensor in (basis, logits, mean, log_variance)]
    if found != wanted:
        raise ValueError(f"its shapes are {found}, no mixture over {latent_dim} latent dimensions")
    if not all(bool(tensor.isfinite().all()) for tensor in (basis, logits, mean, log_variance)):
        raise ValueError("it holds numbers that are not finite")
    return RotatedMixture(basis, MixtureDistribution(logits, DiagonalGaussian(mean, log_variance)))


class _Components(NamedTuple):
    """A mixture while it is fitted, in float64."""

    log_weight: Float[Tensor, " components"]
    mean: Float[Tensor, "components latent"]
    variance: Float[Tensor, "components latent"]


def fit_aggregate(posterior: DiagonalGaussian, components: int = COMPONENTS, seed: int = 0) -> RotatedMixture:
    """Return a mixture fitted to the posteriors, whose variances count beside their means.

    EM in float64 climbs mean_n log sum_k w_k exp E[log N_k(z)], E over q(z|x_n): by Jensen's inequality a lower bound
    of the mean of E[log sum_k w_k N_k(z)], which is the likelihood of endless draws from the aggregate posterior.
    It starts from means drawn with the seed; there are at most as many components as posteriors.

    Raises:
        ValueError: without posteriors or components, or for a posterior that is not finite.
    """
    mean = posterior.mean.cpu().double()
    variance = posterior.log_variance.cpu().double().exp().clamp(min=VARIANCE_FLOOR)  # points may all agree
    if components < 1 or len(mean) == 0:
        raise ValueError(f"components and posteriors must be at least 1, got {components} and {len(mean)}")
    if not bool(mean.isfinite().all() and variance.isfinite().all()):
        raise ValueError("a posterior is not finite")
    centred = mean - mean.mean(0)
    covariance = centred.T @ centred / len(mean) + torch.diag(variance.mean(0))
    _, basis = torch.linalg.eigh(covariance)
    mean, squares = mean @ basis, (mean @ basis).square() + variance @ basis.square()
    fitted = _expectation_maximization(mean, squares, min(components, len(mean)), seed)
    parts = DiagonalGaussian(fitted.mean.float(), fitted.variance.log().float())
    return RotatedMixture(basis.float(), MixtureDistribution(fitted.log_weight.float(), parts))


def _expectation_maximization(
    mean: Float[Tensor, "n latent"], squares: Float[Tensor, "n latent"], components: int, seed: int
) -> _Components:
    """Fit components to posteriors, given their means and E[z^2] of each dimension."""
    common = squares.mean(0) - mean.mean(0).square()
    start = torch.randperm(len(mean), generator=torch.Generator().manual_seed(seed))[:components]
    weight = torch.full((components,), -math.log(components), dtype=torch.float64)
    fitted, before = _Components(weight, mean[start], common.expand(components, -1)), -math.inf
    for _ in range(ROUNDS):
        log_joint = _expected_log_densities(fitted, mean, squares) + fitted.log_weight
        total = log_joint.logsumexp(1)
        if (now := float(total.mean())) - before < ENOUGH:
            break
        before = now
        share = (log_joint - total.unsqueeze(1)).exp()
        counts = share.sum(0).clamp(min=1e-9).unsqueeze(1)  # of a component that nothing belongs to
        centre = share.T @ mean / counts
        own = share.T @ squares / counts - centre.square()
        spread = (counts * own + SHRINKAGE * common) / (counts + SHRINKAGE)
        fitted = _Components((counts[:, 0] / counts.sum()).log(), centre, spread)
    return fitted


def _expected_log_densities(
    fitted: _Components, mean: Float[Tensor, "n latent"], squares: Float[Tensor, "n latent"]
) -> Float[Tensor, "n components"]:
    """Return E[log N_k(z)] of each posterior and component; the square expanded, so that it is two products."""
    precision = 1 / fitted.variance
    constant = (fitted.mean.square() * precision + fitted.variance.log() + LOG_TWO_PI).sum(1)
    return -0.5 * (squares @ precision.T - 2 * mean @ (fitted.mean * precision).T + constant)
