"""Likelihoods of pixels: the last part of an image decoder, exchangeable by one key of the model's configuration."""

from typing import Protocol

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F


class Likelihood(Protocol):
    """p(pixels | parameters): parameters are the feature maps that a decoder's last convolution gives."""

    def maps(self, channels: int, levels: int) -> int:
        """Return how many maps it needs for an image; ValueError where it is no likelihood of such pixels."""

    def log_prob(
        self, parameters: Float[Tensor, "batch maps height width"], x: UInt8[Tensor, "batch channels height width"]
    ) -> Float[Tensor, " batch"]:
        """Return log p(x) in nats, summed over all pixels and channels."""

    def mean(
        self, parameters: Float[Tensor, "batch maps height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return the expected pixels in [0, 1]."""

    def sample(
        self,
        parameters: Float[Tensor, "batch maps height width"],
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch channels height width"]:
        """Draw pixels in [0, 1]."""


class Bernoulli:
    """Pixels that are 0 or 1; the parameters are logits, never probabilities, or gradients vanish beyond 17."""

    def maps(self, channels: int, levels: int) -> int:
        if levels != 2:
            raise ValueError(
                f"the Bernoulli likelihood needs pixels of 2 levels (data.view.binarize=true), got {levels}"
            )
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
