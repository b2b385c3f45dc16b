"""Items to latents and back: encode, decode, reconstruct, sample from the prior."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from seqvae.data.batching import stack
from seqvae.data.codec import Codec, strip
from seqvae.data.dataset import VALID_EPOCH
from seqvae.vae import VAE

ROWS = 256  # windows encoded or decoded at once


def device_of(vae: VAE) -> torch.device:
    """Return the device the VAE's parameters are on."""
    return next(vae.parameters()).device


@torch.no_grad()
def encode(vae: VAE, codec: Codec[Any], windows: Sequence[Tensor]) -> Float[Tensor, "windows latent"]:
    """Return the posterior mean of each window: the point to interpolate and edit from, never a random draw."""
    means = []
    for start in range(0, len(windows), ROWS):
        views = [_view(codec, window, start + place) for place, window in enumerate(windows[start : start + ROWS])]
        means.append(vae.encoder(stack(views).to(device_of(vae))).mean)
    return torch.cat(means)


def _view(codec: Codec[Any], window: Tensor, place: int) -> Tensor:
    """Return the window as validation sees it: what is drawn (binary pixels) depends on the place alone."""
    return codec.view(window, np.random.Generator(np.random.Philox(key=0, counter=[0, 0, VALID_EPOCH, place])))


@torch.no_grad()
def decode(
    vae: VAE,
    z: Float[Tensor, "windows latent"],
    strategy: Any = None,
    generator: torch.Generator | None = None,
) -> list[Tensor]:
    """Return the window that each latent decodes to: the most likely one without a strategy."""
    windows: list[Tensor] = []
    for part in torch.split(z, ROWS):
        for window in vae.decoder.sample(part, strategy=strategy, generator=generator).cpu():
            windows.append(strip(window) if window.ndim == 1 else window)
    return windows


def reconstruct(vae: VAE, codec: Codec[Any], items: Sequence[Any], strategy: Any = None) -> list[Any]:
    """Return each item encoded and decoded again; a long item goes through window by window."""
    windows = [codec.windows(item) for item in items]
    decoded = iter(decode(vae, encode(vae, codec, [window for part in windows for window in part]), strategy))
    return [codec.join([next(decoded) for _ in part], like=item) for part, item in zip(windows, items, strict=True)]


def sample(
    vae: VAE, codec: Codec[Any], n: int, strategy: Any = None, generator: torch.Generator | None = None
) -> list[Any]:
    """Return n items of one window each, their latents drawn from the prior.

    Raises:
        ValueError: when n is not positive.
    """
    if n < 1:
        raise ValueError(f"n must be positive, got {n}")
    with torch.no_grad():
        z = vae.prior(vae.encoder).sample(n, generator)
    return [codec.join([window]) for window in decode(vae, z, strategy, generator)]
