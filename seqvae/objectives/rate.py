"""An objective that holds the rate: a controller moves beta until the KL is what a person asked for."""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from seqvae.objectives.objective import (
    BatchMean,
    Loss,
    batch_mean,
    check_latent,
    check_positive,
    check_samples,
    elbo_metrics,
    mean_kl,
)
from seqvae.vae import VAE


class TargetRate(nn.Module):
    """-E[log p(x|z)] + beta * KL, where a controller moves beta so that the batch's mean KL becomes `nats`.

    With e = KL / nats - 1, kept within [-1, 1], a step adds `gain` * e to log(beta), as GECO moves a multiplier
    (Rezende & Viola, 2018, algorithm 1), and `damping` * e counts for that step alone, which keeps the two from
    swinging (the proportional part of Shao et al., 2020). beta stays between `lowest` and `highest`: above 1 where
    the model would take more nats than it is granted. It starts low, at `start`, because a latent that has collapsed
    is slow to come back.

    The state is a buffer, so it is saved with a checkpoint's training state and goes on exactly. A validation does
    not move it, and its loss is one that checkpoints can be compared by, whatever beta they stand at:
    -E[log p(x|z)] + highest * |KL - nats|.

    Raises:
        ValueError: for numbers that are not positive, or a start outside the bounds; while training, in 16 bits.
    """

    noise: ClassVar[bool] = True
    log_beta: Tensor

    def __init__(
        self,
        nats: float,
        gain: float = 0.01,
        damping: float = 1.0,
        start: float = 0.01,
        lowest: float = 1e-4,
        highest: float = 10.0,
        samples: int = 1,
    ) -> None:
        super().__init__()
        check_positive(nats=nats, gain=gain, damping=damping, start=start, lowest=lowest, highest=highest)
        if not lowest <= start <= highest:
            raise ValueError(f"start must lie between lowest={lowest} and highest={highest}, got {start}")
        check_samples(samples)
        self.nats, self.gain, self.damping, self.samples = nats, gain, damping, samples
        self.lowest, self.highest = lowest, highest
        self.register_buffer("log_beta", torch.tensor(math.log(start), dtype=torch.float32))

    def forward(self, vae: VAE, x: Tensor, progress: float, mean: BatchMean = batch_mean) -> Loss:
        if self.log_beta.itemsize < 4:
            raise ValueError(
                f"the target rate's controller cannot count in {self.log_beta.dtype}: use trainer.precision=bf16-mixed"
            )
        check_latent(vae, "target_rate")
        terms = vae.terms(x, self.samples)
        kl = mean_kl(terms, mean)
        distortion = -terms.log_likelihood.mean()
        if not vae.training:
            loss, beta = distortion + self.highest * (kl - self.nats).abs(), self.log_beta.exp()
        else:
            beta = self._controlled(kl.detach())
            loss = distortion + beta * terms.total_kl.mean()
        return Loss(loss, {**elbo_metrics(terms), "beta": beta})

    def annealed(self, progress: float) -> bool:
        return True  # the rate that is asked for is the same at every step

    @torch.no_grad()
    def _controlled(self, kl: Tensor) -> Tensor:
        """Return the step's beta and move the state: it ends at a bound, so that it comes back as soon as it may."""
        error = (kl / self.nats - 1.0).clamp(-1.0, 1.0).nan_to_num(0.0)  # a step with a NaN is skipped, and no reason
        bounds = math.log(self.lowest), math.log(self.highest)
        self.log_beta.copy_((self.log_beta + self.gain * error).clamp(*bounds))
        return (self.log_beta + self.damping * error).clamp(*bounds).exp()
