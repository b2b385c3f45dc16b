"""Items to latents and back: encode, decode, reconstruct, sample from the prior."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from seqvae.data.batching import stack
from seqvae.data.codec import Codec, strip
from seqvae.data.dataset import VALID_EPOCH
from seqvae.gaussian import DiagonalGaussian
from seqvae.priors import PriorDistribution
from seqvae.vae import VAE

ROWS = 256  # windows encoded or decoded at once
DRIFT = 0.5  # of a chain: what is left of a latent halves within five windows
MOST_DRAWS = 10  # windows drawn for each one wanted, where not all of them are kept


def device_of(vae: VAE) -> torch.device:
    """Return the device the VAE's parameters are on."""
    return next(vae.parameters()).device


@torch.no_grad()
def posterior(vae: VAE, codec: Codec[Any], windows: Sequence[Tensor]) -> DiagonalGaussian:
    """Return q(z|x) of each window."""
    parts = []
    for start in range(0, len(windows), ROWS):
        views = [_view(codec, window) for window in windows[start : start + ROWS]]
        parts.append(vae.encoder(stack(views).to(device_of(vae))))
    return DiagonalGaussian(torch.cat([part.mean for part in parts]), torch.cat([part.log_variance for part in parts]))


def encode(vae: VAE, codec: Codec[Any], windows: Sequence[Tensor]) -> Float[Tensor, "windows latent"]:
    """Return the posterior mean of each window: the point to interpolate and edit from, never a random draw."""
    return posterior(vae, codec, windows).mean


def _view(codec: Codec[Any], window: Tensor) -> Tensor:
    """Return the window as the encoder may see it; what is drawn (binary pixels) depends on the window alone."""
    key = zlib.crc32(window.numpy().tobytes())  # one key for all would shift the mean over them by its one mask
    return codec.view(window, np.random.Generator(np.random.Philox(key=key, counter=[0, 0, VALID_EPOCH, 0])))


@torch.no_grad()
def decode(
    vae: VAE,
    z: Float[Tensor, "windows latent"],
    strategy: Any = None,
    generator: torch.Generator | None = None,
) -> list[Tensor]:
    """Return the window that each latent decodes to; without a strategy, most likely tokens and mean pixels."""
    windows: list[Tensor] = []
    rows = max(1, ROWS // getattr(strategy, "width", 1))  # the hypotheses of a beam are rows too
    for part in torch.split(z, rows):
        windows += map(strip, vae.decoder.sample(part, strategy=strategy, generator=generator).cpu())
    return windows


@torch.no_grad()
def log_likelihood(
    vae: VAE, codec: Codec[Any], windows: Sequence[Tensor], z: Float[Tensor, "windows latent"]
) -> Float[Tensor, " windows"]:
    """Return log p(x|z) of each window at its own z, in nats."""
    parts = []
    for start in range(0, len(windows), ROWS):
        x = stack([_view(codec, window) for window in windows[start : start + ROWS]]).to(z.device)
        parts.append(vae.decoder.log_prob(x, z[start : start + ROWS]))
    return torch.cat(parts)


def reconstruct(vae: VAE, codec: Codec[Any], items: Sequence[Any], strategy: Any = None) -> list[Any]:
    """Return each item encoded and decoded again; a long item goes through window by window."""
    windows = [codec.windows(item) for item in items]
    z = encode(vae, codec, [window for part in windows for window in part])
    return join(codec, decode(vae, z, strategy), [len(part) for part in windows], items)


def join(codec: Codec[Any], windows: Sequence[Tensor], counts: Sequence[int], likes: Sequence[Any]) -> list[Any]:
    """Return the items whose windows stand one after another: `counts` of them each, told by what they are like."""
    following = iter(windows)
    return [codec.join([next(following) for _ in range(n)], like=like) for n, like in zip(counts, likes, strict=True)]


def sample(
    vae: VAE, codec: Codec[Any], n: int, strategy: Any = None, generator: torch.Generator | None = None
) -> list[Any]:
    """Return n items of one window each, their latents drawn from the prior.

    Raises:
        ValueError: when n is not positive.
    """
    return [codec.join([window]) for window in stream(vae, n, strategy, generator)]


def stream(
    vae: VAE,
    n: int,
    strategy: Any = None,
    generator: torch.Generator | None = None,
    keep: Callable[[Tensor], bool] | None = None,
    law: PriorDistribution | None = None,
) -> Iterator[Tensor]:
    """Return n windows decoded from latents of the law, by default the prior, drawn in batches as they are asked for.

    What `keep` refuses is drawn again, up to ten draws for each window wanted; then the stream ends early.

    Raises:
        ValueError: when n is not positive.
    """
    if n < 1:
        raise ValueError(f"n must be positive, got {n}")
    return _stream(vae, n, strategy, generator, keep, law)


def _stream(
    vae: VAE,
    n: int,
    strategy: Any,
    generator: torch.Generator | None,
    keep: Callable[[Tensor], bool] | None,
    law: PriorDistribution | None,
) -> Iterator[Tensor]:
    missing, draws = n, n if keep is None else MOST_DRAWS * n
    while missing and draws:
        batch = min(missing, draws, ROWS)
        with torch.no_grad():
            z = (law or vae.prior(vae.encoder)).sample(batch, generator)
        draws -= batch
        for window in decode(vae, z, strategy, generator):
            if keep is None or keep(window):
                missing -= 1
                yield window


def chains(
    vae: VAE,
    n: int,
    length: int,
    drift: float = DRIFT,
    strategy: Any = None,
    generator: torch.Generator | None = None,
    law: PriorDistribution | None = None,
) -> Iterator[list[Tensor]]:
    """Return n chains of `length` windows, whose latents walk: each drawn by the law, and near the one before it.

    From window to window the latent keeps sqrt(1 - drift^2) of where it was and takes new noise of weight `drift`, so
    that a drift of 0 repeats one latent and 1 draws each anew; see `PriorDistribution.walk`.

    Raises:
        ValueError: when n or length is not positive, or for a drift that is not between 0 and 1.
    """
    if n < 1 or length < 1:
        raise ValueError(f"n and the number of windows must be positive, got {n} and {length}")
    if not 0 <= drift <= 1:
        raise ValueError(f"drift must be between 0 and 1, got {drift}")
    return _chains(vae, n, length, drift, strategy, generator, law)


def _chains(
    vae: VAE,
    n: int,
    length: int,
    drift: float,
    strategy: Any,
    generator: torch.Generator | None,
    law: PriorDistribution | None,
) -> Iterator[list[Tensor]]:
    for done in range(0, n, at_once := max(1, ROWS // length)):
        with torch.no_grad():
            walked = law or vae.prior(vae.encoder)
            latents = [walked.sample(min(at_once, n - done), generator)]
            while len(latents) < length:
                latents.append(walked.walk(latents[-1], drift, generator))
        windows = decode(vae, torch.stack(latents, dim=1).flatten(0, 1), strategy, generator)
        yield from (windows[start : start + length] for start in range(0, len(windows), length))
