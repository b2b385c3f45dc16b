"""Bernoulli pixels, and their continuous namesake on [0, 1]; both have one map a channel, of logits."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from seqvae.models.likelihoods.likelihood import check_levels


class Bernoulli:
    """Pixels that are 0 or 1; the parameters are logits, never probabilities, or gradients vanish beyond 17."""

    is_density = False

    def maps(self, channels: int, levels: int) -> int:
        check_levels("Bernoulli", 2, levels)
        return channels

    def log_prob(
        self, parameters: Float[Tensor, "batch maps height width"], x: UInt8[Tensor, "batch channels height width"]
    ) -> Float[Tensor, " batch"]:
        nats = F.binary_cross_entropy_with_logits(parameters, x.to(parameters.dtype), reduction="none")
        return -nats.flatten(1).sum(1)

    def mean(
        self, parameters: Float[Tensor, "batch maps height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        return torch.sigmoid(parameters)

    def sample(
        self,
        parameters: Float[Tensor, "batch maps height width"],
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch channels height width"]:
        return torch.bernoulli(torch.sigmoid(parameters / temperature), generator=generator)


class ContinuousBernoulli:
    """p(x) = exp(logit * x) / integral over [0, 1], x the brightness (Loaiza-Ganem & Cunningham, 2019).

    That is the binary cross-entropy of grey pixels with the constant that makes it a density. It is no probability
    of the 256 levels: its nats may be of either sign, and compare with those of no other likelihood.
    """

    is_density = True

    def maps(self, channels: int, levels: int) -> int:
        check_levels("continuous Bernoulli", 256, levels)
        return channels

    def log_prob(
        self, parameters: Float[Tensor, "batch maps height width"], x: UInt8[Tensor, "batch channels height width"]
    ) -> Float[Tensor, " batch"]:
        brightness = x.to(parameters.dtype) / 255
        return (parameters * brightness - _log_integral(parameters)).flatten(1).sum(1)

    def mean(
        self, parameters: Float[Tensor, "batch maps height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        near, size = _split(parameters)
        away = torch.where(parameters > 0, -1 / torch.expm1(-size), 1 / -torch.expm1(size)) - parameters.sign() / size
        return torch.where(near, 0.5 + parameters / 12 - parameters**3 / 720 + parameters**5 / 30240, away)

    def sample(
        self,
        parameters: Float[Tensor, "batch maps height width"],
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch channels height width"]:
        logits = parameters / temperature
        uniform = torch.rand(logits.shape, generator=generator, device=logits.device, dtype=logits.dtype)
        size = logits.abs().clamp(min=1e-5)  # 0 / 0 at 0, where draws are uniform
        small = -torch.log1p(uniform * torch.expm1(-size)) / size  # the inverse distribution function for logit -size
        return torch.where(logits > 0, 1 - small, small).clamp(0, 1)


def _split(logits: Float[Tensor, "*shape"]) -> tuple[Tensor, Float[Tensor, "*shape"]]:
    """Return where a series about 0 is right, and |logits| where it is not (1 elsewhere, so that gradients are finite).

    The closed forms divide 0 by 0 at 0 and lose digits about it.
    """
    near = logits.abs() < 0.3
    return near, torch.where(near, torch.ones_like(logits), logits.abs())


def _log_integral(logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return log of the integral of exp(logit * x) over [0, 1] = log((exp(logit) - 1) / logit)."""
    near, size = _split(logits)
    away = F.relu(logits) + torch.log(-torch.expm1(-size)) - torch.log(size)
    return torch.where(near, logits / 2 + logits**2 / 24 - logits**4 / 2880 + logits**6 / 181440, away)
