"""Priors p(z). A prior is handed the encoder when it is called and never owns it."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from seqvae.gaussian import LOG_TWO_PI, LOG_VARIANCE_BOUND, DiagonalGaussian, soft_bound

MARGIN = 0.05  # from black and white, where a sigmoid hardly moves

__all__ = ["MixtureOfGaussians", "StandardNormal", "VampPrior"]


class PriorDistribution(Protocol):
    """p(z), as the VAE and its users need it."""

    @property
    def mean(self) -> Float[Tensor, " latent"]:
        """E[z]."""

    @property
    def deviation(self) -> Float[Tensor, " latent"]:
        """The standard deviation of each dimension of z."""

    def log_prob(self, z: Float[Tensor, "*samples batch latent"]) -> Float[Tensor, "*samples batch"]:
        """Return log p(z) in nats."""

    def projected_log_prob(
        self, points: Float[Tensor, "*n axes"], axes: Float[Tensor, "latent axes"]
    ) -> Float[Tensor, "*n"]:
        """Return the log density of z @ axes in nats, where the columns of `axes` are orthonormal."""

    def sample(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n latent"]:
        """Draw n latents."""

    def walk(
        self, z: Float[Tensor, "n latent"], drift: float, generator: torch.Generator | None = None
    ) -> Float[Tensor, "n latent"]:
        """Return a neighbour of each latent by a step that leaves p(z) as it is: draws of p(z) remain such.

        A drift of 0 stays in place; 1 keeps nothing of where it was (in a mixture, but for the component).
        """

    def kl(self, posterior: DiagonalGaussian) -> Float[Tensor, "batch latent"] | None:
        """Return KL(posterior || p) in nats for each dimension, or None where there is no closed form."""


class Prior(nn.Module, ABC):
    """Builds p(z); a learned prior keeps its parameters here."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim

    @abstractmethod
    def forward(self, encoder: nn.Module) -> PriorDistribution:
        """Return p(z); `encoder` is the VAE's own, for priors made of posteriors."""


