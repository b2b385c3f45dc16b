"""Attribute vectors: a direction in latent space along which a quality grows, and items moved along it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
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


def named_attributes(
    vae: VAE, codec: Codec[Any], windows: Sequence[Tensor], names: Sequence[str] | None = None
) -> dict[str, Float[Tensor, " latent"]]:
    """Return a vector for each of the codec's attributes: quarter with the most minus quarter with the least of it.

    The difference of mean posterior means over quartiles of the windows that have the attribute (Roberts et al., 2018,
    section 5.3). Windows of one amount stay together: where half of them have the same, the others are the quarters.
    Without `names` an attribute that is the same for all windows is left out.

    Raises:
        ValueError: for a name that the codec does not have, or one whose quartiles are no different.
    """
    values = [codec.attributes(window) for window in windows]
    known = sorted({name for value in values for name in value})
    for name in names or ():
        if name not in known:
            raise ValueError(f"the attribute must be one of {', '.join(known) or 'none'}, got {name!r}")
    latents = encode(vae, codec, windows).cpu().double()
    vectors = {}
    for name in known if names is None else names:
        having = torch.tensor([place for place, value in enumerate(values) if name in value])
        amounts = torch.tensor([value[name] for value in values if name in value], dtype=torch.float64)
        if len(amounts) >= 4 and amounts.min() < amounts.max():
            least, most = _quarters(amounts)
            vectors[name] = (latents[having[most]].mean(0) - latents[having[least]].mean(0)).float()
        elif names is not None:
            raise ValueError(f"{name} does not differ between the quartiles of {len(amounts):,} windows")
    return vectors


def _quarters(amounts: Float[Tensor, " windows"]) -> tuple[Bool[Tensor, " windows"], Bool[Tensor, " windows"]]:
    """Return which windows are the quarter with the least and with the most, equal amounts together.

    Cutting through equal amounts would compare windows by nothing but their place in the dataset.
    """
    quarter = len(amounts) // 4
    ranked = amounts.sort().values
    low, high = ranked[quarter - 1], ranked[-quarter]
    if low < high:
        return amounts <= low, amounts >= high
    below, above = amounts < low, amounts > low  # at least half of them have the amount between
    return below if below.any() else ~above, above if above.any() else ~below


class AttributeTable(NamedTuple):
    """The mean of each attribute over reconstructions, and over the same windows moved along each vector."""

    before: dict[str, float]
    after: dict[str, dict[str, float]]  # vector -> attribute -> mean

    def percent(self) -> dict[str, dict[str, float | None]]:
        """Return the change of each attribute in percent of what it was; None where it was nothing."""
        return {
            vector: {
                name: None if not was or name not in means else 100 * (means[name] / was - 1)
                for name, was in self.before.items()
            }
            for vector, means in self.after.items()
        }


def attribute_table(
    vae: VAE,
    codec: Codec[Any],
    windows: Sequence[Tensor],
    vectors: Mapping[str, Float[Tensor, " latent"]],
    strength: float = 1.0,
    strategy: Any = None,
) -> AttributeTable:
    """Return what becomes of each attribute of windows that are moved along each vector (Roberts et al., 2018)."""
    z = encode(vae, codec, windows)

    def means(latents: Float[Tensor, "windows latent"]) -> dict[str, float]:
        values: defaultdict[str, list[float]] = defaultdict(list)
        for window in decode(vae, latents, strategy):
            for name, value in codec.attributes(window).items():
                values[name].append(value)
        return {name: sum(row) / len(row) for name, row in sorted(values.items())}

    return AttributeTable(means(z), {name: means(z + strength * vector.to(z)) for name, vector in vectors.items()})


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
