"""Around an item in latent space: variations of it, and the items of a corpus that lie nearest."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from seqvae.data.codec import Codec
from seqvae.latent.sampling import decode, join, posterior
from seqvae.vae import VAE

NOISES = ("prior", "posterior")
METRICS = ("euclidean", "cosine")
CHUNK = 65_536  # rows of a corpus compared at once


def similar(
    vae: VAE,
    codec: Codec[Any],
    item: Any,
    n: int,
    strength: float,
    noise: str = "prior",
    strategy: Any = None,
    generator: torch.Generator | None = None,
) -> list[Any]:
    """Return n variations of an item: each decoded from posterior mean + strength * scale * e, e drawn from N(0, I).

    With the noise of the "prior" scale is the prior's standard deviation in each dimension (1 for N(0, I)): at strength
    1 the noise alone is as wide as the prior, at 0.3 the item still shows. With that of the "posterior" it is the
    posterior's own: strength 1 draws from q(z|x). At 0 every variation is the reconstruction. Windows of a long item
    vary independently.

    Raises:
        ValueError: for an n that is not positive, a negative strength, or an unknown noise.
    """
    if n < 1:
        raise ValueError(f"n must be positive, got {n}")
    if not 0 <= strength < math.inf:
        raise ValueError(f"strength must be 0 or more, got {strength}")
    if noise not in NOISES:
        raise ValueError(f"noise must be one of {', '.join(NOISES)}, got {noise!r}")
    windows = codec.windows(item)
    q = posterior(vae, codec, windows)
    with torch.no_grad():
        scale = torch.exp(0.5 * q.log_variance) if noise == "posterior" else vae.prior(vae.encoder).deviation
    e = torch.randn(n, *q.mean.shape, generator=generator, device=q.mean.device, dtype=q.mean.dtype)
    z = q.mean + strength * scale * e
    return join(codec, decode(vae, z.flatten(0, 1), strategy, generator), [len(windows)] * n, [item] * n)


@dataclass(frozen=True)
class Nearest:
    """The nearest rows of a corpus to each query, the nearest first."""

    distance: Float[Tensor, "queries k"]
    index: Int[Tensor, "queries k"]


def nearest(
    queries: Float[Tensor, "queries latent"],
    corpus: Shaped[Tensor, "n latent"],
    k: int,
    metric: str = "euclidean",
    chunk: int = CHUNK,
) -> Nearest:
    """Return the k rows of the corpus that are nearest to each query; a chunk at a time gets the queries' dtype.

    The distance is |a - b|, or 1 - cos(a, b) for "cosine", from 0 (one direction) to 2.

    Raises:
        ValueError: when k is not between 1 and the size of the corpus, or for an unknown metric.
    """
    if not 1 <= k <= len(corpus):
        raise ValueError(f"k must be between 1 and the {len(corpus):,} rows of the corpus, got {k}")
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    if metric == "cosine":
        queries = F.normalize(queries, dim=1)
    best = Nearest(
        queries.new_empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    )
    for start in range(0, len(corpus), chunk):
        rows = corpus[start : start + chunk].to(queries)
        if metric == "cosine":
            distance = 1 - queries @ F.normalize(rows, dim=1).T
        else:  # by differences: by products, equal points would not be at distance 0
            distance = torch.cdist(queries, rows, compute_mode="donot_use_mm_for_euclid_dist")
        index = torch.arange(start, start + len(rows), device=queries.device).expand(len(queries), -1)
        distance, index = torch.cat([best.distance, distance], 1), torch.cat([best.index, index], 1)
        found = distance.topk(min(k, distance.shape[1]), largest=False)
        best = Nearest(found.values, index.gather(1, found.indices))
    return best
