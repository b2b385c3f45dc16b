"""Objectives made of the ELBO's two terms, and the autoencoder that has only one of them."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from seqvae.objectives.objective import (
    BatchMean,
    Loss,
    at_its_end,
    batch_mean,
    check_latent,
    check_nats,
    check_positive,
    check_samples,
    check_schedules,
    elbo_metrics,
    mean_kl,
)
from seqvae.schedules import Schedule
from seqvae.vae import VAE, ELBOTerms


@dataclass(frozen=True)
class BetaELBO:
    """-E[log p(x|z)] + beta * KL, beta on a schedule (Bowman et al., 2016; Higgins et al., 2017).

    `free_nats` is a floor for the batch mean of each latent dimension's KL: below it the dimension costs nothing
    more (Kingma et al., 2016, section 3.4). `free_nats_total` is subtracted from the whole KL of each example, and
    what lies below costs nothing (Roberts et al., 2018); under a prior without a closed form it is subtracted from
    the batch mean. At most one of them may be used.

    Raises:
        ValueError: for a negative or non-finite allowance, or both at once.
    """

    noise: ClassVar[bool] = True

    beta: Schedule
    free_nats: float = 0.0
    free_nats_total: float = 0.0
    samples: int = 1

    def __post_init__(self) -> None:
        check_nats(free_nats=self.free_nats, free_nats_total=self.free_nats_total)
        if self.free_nats and self.free_nats_total:
            raise ValueError(
                f"free_nats={self.free_nats} and free_nats_total={self.free_nats_total}: only one of them can be used"
            )
        check_samples(self.samples)
        check_schedules(beta=self.beta)

    def __call__(self, vae: VAE, x: Tensor, progress: float, mean: BatchMean = batch_mean) -> Loss:
        terms = vae.terms(x, self.samples)
        beta = self.beta(progress)
        loss = -terms.log_likelihood.mean() + beta * self._paid_kl(terms, mean)
        return Loss(loss, {**elbo_metrics(terms), "beta": loss.new_tensor(beta)})

    def annealed(self, progress: float) -> bool:
        return at_its_end(self.beta, progress)

    def _paid_kl(self, terms: ELBOTerms, mean: BatchMean) -> Float[Tensor, ""]:
        if self.free_nats:
            if terms.kl is None:
                raise ValueError("free_nats needs a KL for each dimension; this prior has none, use free_nats_total")
            return mean(terms.kl).clamp(min=self.free_nats).sum()
        if self.free_nats_total:
            # an estimate's noise would be cut off on one side: examples far below the allowance would go on paying
            kl = mean_kl(terms, mean) if terms.kl is None else terms.total_kl
            return (kl - self.free_nats_total).clamp(min=0.0).mean()
        return terms.total_kl.mean()


@dataclass(frozen=True)
class CapacityELBO:
    """-E[log p(x|z)] + gamma * |KL - C|, the capacity C in nats on a schedule (Burgess et al., 2018, eq. 8).

    KL is the batch's mean over examples: the rate is held at C, not the KL of every example.

    Raises:
        ValueError: when gamma is not positive; while training, for a schedule that leads below zero.
    """

    noise: ClassVar[bool] = True

    capacity: Schedule
    gamma: float = 10.0
    samples: int = 1

    def __post_init__(self) -> None:
        check_positive(gamma=self.gamma)
        check_samples(self.samples)
        check_schedules(capacity=self.capacity)
        check_nats(
            **{f"capacity at the training's {when}": self.capacity(at) for when, at in (("start", 0), ("end", 1))}
        )

    def __call__(self, vae: VAE, x: Tensor, progress: float, mean: BatchMean = batch_mean) -> Loss:
        check_latent(vae, "capacity")
        terms = vae.terms(x, self.samples)
        capacity = self.capacity(progress)
        loss = -terms.log_likelihood.mean() + self.gamma * (mean_kl(terms, mean) - capacity).abs()
        return Loss(loss, {**elbo_metrics(terms), "capacity": loss.new_tensor(capacity)})

    def annealed(self, progress: float) -> bool:
        return at_its_end(self.capacity, progress)


@dataclass(frozen=True)
class Autoencoder:
    """-log p(x|z) at z = the posterior's mean: no noise and no KL, a plain autoencoder to compare a VAE with.

    Nothing trains the posterior's variance, and what is decoded without noise bounds nothing. So while training the
    only metric is `log_likelihood_at_mean`; a validation draws z for the ELBO's terms as well, as bad as they are.
    The layer of the log-variance keeps its first, small weights: a VAE that begins with this encoder (Li et al.,
    2019) begins with an autoencoder's means and variances near the prior's.

    Raises:
        ValueError: for a prior that is to be trained.
    """

    noise: ClassVar[bool] = False

    def __call__(self, vae: VAE, x: Tensor, progress: float, mean: BatchMean = batch_mean) -> Loss:
        if list(vae.prior.parameters()):
            raise ValueError(
                f"an autoencoder has no KL to train a {type(vae.prior).__name__} with; use prior=standard_normal"
            )
        terms = vae.terms(x, noise=False)
        at_mean = terms.log_likelihood.mean()
        metrics = {"log_likelihood_at_mean": at_mean.detach()}
        if not vae.training:
            with torch.no_grad():
                metrics |= elbo_metrics(vae.terms(x))
        # a KL at no price: processes that add up their gradients want one of every parameter, if only of zeros
        return Loss(-at_mean + 0.0 * terms.total_kl.mean(), metrics)

    def annealed(self, progress: float) -> bool:
        return False  # there is no KL in it
