"""Scheduled sampling: a sequence decoder learns to go on from what it wrote itself (Bengio et al., 2015)."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seqvae.objectives.objective import OF_THE_LIKELIHOOD, BatchMean, Loss, Objective, batch_mean, check_schedules
from seqvae.schedules import Schedule
from seqvae.vae import VAE, Decoder


@runtime_checkable
class FromThePast(Protocol):
    """A decoder of sequences that scores each token given the ones before it, whichever those are."""

    def log_prob(
        self,
        x: Int[Tensor, "batch time *parts"],
        z: Float[Tensor, "batch latent"],
        past: Int[Tensor, "batch time *parts"] | None,
    ) -> Float[Tensor, " batch"]:
        """Return log p(x|z), or the sum of every token's log-probability with `past` fed before them."""

    def draw(
        self,
        past: Int[Tensor, "batch time *parts"],
        z: Float[Tensor, "batch latent"],
        point: Float[Tensor, "batch time *parts"],
    ) -> Int[Tensor, "batch time *parts"]:
        """Return a token for every place given what is fed before it: the one at this point of its distribution."""


@dataclass(frozen=True)
class ScheduledSampling:
    """Feeds a decoder tokens of its own in the place of true ones, each with the probability `rate`, while it trains.

    The tokens come from passes over whole sequences and not step by step (Mihaylova & Martins, 2019; Duckworth et
    al., 2019): a first pass reads the true past and draws a token everywhere, and with more `passes` the next ones
    read what the one before made. All of a step's passes replace the same places and draw at the same points of
    the distributions, so that they come closer to writing token by token: n passes are exact for the first n tokens.

    Only a training step does this; whatever else looks at the model feeds it the true past. What the step reports of
    p(x|z) has the suffix `_own_past`, from the first step on: with a past that is not the true one it bounds nothing.

    Raises:
        ValueError: for a rate that is no probability, or no positive number of passes; in training, for a decoder
            that has no past.
    """

    rate: Schedule
    passes: int = 1

    def __post_init__(self) -> None:
        check_schedules(rate=self.rate)
        if isinstance(self.passes, bool) or not isinstance(self.passes, int) or self.passes < 1:
            raise ValueError(f"passes must be a positive int, got {self.passes!r}")
        for when, progress in (("start", 0.0), ("end", 1.0)):
            if not 0 <= self.rate(progress) <= 1:
                raise ValueError(f"rate at the training's {when} must be a probability, got {self.rate(progress)!r}")

    def __call__(
        self, objective: Objective, vae: VAE, x: Tensor, progress: float, mean: BatchMean = batch_mean
    ) -> Loss:
        """Return the objective's loss with the decoder fed in this way."""
        decoder = vae.decoder
        if not isinstance(decoder, FromThePast):
            raise ValueError(f"scheduled sampling replaces a sequence's past, and {type(decoder).__name__} has none")
        rate = self.rate(progress)
        own = VAE(vae.encoder, _OwnPast(decoder, rate, self.passes), vae.prior)
        loss, metrics = objective(own, x, progress, mean)
        named = {f"{name}_own_past" if name in OF_THE_LIKELIHOOD else name: value for name, value in metrics.items()}
        return Loss(loss, {**named, "sampling_rate": loss.new_tensor(rate)})


class _OwnPast(Decoder):
    """A decoder that is fed tokens of its own."""

    def __init__(self, decoder: Decoder, rate: float, passes: int) -> None:
        super().__init__()
        self.decoder, self.rate, self.passes = decoder, rate, passes

    def log_prob(
        self, x: Int[Tensor, "batch time *parts"], z: Float[Tensor, "batch latent"]
    ) -> Float[Tensor, " batch"]:
        assert isinstance(self.decoder, FromThePast)
        true = past = _moved_on(x)
        if self.rate:
            own = (torch.rand(x.shape, device=x.device) < self.rate) & (true >= 0)
            point = torch.rand(x.shape, device=x.device)
            for _ in range(self.passes):
                past = torch.where(own, _moved_on(self.decoder.draw(past, z, point)), true)
        return self.decoder.log_prob(x, z, past)

    def predict(
        self, x: Int[Tensor, "batch time *parts"], z: Float[Tensor, "batch latent"]
    ) -> Int[Tensor, "batch time *parts"]:
        return self.decoder.predict(x, z)

    def sample(
        self, z: Float[Tensor, "batch latent"], *, strategy: Any = None, generator: torch.Generator | None = None
    ) -> Int[Tensor, "batch time *parts"]:
        return self.decoder.sample(z, strategy=strategy, generator=generator)


def _moved_on(tokens: Int[Tensor, "batch time *parts"]) -> Int[Tensor, "batch time *parts"]:
    """Return what stands before each token: the one before it, and -1 before the first."""
    return torch.cat([torch.full_like(tokens[:, :1], -1), tokens[:, :-1]], dim=1)
