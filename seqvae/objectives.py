"""Objectives: values that ask a VAE for the terms they need and return the loss to minimise."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from jaxtyping import Float
from torch import Tensor

from seqvae.schedules import Schedule
from seqvae.vae import VAE, ELBOTerms

__all__ = ["BetaELBO"]


class Loss(NamedTuple):
    """What one batch says: the loss to minimise, and metrics in nats an example; all are means over the batch."""

    loss: Float[Tensor, ""]
    metrics: dict[str, Float[Tensor, ""]]


BatchMean = Callable[[Float[Tensor, "batch dims"]], Float[Tensor, " dims"]]
"""The mean over a batch. What is not linear in it must use the one it is handed, which knows of other processes."""


def batch_mean(values: Float[Tensor, "batch dims"]) -> Float[Tensor, " dims"]:
    """Return the mean over the examples of this batch."""
    return values.mean(0)


class Objective(Protocol):
    """A training's objective. Time reaches it only as `progress`, the share of the training that is done."""

    def __call__(self, vae: VAE, x: Tensor, progress: float, mean: BatchMean = batch_mean) -> Loss:
        """Return the loss of a batch and the metrics that belong to it."""


@dataclass(frozen=True)
class BetaELBO:
    """-E[log p(x|z)] + beta * KL, beta on a schedule (Bowman et al., 2016; Higgins et al., 2017).

    `free_nats` is a floor for the batch mean of each latent dimension's KL: below it the dimension costs nothing
    more (Kingma et al., 2016, section 3.4). `free_nats_total` is subtracted from the whole KL of each example, and
    what lies below costs nothing (Roberts et al., 2018). At most one of them may be used.

    Raises:
        ValueError: for a negative or non-finite allowance, or both at once.
    """

    beta: Schedule
    free_nats: float = 0.0
    free_nats_total: float = 0.0
    samples: int = 1

    def __post_init__(self) -> None:
        for name in ("free_nats", "free_nats_total"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a number of nats >= 0, got {value!r}")
        if self.free_nats and self.free_nats_total:
            raise ValueError(
                f"free_nats={self.free_nats} and free_nats_total={self.free_nats_total}: only one of them can be used"
            )
        if isinstance(self.samples, bool) or not isinstance(self.samples, int) or self.samples < 1:
            raise ValueError(f"samples must be a positive int, got {self.samples!r}")
        if not callable(self.beta):
            raise ValueError(f"beta must be a schedule, got {self.beta!r}")

    def __call__(self, vae: VAE, x: Tensor, progress: float, mean: BatchMean = batch_mean) -> Loss:
        terms = vae.terms(x, self.samples)
        beta = self.beta(progress)
        loss = -terms.log_likelihood.mean() + beta * self._paid_kl(terms, mean)
        return Loss(loss, {**elbo_metrics(terms), "beta": loss.new_tensor(beta)})

    def _paid_kl(self, terms: ELBOTerms, mean: BatchMean) -> Float[Tensor, ""]:
        if self.free_nats:
            if terms.kl is None:
                raise ValueError("free_nats needs a KL for each dimension; this prior has none, use free_nats_total")
            return mean(terms.kl).clamp(min=self.free_nats).sum()
        return (
            (terms.total_kl - self.free_nats_total).clamp(min=0.0).mean()
            if self.free_nats_total
            else terms.total_kl.mean()
        )


def elbo_metrics(terms: ELBOTerms) -> dict[str, Float[Tensor, ""]]:
    """Return the batch means that every objective reports beside its loss."""
    return {
        "elbo": terms.elbo.detach().mean(),
        "log_likelihood": terms.log_likelihood.detach().mean(),
        "kl": terms.total_kl.detach().mean(),
    }
