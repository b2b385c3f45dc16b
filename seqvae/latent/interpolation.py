"""The way from one latent to another, and the items along it."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from seqvae.data.codec import Codec
from seqvae.latent.sampling import decode, encode, join
from seqvae.vae import VAE

PARALLEL = 1e-4  # an angle whose sine would be divided by; there the arc is its chord


def lerp(a: Float[Tensor, " latent"], b: Float[Tensor, " latent"], share: float) -> Float[Tensor, " latent"]:
    """Return the point at `share` of the straight line from a to b."""
    return a + (b - a) * share


def slerp(a: Float[Tensor, " latent"], b: Float[Tensor, " latent"], share: float) -> Float[Tensor, " latent"]:
    """Return the point at `share` of the arc from a to b (Shoemake, 1985; White, 2016), lengths in proportion.

    Directions turn at a constant rate and lengths go linearly from one to the other, so the ends are a and b
    exactly. Where there is no arc (a zero vector, parallel or opposite directions) it is the straight line.
    """
    length_a, length_b = a.norm(), b.norm()
    if length_a == 0 or length_b == 0:
        return lerp(a, b, share)
    direction_a, direction_b = a / length_a, b / length_b
    # atan2 of the two half-chords keeps its digits where acos of the cosine has none left
    angle = 2 * torch.atan2((direction_a - direction_b).norm(), (direction_a + direction_b).norm())
    if angle.sin().abs() < PARALLEL:
        return lerp(a, b, share)
    direction = (torch.sin((1 - share) * angle) * direction_a + torch.sin(share * angle) * direction_b) / angle.sin()
    point: Tensor = direction * (length_a + (length_b - length_a) * share)
    return point


METHODS = {"slerp": slerp, "lerp": lerp}


def path(
    a: Float[Tensor, " latent"], b: Float[Tensor, " latent"], steps: int, method: str = "slerp"
) -> Float[Tensor, "steps latent"]:
    """Return `steps` points from a to b, both ends counted.

    Raises:
        ValueError: for fewer than two steps or an unknown method.
    """
    if steps < 2:
        raise ValueError(f"steps must be at least 2 (both ends count), got {steps}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    return torch.stack([METHODS[method](a, b, step / (steps - 1)) for step in range(steps)])


def interpolate(
    vae: VAE, codec: Codec[Any], a: Any, b: Any, steps: int = 7, method: str = "slerp", strategy: Any = None
) -> list[Any]:
    """Return `steps` items from the reconstruction of a to that of b.

    Items of several windows go window by window, as far as the shorter one reaches. The first half takes tempo,
    program or size from a, the second from b.
    """
    windows_a, windows_b = codec.windows(a), codec.windows(b)
    count = min(len(windows_a), len(windows_b))
    latents_a, latents_b = (encode(vae, codec, windows[:count]) for windows in (windows_a, windows_b))
    # [steps windows latent]: the steps of each window's own path
    latents = torch.stack([path(p, q, steps, method) for p, q in zip(latents_a, latents_b, strict=True)], dim=1)
    decoded: Sequence[Tensor] = decode(vae, latents.flatten(0, 1), strategy)
    likes = [a if 2 * step < steps else b for step in range(steps)]
    return join(codec, decoded, [count] * steps, likes)


def grid(
    vae: VAE,
    codec: Codec[Any],
    corners: Sequence[Any],
    rows: int,
    columns: int,
    method: str = "slerp",
    strategy: Any = None,
) -> list[Any]:
    """Return rows * columns items, row by row, between four: A left and B right above, C left and D right below.

    The left side goes from A to C and the right side from B to D; every row goes from the one to the other. Each item
    takes tempo, program or size from the corner that is nearest.

    Raises:
        ValueError: unless there are four corners and at least two rows and columns.
    """
    if len(corners) != 4:
        raise ValueError(f"a grid has four corners, got {len(corners)} items")
    if min(rows, columns) < 2:
        raise ValueError(f"a grid needs at least 2 rows and 2 columns (the corners count), got {rows}x{columns}")
    windows = [codec.windows(item) for item in corners]
    count = min(len(part) for part in windows)
    latents = []  # of each window its own grid
    for a, b, c, d in zip(*(encode(vae, codec, part[:count]) for part in windows), strict=True):
        sides = zip(path(a, c, rows, method), path(b, d, rows, method), strict=True)
        latents.append(torch.cat([path(left, right, columns, method) for left, right in sides]))
    decoded = decode(vae, torch.stack(latents, dim=1).flatten(0, 1), strategy)
    likes = [corners[2 * (2 * y >= rows) + (2 * x >= columns)] for y in range(rows) for x in range(columns)]
    return join(codec, decoded, [count] * len(likes), likes)
