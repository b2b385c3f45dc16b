"""What an objective is, what all of them report, and the checks they make of a person's numbers."""

import math
from collections.abc import Callable
from typing import ClassVar, NamedTuple, Protocol

from jaxtyping import Float
from torch import Tensor

from seqvae.schedules import Schedule
from seqvae.vae import VAE, ELBOTerms


class Loss(NamedTuple):
    """What one batch says: the loss to minimise, and metrics in nats an example; all are means over the batch."""

    loss: Float[Tensor, ""]
    metrics: dict[str, Float[Tensor, ""]]


OF_THE_LIKELIHOOD = ("loss", "objective", "elbo", "log_likelihood", "log_likelihood_at_mean", "iw_bound")
"""Metrics that are made of p(x|z): what that is says what they compare with."""

BatchMean = Callable[[Float[Tensor, "batch dims"]], Float[Tensor, " dims"]]
"""The mean over a batch. What is not linear in it must use the one it is handed, which knows of other processes."""


def batch_mean(values: Float[Tensor, "batch dims"]) -> Float[Tensor, " dims"]:
    """Return the mean over the examples of this batch."""
    return values.mean(0)


class Objective(Protocol):
    """A training's objective. Time reaches it only as `progress`, the share of the training that is done.

    One with a state is a module that keeps it in buffers; it moves them only for a VAE in training mode, so that a
    validation leaves no trace.
    """

    noise: ClassVar[bool]
    """Whether z is drawn from q(z|x). Where it is the mean, nothing trains the posterior's variance, nor a prior."""

    def __call__(self, vae: VAE, x: Tensor, progress: float, mean: BatchMean = batch_mean) -> Loss:
        """Return the loss of a batch and the metrics that belong to it."""

    def annealed(self, progress: float) -> bool:
        """Return whether a nat of KL costs what it will at the end: a latent that then says nothing has collapsed."""


def at_its_end(schedule: Schedule, progress: float) -> bool:
    """Return whether a schedule has the value that it ends with."""
    return schedule(progress) == schedule(1.0)


def elbo_metrics(terms: ELBOTerms) -> dict[str, Float[Tensor, ""]]:
    """Return the batch means that every objective reports beside its loss: unweighted, unannealed."""
    return {
        "elbo": terms.elbo.detach().mean(),
        "log_likelihood": terms.log_likelihood.detach().mean(),
        "kl": terms.total_kl.detach().mean(),
    }


def mean_kl(terms: ELBOTerms, mean: BatchMean) -> Float[Tensor, ""]:
    """Return the batch's mean KL over all latent dimensions, for what is not linear in it."""
    return mean(terms.total_kl.unsqueeze(1)).squeeze(0)


def check_latent(vae: VAE, name: str) -> None:
    """Raise ValueError for a VAE without a latent, whose KL nothing can move."""
    if vae.latent_dim == 0:
        raise ValueError(f"{name} holds a rate, and a language model has no latent to hold it with; use beta_elbo")


def check_nats(**values: float) -> None:
    """Raise ValueError for a value that is no finite number >= 0, with its name."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ValueError(f"{name} must be a number of nats >= 0, got {value!r}")


def check_positive(**values: float) -> None:
    """Raise ValueError for a value that is no finite number > 0, with its name."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(f"{name} must be a positive number, got {value!r}")


def check_samples(samples: int) -> None:
    """Raise ValueError for a number of samples that is no positive int."""
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise ValueError(f"samples must be a positive int, got {samples!r}")


def check_schedules(**values: Schedule) -> None:
    """Raise ValueError for a value that is no schedule, with its name."""
    for name, value in values.items():
        if not callable(value):
            raise ValueError(f"{name} must be a schedule, got {value!r}")
