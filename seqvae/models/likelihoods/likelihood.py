"""What a likelihood of pixels is."""

from typing import Protocol

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


class Likelihood(Protocol):
    """p(pixels | parameters): parameters are the feature maps that a decoder's last convolution gives."""

    is_density: bool  # over brightness in [0, 1]: no probability of levels, and so no NLL and no bits

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
        """Draw pixels in [0, 1]; a lower temperature draws nearer to what is likely."""


def check_levels(name: str, wanted: int, levels: int) -> None:
    """Raise ValueError for pixels of another number of levels, with the key that changes it."""
    if levels != wanted:
        key = f"data.view.binarize={'true' if wanted == 2 else 'false'}"
        raise ValueError(f"the {name} likelihood needs pixels of {wanted} levels ({key}), got {levels}")
