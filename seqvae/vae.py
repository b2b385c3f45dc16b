"""The variational autoencoder: an encoder q(z|x), a decoder p(x|z), a prior p(z), and the terms of its ELBO."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from seqvae.gaussian import DiagonalGaussian
from seqvae.priors import Prior, PriorDistribution


class Encoder(nn.Module, ABC):
    """q(z|x)."""

    latent_dim: int

    @abstractmethod
    def forward(self, x: Shaped[Tensor, "batch ..."]) -> DiagonalGaussian:
        """Return the posterior of each example."""


class Decoder(nn.Module, ABC):
    """p(x|z): the likelihood is part of it, and nothing outside asks which one it is.

    `is_density` says that p(x|z) is a density over what x stands for, and no probability of x: then nats depend on
    the unit that x is measured in, and are no NLL.
    """

    is_density: bool = False

    @abstractmethod
    def log_prob(self, x: Shaped[Tensor, "batch ..."], z: Float[Tensor, "batch latent"]) -> Float[Tensor, " batch"]:
        """Return log p(x|z) in nats, summed over every element of each example."""

    @abstractmethod
    def predict(self, x: Shaped[Tensor, "batch ..."], z: Float[Tensor, "batch latent"]) -> Shaped[Tensor, "batch ..."]:
        """Return a guess at each element: the most likely token given z and the true past, the mean of a pixel."""

    @abstractmethod
    def sample(
        self, z: Float[Tensor, "batch latent"], *, strategy: Any = None, generator: torch.Generator | None = None
    ) -> Shaped[Tensor, "batch ..."]:
        """Draw x from p(x|z); `strategy` (models/decoding.py) says how, None means such a guess at x."""


@dataclass(frozen=True)
class ELBOTerms:
    """The parts of the ELBO in nats, for each example and, where that exists, for each latent dimension."""

    posterior: DiagonalGaussian
    z: Float[Tensor, "samples batch latent"]
    log_likelihood: Float[Tensor, "samples batch"]
    log_prior: Float[Tensor, "samples batch"]
    log_posterior: Float[Tensor, "samples batch"]
    kl: Float[Tensor, "batch latent"] | None  # None: the prior has no closed form

    @property
    def log_weights(self) -> Float[Tensor, "samples batch"]:
        """log p(x|z) + log p(z) - log q(z|x): Monte Carlo terms only (Burda et al., 2016, eq. 8)."""
        return self.log_likelihood + self.log_prior - self.log_posterior

    @property
    def total_kl(self) -> Float[Tensor, " batch"]:
        """KL(q(z|x) || p(z)) of each example: exact where there is a closed form, else a Monte Carlo estimate."""
        if self.kl is not None:
            return self.kl.sum(-1)
        return (self.log_posterior - self.log_prior).mean(0)

    @property
    def elbo(self) -> Float[Tensor, " batch"]:
        """The evidence lower bound of each example: higher is better, unweighted, unannealed."""
        return self.log_likelihood.mean(0) - self.total_kl


class VAE(nn.Module):
    """p(x) = integral of p(x|z) p(z) dz, with an amortized posterior q(z|x). Variants are parts handed in."""

    def __init__(self, encoder: Encoder, decoder: Decoder, prior: Prior) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.prior = prior

    @property
    def latent_dim(self) -> int:
        return self.encoder.latent_dim

    def terms(
        self,
        x: Shaped[Tensor, "batch ..."],
        samples: int = 1,
        noise: bool = True,
        generator: torch.Generator | None = None,
    ) -> ELBOTerms:
        """Return the terms of the ELBO with `samples` draws of z; without noise, z is the posterior's mean."""
        posterior = self.encoder(x)
        z = posterior.rsample(samples, generator) if noise else posterior.mean.expand(samples, -1, -1)
        return self.terms_at(x, posterior, z)

    def terms_at(
        self,
        x: Shaped[Tensor, "batch ..."],
        posterior: DiagonalGaussian,
        z: Float[Tensor, "samples batch latent"],
        prior: PriorDistribution | None = None,
    ) -> ELBOTerms:
        """Return the terms at given latents: what an evaluation that encodes once and samples in chunks calls.

        `prior` is p(z) where it is at hand already: one made of posteriors takes a pass of the encoder.
        """
        samples = z.shape[0]
        if prior is None:
            prior = self.prior(self.encoder)
        repeated = x.expand(samples, *x.shape).flatten(0, 1)
        log_likelihood = self.decoder.log_prob(repeated, z.flatten(0, 1)).view(samples, -1)
        return ELBOTerms(
            posterior=posterior,
            z=z,
            log_likelihood=log_likelihood,
            log_prior=prior.log_prob(z),
            log_posterior=posterior.log_prob(z),
            kl=prior.kl(posterior),
        )
