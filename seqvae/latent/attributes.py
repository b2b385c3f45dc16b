"""Attribute vectors: a direction in latent space along which a quality grows, and items moved along it."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from seqvae.data.codec import Codec
from seqvae.latent.sampling import decode, encode, join
from seqvae.vae import VAE

NOTHING = 1e-4  # of a vector's length: what is left of it by rounding alone


def attribute(
    vae: VAE,
    codec: Codec[Any],
    having: Sequence[Tensor],
    lacking: Sequence[Tensor],
    orthogonal_to: Sequence[Float[Tensor, " latent"]] = (),
) -> Float[Tensor, " latent"]:
    """Return the mean posterior mean of the windows having a quality minus that of those lacking it.

    Larsen et al. (2016), section 4.2; Roberts et al. (2018), section 5.3. Every window weighs the same. The part
    along the vectors of `orthogonal_to` is taken out, so that moving along the result leaves those qualities alone.

    Raises:
        ValueError: for an empty set, or when nothing is left beside `orthogonal_to`.
    """
    for name, windows in (("with", having), ("without", lacking)):
        if not windows:
            raise ValueError(f"the set of items {name} the attribute is empty")
    ends = [encode(vae, codec, windows).cpu().double().mean(0) for windows in (having, lacking)]
    return orthogonalize(ends[0] - ends[1], orthogonal_to).float()


def orthogonalize(
    vector: Float[Tensor, " latent"], others: Sequence[Float[Tensor, " latent"]]
) -> Float[Tensor, " latent"]:
    """Return the vector without its part in the span of the others, in float64.

    Raises:
        ValueError: when it lies in their span.
    """
    vector = vector.double()
    if not others:
        return vector
    basis, sizes, _ = torch.linalg.svd(torch.stack([other.to(vector) for other in others], dim=1), full_matrices=False)
    basis = basis[:, sizes > NOTHING * sizes.max()]  # others that point the same way count once
    left: Tensor = vector - basis @ (basis.T @ vector)
    if left.norm() <= NOTHING * vector.norm():
        raise ValueError("nothing is left of the attribute beside those it should be orthogonal to")
    return left


def edit(
    vae: VAE,
    codec: Codec[Any],
    items: Sequence[Any],
    vector: Float[Tensor, " latent"],
    strengths: Sequence[float],
    strategy: Any = None,
) -> list[Any]:
    """Return each item decoded from posterior mean + strength * vector, all strengths of one item after another.

    At 0 it is the reconstruction; 1 goes as far as from the mean of the items without the attribute to the mean of
    those with it, -1 as far the other way. A long item moves window by window.
    """
    windows = [codec.windows(item) for item in items]
    counts = [len(part) for part in windows]
    z = encode(vae, codec, [window for part in windows for window in part])
    step = vector.to(z)
    rows = [join(codec, decode(vae, z + strength * step, strategy), counts, items) for strength in strengths]
    return [row[place] for place in range(len(items)) for row in rows]