@dataclass(frozen=True)
class StandardNormalDistribution:
    """N(0, I) on the device and in the dtype of `like`."""

    latent_dim: int
    like: Tensor

    @property
    def mean(self) -> Float[Tensor, " latent"]:
        return self.like.new_zeros(self.latent_dim)

    @property
    def deviation(self) -> Float[Tensor, " latent"]:
        return self.like.new_ones(self.latent_dim)

    def log_prob(self, z: Float[Tensor, "*samples batch latent"]) -> Float[Tensor, "*samples batch"]:
        return -0.5 * (z.square() + LOG_TWO_PI).sum(-1)

    def projected_log_prob(
        self, points: Float[Tensor, "*n axes"], axes: Float[Tensor, "latent axes"]
    ) -> Float[Tensor, "*n"]:
        return -0.5 * (points.square() + LOG_TWO_PI).sum(-1)  # N(0, I) looks the same from everywhere

    def sample(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n latent"]:
        return torch.randn(n, self.latent_dim, generator=generator, device=self.like.device, dtype=self.like.dtype)

    def walk(
        self, z: Float[Tensor, "n latent"], drift: float, generator: torch.Generator | None = None
    ) -> Float[Tensor, "n latent"]:
        return _autoregressive_step(z, drift, generator)

    def kl(self, posterior: DiagonalGaussian) -> Float[Tensor, "batch latent"]:
        return posterior.kl_to_standard_normal()


class StandardNormal(Prior):
    """p(z) = N(0, I)."""

    like: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        self.register_buffer("like", torch.zeros(()), persistent=False)  # follows the module's device and dtype

    def forward(self, encoder: nn.Module) -> StandardNormalDistribution:
        return StandardNormalDistribution(self.latent_dim, self.like)


@dataclass(frozen=True)
class MixtureDistribution:
    """sum_k softmax(logits)_k N(mean_k, diag(exp(log_variance_k))), a row of `components` each."""

    logits: Float[Tensor, " components"]
    components: DiagonalGaussian

    @property
    def mean(self) -> Float[Tensor, " latent"]:
        return torch.softmax(self.logits, 0) @ self.components.mean

    @property
    def deviation(self) -> Float[Tensor, " latent"]:
        within, between = self.components.log_variance.exp(), (self.components.mean - self.mean).square()
        return (torch.softmax(self.logits, 0) @ (within + between)).sqrt()

    def log_prob(self, z: Float[Tensor, "*samples batch latent"]) -> Float[Tensor, "*samples batch"]:
        return torch.logsumexp(self._joint(z), -1)

    def _joint(self, z: Float[Tensor, "*samples batch latent"]) -> Float[Tensor, "*samples batch components"]:
        """Return log p(z, component): (z - mean)^2 / variance expanded, so that all pairs are two matrix products.

        The parts are far larger than what is left of them, hence float64, which no autocast makes shorter either.
        """
        parts = (z, self.components.mean, self.components.log_variance, torch.log_softmax(self.logits, 0))
        z, mean, log_variance, log_weights = map(_precise, parts)
        precision = torch.exp(-log_variance)
        constant = (mean.square() * precision + log_variance + LOG_TWO_PI).sum(-1)
        log_densities = -0.5 * (z.square() @ precision.T + constant) + z @ (mean * precision).T
        return (log_weights + log_densities).to(self.components.mean)

    def projected_log_prob(
        self, points: Float[Tensor, "*n axes"], axes: Float[Tensor, "latent axes"]
    ) -> Float[Tensor, "*n"]:
        covariance = axes.T @ (self.components.log_variance.exp().unsqueeze(-1) * axes)
        factor = torch.linalg.cholesky(covariance)
        whiten = torch.linalg.inv(factor)
        offsets = points.unsqueeze(-2) - self.components.mean @ axes
        squares = torch.einsum("kij,...kj->...ki", whiten, offsets).square()
        log_scale = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_densities = -0.5 * (squares + LOG_TWO_PI).sum(-1) - log_scale
        return torch.logsumexp(torch.log_softmax(self.logits, 0) + log_densities, -1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n latent"]:
        chosen = torch.multinomial(torch.softmax(self.logits, 0), n, replacement=True, generator=generator)
        parts = DiagonalGaussian(self.components.mean[chosen], self.components.log_variance[chosen])
        return parts.rsample(1, generator)[0]

    def walk(
        self, z: Float[Tensor, "n latent"], drift: float, generator: torch.Generator | None = None
    ) -> Float[Tensor, "n latent"]:
        # Gibbs: first the component given z, then the step within it; each leaves the joint law as it is
        chosen = torch.multinomial(self._joint(z).softmax(-1), 1, generator=generator)[:, 0]
        mean, deviation = self.components.mean[chosen], torch.exp(0.5 * self.components.log_variance[chosen])
        return mean + deviation * _autoregressive_step((z - mean) / deviation, drift, generator)

    def kl(self, posterior: DiagonalGaussian) -> None:
        return None  # no closed form: KL is a Monte Carlo estimate


class MixtureOfGaussians(Prior):
    """p(z) = a learned mixture of diagonal Gaussians, whose means start as draws from N(0, I).

    Raises:
        ValueError: when components is not positive.
    """

    def __init__(self, latent_dim: int, components: int = 100) -> None:
        super().__init__(latent_dim)
        _check_components(components)
        self.logits = nn.Parameter(torch.zeros(components))
        self.mean = nn.Parameter(torch.randn(components, latent_dim))
        self.log_variance = nn.Parameter(torch.zeros(components, latent_dim))

    def forward(self, encoder: nn.Module) -> MixtureDistribution:
        log_variance = soft_bound(self.log_variance, LOG_VARIANCE_BOUND)
        return MixtureDistribution(self.logits, DiagonalGaussian(self.mean, log_variance))


class VampPrior(Prior):
    """p(z) = 1/K sum_k q(z|u_k): the posteriors of K learned pictures (Tomczak & Welling, 2018, eq. 9).

    A picture u_k is the sigmoid of its parameters, so every pixel stays within [0, 1]. It begins as noise, or
    `from_data`: as a picture of the train split, so that from the first step p(z) lies where posteriors do.

    Raises:
        ValueError: when components is not positive, or the data are no pictures.
    """

    uniform: Tensor

    def __init__(
        self,
        latent_dim: int,
        components: int = 500,
        image_shape: Sequence[int] | None = None,
        from_data: bool = False,
    ) -> None:
        super().__init__(latent_dim)
        _check_components(components)
        if not isinstance(from_data, bool):
            raise ValueError(f"from_data must be true or false, got {from_data!r}")
        if image_shape is None:
            raise ValueError(
                "a VampPrior learns pictures to encode, and tokens cannot be learned like that; use prior=mixture"
            )
        self.register_buffer("uniform", torch.zeros(components), persistent=False)
        self.pictures = nn.Parameter(torch.randn(components, *image_shape))
        self.from_data = from_data

    @torch.no_grad()
    def begin_with(self, pictures: Float[Tensor, "components channels height width"]) -> None:
        """Let the learned pictures begin as these, of brightness in [0, 1]."""
        self.pictures.copy_(torch.logit(pictures, MARGIN))

    def forward(self, encoder: nn.Module) -> MixtureDistribution:
        return MixtureDistribution(self.uniform, encoder(torch.sigmoid(self.pictures)))


def _autoregressive_step(
    z: Float[Tensor, "n latent"], drift: float, generator: torch.Generator | None
) -> Float[Tensor, "n latent"]:
    """Return sqrt(1 - drift^2) z + drift e, e drawn from N(0, I): standard normal where z is."""
    if not 0 <= drift <= 1:
        raise ValueError(f"drift must be between 0 (the same latent) and 1 (a new one), got {drift}")
    e = torch.randn(z.shape, generator=generator, device=z.device, dtype=z.dtype)
    return math.sqrt(1 - drift**2) * z + drift * e


def _precise(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return float64, on the CPU where the device has none (mps); autocast would make float32 shorter still."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def _check_components(components: int) -> None:
    if isinstance(components, bool) or not isinstance(components, int) or components < 1:
        raise ValueError(f"components must be a positive int, got {components!r}")
