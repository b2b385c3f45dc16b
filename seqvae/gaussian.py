"""The diagonal Gaussian: reparameterized samples, log density and KL, and the network head that makes one."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

LOG_TWO_PI = math.log(2.0 * math.pi)
LOG_VARIANCE_BOUND = 8.0


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
        noise = torch.randn(
            samples, *self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype
        )
        return self.mean + torch.exp(0.5 * self.log_variance) * noise

    def log_prob(self, z: Float[Tensor, "*samples batch latent"]) -> Float[Tensor, "*samples batch"]:
        """Return log N(z) in nats, summed over the latent dimensions."""
        squares = (z - self.mean).square() * torch.exp(-self.log_variance)
        return -0.5 * (squares + self.log_variance + LOG_TWO_PI).sum(-1)

    def kl_to_standard_normal(self) -> Float[Tensor, "batch latent"]:
        """Return KL(self || N(0, 1)) in nats for each dimension (Kingma & Welling, 2014, appendix B)."""
        # expm1: exp(v) - 1 - v would lose every digit as v approaches 0
        return 0.5 * (self.mean.square() + torch.expm1(self.log_variance) - self.log_variance)


class GaussianHead(nn.Module):
    """Features -> DiagonalGaussian, in float32 whatever the precision around it.

    The log-variance is bounded softly, c * tanh(v / c) with c = 8, here and nowhere else, so that sampling,
    density and KL all see the same number.
    """

    def __init__(self, features: int, latent_dim: int) -> None:
        super().__init__()
        self.mean = nn.Linear(features, latent_dim)
        self.log_variance = nn.Linear(features, latent_dim)

    def forward(self, features: Float[Tensor, "batch features"]) -> DiagonalGaussian:
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.mean.weight.dtype)
            return DiagonalGaussian(self.mean(features), soft_bound(self.log_variance(features), LOG_VARIANCE_BOUND))
