"""The diagonal Gaussian: reparameterized samples, log density and KL, and the network head that makes one."""

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

LOG_TWO_PI = math.log(2.0 * math.pi)
LOG_VARIANCE_BOUND = 8.0
VARIANCE_FLOOR = 1e-5  # what a dimension without variance is divided by
MOMENTUM = 0.1  # of a batch in the running statistics


def soft_bound(values: Float[Tensor, "*shape"], bound: float) -> Float[Tensor, "*shape"]:
    """Return bound * tanh(values / bound): the values while they are small, and never beyond the bound."""
    return bound * torch.tanh(values / bound)


@dataclass(frozen=True)
class DiagonalGaussian:
    """N(mean, diag(exp(log_variance))), one for each example of a batch."""

    mean: Float[Tensor, "batch latent"]
    log_variance: Float[Tensor, "batch latent"]

    def rsample(
        self, samples: int = 1, generator: torch.Generator | None = None
    ) -> Float[Tensor, "samples batch latent"]:
        """Return mean + std * noise: differentiable in both parameters (Kingma & Welling, 2014, eq. 4)."""
        # what randn does; but torch.compile gives randn no generator when the batch's size is any
        noise = self.mean.new_empty(samples, *self.mean.shape).normal_(generator=generator)
        return self.mean + torch.exp(0.5 * self.log_variance) * noise

    def without_noise(self) -> Self:
        """Return the limit without a variance: points at the means, which is all that an autoencoder has trained."""
        return replace(self, log_variance=torch.full_like(self.log_variance, -math.inf))

    def log_prob(self, z: Float[Tensor, "*samples batch latent"]) -> Float[Tensor, "*samples batch"]:
        """Return log N(z) in nats, summed over the latent dimensions."""
        squares = (z - self.mean).square() * torch.exp(-self.log_variance)
        return -0.5 * (squares + self.log_variance + LOG_TWO_PI).sum(-1)

    def kl_to_standard_normal(self) -> Float[Tensor, "batch latent"]:
        """Return KL(self || N(0, 1)) in nats for each dimension (Kingma & Welling, 2014, appendix B)."""
        # expm1: exp(v) - 1 - v would lose every digit as v approaches 0
        return 0.5 * (self.mean.square() + torch.expm1(self.log_variance) - self.log_variance)


class BatchNormalizedMean(nn.Module):
    """gamma * (mean - its batch mean) / its batch deviation + a learned shift, for each dimension.

    Zhu et al. (2020), "A Batch Normalized Inference Network Keeps the KL Vanishing Away": the scale is fixed, so the
    means of a batch keep a variance of gamma^2 and the batch's mean KL stays above latent_dim * gamma^2 / 2. In eval
    mode, and for a batch of one row, which has no variance, the statistics are running averages of those of batches.
    """

    running_mean: Tensor
    running_variance: Tensor

    def __init__(self, latent_dim: int, gamma: float) -> None:
        super().__init__()
        self.gamma = gamma
        self.shift = nn.Parameter(torch.zeros(latent_dim))
        self.register_buffer("running_mean", torch.zeros(latent_dim))
        self.register_buffer("running_variance", torch.ones(latent_dim))

    def forward(self, means: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch latent"]:
        center, variance = self.running_mean, self.running_variance
        if self.training and len(means) > 1:
            center, variance = means.mean(0), means.var(0, correction=0)
            self._follow(center.detach(), variance.detach())
        return self.gamma * (means - center) * torch.rsqrt(variance + VARIANCE_FLOOR) + self.shift

    @torch.no_grad()
    def _follow(self, center: Float[Tensor, " latent"], variance: Float[Tensor, " latent"]) -> None:
        for running, value in ((self.running_mean, center), (self.running_variance, variance)):
            # a step with a NaN is skipped, and must leave nothing behind
            running.lerp_(torch.where(value.isfinite(), value, running).to(running.dtype), MOMENTUM)


class GaussianHead(nn.Module):
    """Features -> DiagonalGaussian, in float32 whatever the precision around it.

    The log-variance is bounded softly, c * tanh(v / c) with c = 8, here and nowhere else, so that sampling,
    density and KL all see the same number. With `gamma` the means are normalised over the batch to that deviation.
    """

    def __init__(self, features: int, latent_dim: int, gamma: float | None = None) -> None:
        super().__init__()
        self.mean = nn.Linear(features, latent_dim)
        self.log_variance = nn.Linear(features, latent_dim)
        self.normalize = nn.Identity() if gamma is None else BatchNormalizedMean(latent_dim, gamma)

    def forward(self, features: Float[Tensor, "batch features"]) -> DiagonalGaussian:
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.mean.weight.dtype)
            return DiagonalGaussian(
                self.normalize(self.mean(features)), soft_bound(self.log_variance(features), LOG_VARIANCE_BOUND)
            )
