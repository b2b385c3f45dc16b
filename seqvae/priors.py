"""Priors p(z). A prior is handed the encoder when it is called and never owns it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from seqvae.gaussian import LOG_TWO_PI, DiagonalGaussian

__all__ = ["StandardNormal"]


class PriorDistribution(Protocol):
    """p(z), as the VAE and its users need it."""

    def log_prob(self, z: Float[Tensor, "*samples batch latent"]) -> Float[Tensor, "*samples batch"]:
        """Return log p(z) in nats."""

    def sample(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n latent"]:
        """Draw n latents."""

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

    def log_prob(self, z: Float[Tensor, "*samples batch latent"]) -> Float[Tensor, "*samples batch"]:
        return -0.5 * (z.square() + LOG_TWO_PI).sum(-1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n latent"]:
        return torch.randn(n, self.latent_dim, generator=generator, device=self.like.device, dtype=self.like.dtype)

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
