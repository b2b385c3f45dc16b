"""Objectives made of importance weights: many samples of z an example, and Monte Carlo terms only."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from seqvae.gaussian import DiagonalGaussian
from seqvae.objectives.objective import (
    BatchMean,
    Loss,
    at_its_end,
    batch_mean,
    check_samples,
    check_schedules,
    elbo_metrics,
)
from seqvae.schedules import Schedule
from seqvae.vae import VAE, ELBOTerms


@dataclass(frozen=True)
class IWAE:
    """-log (1/K sum_k w_k) with w = p(x|z) (p(z) / q(z|x))^beta, K = `samples` (Burda et al., 2016, eq. 8).

    At beta = 1 that is the importance-weighted bound, which is reported as `iw_bound` whatever beta is.

    Raises:
        ValueError: when samples is not positive.
    """

    noise: ClassVar[bool] = True

    beta: Schedule
    samples: int = 8

    def __post_init__(self) -> None:
        check_samples(self.samples)
        check_schedules(beta=self.beta)

    def __call__(self, vae: VAE, x: Tensor, progress: float, mean: BatchMean = batch_mean) -> Loss:
        terms = vae.terms(x, self.samples)
        beta = self.beta(progress)
        log_weights = terms.log_likelihood + beta * (terms.log_prior - terms.log_posterior)
        return Loss(-_log_mean_exp(log_weights).mean(), _metrics(terms, beta))

    def annealed(self, progress: float) -> bool:
        return at_its_end(self.beta, progress)


@dataclass(frozen=True)
class DReG:
    """IWAE's loss with a doubly reparameterised gradient for the encoder (Tucker et al., 2019, eq. 8).

    The encoder's gradient has the same expectation as IWAE's and less noise, which does not drown it as K grows.
    Decoder and prior get IWAE's gradient.

    Raises:
        ValueError: when samples is not positive.
    """

    noise: ClassVar[bool] = True

    beta: Schedule
    samples: int = 8

    def __post_init__(self) -> None:
        check_samples(self.samples)
        check_schedules(beta=self.beta)

    def __call__(self, vae: VAE, x: Tensor, progress: float, mean: BatchMean = batch_mean) -> Loss:
        terms = vae.terms(x, self.samples)
        beta = self.beta(progress)
        # q's parameters act through z alone: their direct part is noise around zero, and what the score function
        # leaves of it is, reparameterised once more, a factor of each sample's gradient
        fixed = DiagonalGaussian(terms.posterior.mean.detach(), terms.posterior.log_variance.detach())
        log_weights = terms.log_likelihood + beta * (terms.log_prior - fixed.log_prob(terms.z))
        shares = log_weights.detach().softmax(0)
        if terms.z.requires_grad:
            factor = (1.0 - beta) + beta * shares  # w at beta = 1, so that sample k counts w_k^2 in all
            terms.z.register_hook(lambda gradient: gradient * factor.unsqueeze(-1))
        weighted = (shares * log_weights).sum(0)
        bound = _log_mean_exp(log_weights.detach())
        return Loss(-(bound + weighted - weighted.detach()).mean(), _metrics(terms, beta))

    def annealed(self, progress: float) -> bool:
        return at_its_end(self.beta, progress)


def _log_mean_exp(log_weights: Float[Tensor, "samples batch"]) -> Float[Tensor, " batch"]:
    return log_weights.logsumexp(0) - math.log(len(log_weights))


def _metrics(terms: ELBOTerms, beta: float) -> dict[str, Float[Tensor, ""]]:
    bound = _log_mean_exp(terms.log_weights.detach()).mean()
    return {**elbo_metrics(terms), "iw_bound": bound, "beta": torch.full_like(bound, beta)}
