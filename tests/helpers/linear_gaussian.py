"""A VAE whose evidence is known: p(z) = N(0, I), p(x|z) = N(Wz + b, s^2 I), so p(x) = N(b, W W' + s^2 I)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal

from seqvae.gaussian import DiagonalGaussian
from seqvae.priors import StandardNormal
from seqvae.vae import VAE, Decoder, Encoder

SCALE = 0.7


class LinearEncoder(Encoder):
    """A posterior off by `error`; with W of orthogonal columns the exact one is diagonal.

    Another `beta` than 1 weighs the KL: what is then optimal is the posterior of a scale of s * sqrt(beta).
    """

    def __init__(self, weight: Tensor, bias: Tensor, error: float, beta: float = 1.0) -> None:
        super().__init__()
        self.latent_dim = weight.shape[1]
        variance = beta * SCALE**2
        precision = 1 + weight.square().sum(0) / variance  # of each latent, as the columns are orthogonal
        self.log_variance = nn.Parameter(-precision.log() + error)
        self.weight = nn.Parameter(weight.T / variance / precision.unsqueeze(1) * (1 + error))
        self.bias = bias

    def forward(self, x: Tensor) -> DiagonalGaussian:
        mean = (x - self.bias) @ self.weight.T
        return DiagonalGaussian(mean, self.log_variance.expand_as(mean))


class LinearDecoder(Decoder):
    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), bias

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        density: Tensor = Independent(Normal(self.predict(x, z), SCALE), 1).log_prob(x)
        return density

    def predict(self, x: Tensor, z: Tensor) -> Tensor:
        return z @ self.weight.T + self.bias

    def sample(self, z: Tensor, *, strategy: Any = None, generator: torch.Generator | None = None) -> Tensor:
        return self.predict(z, z)


def linear_gaussian(
    error: float = 0.0, observed: int = 4, latent: int = 2, beta: float = 1.0
) -> tuple[VAE, MultivariateNormal]:
    """Return the VAE (its posterior, optimal for `beta`, wrong by `error`) and its exact p(x), in float64."""
    generator = torch.Generator().manual_seed(3)
    basis, _ = torch.linalg.qr(torch.randn(observed, latent, generator=generator, dtype=torch.float64))
    weight = basis * torch.tensor([1.5, 0.8], dtype=torch.float64)[:latent]
    bias = torch.randn(observed, generator=generator, dtype=torch.float64)
    vae = VAE(LinearEncoder(weight, bias, error, beta), LinearDecoder(weight, bias), StandardNormal(latent)).double()
    covariance = weight @ weight.T + SCALE**2 * torch.eye(observed, dtype=torch.float64)
    return vae, MultivariateNormal(bias, covariance)
