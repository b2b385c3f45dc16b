"""Gaps in a sequence filled by what a VAE holds likely, given all that is known before and behind them."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seqvae.data.batching import stack
from seqvae.data.codec import Codec, Gapped
from seqvae.evaluation import importance_weighted_bound
from seqvae.latent.sampling import device_of
from seqvae.vae import VAE

METHODS = ("resample", "optimise")
CHAINS = 8  # searches side by side
PROPOSALS = 16  # of a gap's filling, and of z, each time a chain moves
SCORED = 4  # candidates that are weighed well, for each one wanted
ROWS = 256  # sequences decoded at once
CLIMB, RATE = 10, 0.1  # steps uphill in z between two fillings, and Adam's learning rate

Fills: TypeAlias = tuple[tuple[int, ...], ...]
"""The tokens in each gap."""


@runtime_checkable
class Writer(Protocol):
    """A decoder that writes a sequence token by token (models/lstm.py has one)."""

    max_length: int

    def start(self, z: Float[Tensor, "batch latent"]) -> Any:
        """Return the state before the first token."""

    def step(self, token: Int[Tensor, " batch"], state: Any) -> tuple[Float[Tensor, "batch vocab"], Any]:
        """Feed one token a row (-1 before the first); return the logits of the next and the new state."""


class Imputation(NamedTuple):
    """One way to fill the gaps."""

    item: Any
    window: Int[Tensor, " time"]
    log_prob: float  # the importance-weighted log p of the whole window, nats


def impute(
    vae: VAE,
    codec: Codec[Any],
    item: Any,
    n: int = 5,
    *,
    marker: str | None = None,
    longest: int = 3,
    steps: int = 15,
    method: str = "resample",
    samples: int = 64,
    generator: torch.Generator | None = None,
) -> list[Imputation]:
    """Return up to n different ways to fill an item's gaps with 1 to `longest` tokens each, the likeliest first.

    "resample" draws z and the fillings in turn from p(z, filling | what is known): each move draws anew from a pool
    of proposals and the current value, in proportion to their importance weights, which leaves that distribution as
    it is (Andrieu et al., 2010, iterated sampling importance resampling). "optimise" climbs log p(x, z): by gradient
    in z, and to the best of the same proposals in a gap. Either way the candidates met are then compared by log p(x).

    Raises:
        ValueError: for an item without gaps or with too much around them, a model that does not write token by token
            or has no latent, numbers that are not positive, or an unknown method.
    """
    for name, value in (("n", n), ("longest gap", longest), ("steps", steps), ("samples", samples)):
        if value < 1:
            raise ValueError(f"{name} must be positive, got {value}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    gapped = codec.gapped(item, marker)
    decoder = vae.decoder
    if not isinstance(decoder, Writer):
        raise ValueError(f"{type(decoder).__name__} does not write token by token, so it fills no gaps")
    if not vae.latent_dim:
        raise ValueError(
            "this model has no latent to search: a language model writes from left to right and fills no gap"
        )
    known, gaps = sum(len(part) for part in gapped.known), len(gapped.first)
    if known + gaps > decoder.max_length:
        raise ValueError(
            f"{known} known tokens and {gaps} gaps are more than the {decoder.max_length} tokens of this model's windows"
        )
    if not all(first.any() for first in gapped.first):
        raise ValueError("no token of this model can begin the filling of a gap that touches a word")
    found: dict[Fills, float] = {}
    for fills, worth in _Search(vae, gapped, longest, generator).run(steps, method):
        found[fills] = max(worth, found.get(fills, -math.inf))
    windows = _most_promising(codec, item, marker, gapped, found, SCORED * n)
    if not windows:
        raise ValueError("no filling was found that can be read; more steps may find one")
    x = stack(list(windows.values())).to(device_of(vae))
    log_prob = importance_weighted_bound(vae, x, samples, generator, ROWS).log_prob.tolist()
    scored = [Imputation(*pair, nats) for pair, nats in zip(windows.items(), log_prob, strict=True)]
    return sorted(scored, key=lambda one: -one.log_prob)[:n]


def _most_promising(
    codec: Codec[Any], item: Any, marker: str | None, gapped: Gapped, found: dict[Fills, float], count: int
) -> dict[Any, Tensor]:
    """Return the windows of so many candidates by their items, no two of which are the same."""
    windows: dict[Any, Tensor] = {}
    for fills in sorted(found, key=lambda fills: -found[fills]):
        parts = [torch.tensor(fill) for fill in fills]
        if all(_readable(codec, part) for part in parts):
            windows.setdefault(codec.filled(item, parts, marker), _window(gapped, parts))
        if len(windows) == count:
            break
    return windows


def _readable(codec: Codec[Any], fill: Tensor) -> bool:
    """Return whether the filling is an item of its own, and not a space or half a character."""
    text = codec.join([fill])
    try:
        return bool(codec.join(codec.windows(text)) == text)
    except ValueError:
        return False


def _window(gapped: Gapped, fills: Sequence[Tensor]) -> Tensor:
    """Return the whole window: what is known, and the fillings between."""
    return torch.cat([part for pair in zip(gapped.known, [*fills, fills[0][:0]], strict=True) for part in pair])


class _Drawn(NamedTuple):
    """Fillings, and the log probability with which each was drawn."""

    fills: list[Tensor]
    log_prob: Float[Tensor, " rows"]


class _Search:
    """Chains of (z, fillings) that move side by side."""

    def __init__(self, vae: VAE, gapped: Gapped, longest: int, generator: torch.Generator | None) -> None:
        self.vae, self.gapped, self.longest, self.generator = vae, gapped, longest, generator
        self.device = device_of(vae)
        with torch.no_grad():
            self.prior = vae.prior(vae.encoder)
            # they begin with what is known, and nothing in the gaps
            self.z = vae.encoder(torch.cat(gapped.known).unsqueeze(0).to(self.device)).rsample(CHAINS, generator)[:, 0]
        self.fills = [[torch.empty(0, dtype=torch.int64)] * len(gapped.first) for _ in range(CHAINS)]

    def run(self, steps: int, method: str) -> Iterator[tuple[Fills, float]]:
        """Move all chains so many times; yield where each one stands and what its window seems to be worth, in nats."""
        for _ in range(steps):
            for gap in range(len(self.gapped.first)):
                self._refill(gap, method)
            worth = self._climb() if method == "optimise" else self._redraw()
            for fills, nats in zip(self.fills, worth.tolist(), strict=True):
                yield tuple(tuple(fill.tolist()) for fill in fills), nats

    @torch.no_grad()
    def _refill(self, gap: int, method: str) -> None:
        """Choose each chain's filling of a gap among proposals and what stands there."""
        pool: list[tuple[int, Tensor]] = []  # whose chain, and the filling; -1 is to be drawn
        for chain, fills in enumerate(self.fills):
            pool += [(chain, torch.full((length,), -1)) for length in self._lengths(fills, gap)]
            pool += [(chain, fills[gap])] if len(fills[gap]) else []
        chains = torch.tensor([chain for chain, _ in pool])
        left = [self._left(chain, gap) for chain in chains.tolist()]
        drawn = self._draw(self.z[chains], left, [fill for _, fill in pool], self.gapped.first[gap])
        windows = []
        for (chain, _), fill in zip(pool, drawn.fills, strict=True):
            fills = [fill if place == gap else other for place, other in enumerate(self.fills[chain])]
            windows.append(_window(self.gapped, fills))
        log_likelihood = self._log_likelihood(windows, self.z[chains])
        if method == "optimise":
            chosen = log_likelihood.view(CHAINS, -1).argmax(1)
        else:
            chosen = self._choose((log_likelihood - drawn.log_prob).view(CHAINS, -1))
        size = len(pool) // CHAINS
        for chain, place in enumerate(chosen.tolist()):
            self.fills[chain][gap] = drawn.fills[chain * size + place]

    def _lengths(self, fills: Sequence[Tensor], gap: int) -> list[int]:
        """Return the lengths of a chain's proposals; every gap gets a token at least."""
        others = sum(max(1, len(fill)) for place, fill in enumerate(fills) if place != gap)
        room = self.vae.decoder.max_length - sum(map(len, self.gapped.known)) - others
        most = min(self.longest, room)
        return [
            1 + int(torch.randint(most, (), generator=self.generator, device=self.device)) for _ in range(PROPOSALS)
        ]

    def _left(self, chain: int, gap: int) -> Tensor:
        """Return all of a chain's tokens before a gap."""
        fills = self.fills[chain][:gap]
        return torch.cat([part for pair in zip(self.gapped.known, [*fills, self.gapped.known[0][:0]]) for part in pair])

    def _draw(self, z: Tensor, left: Sequence[Tensor], fills: Sequence[Tensor], first: Tensor) -> _Drawn:
        """Return the fillings, their -1 drawn from p(token | z, tokens before), and the log probability of that draw."""
        decoder = self.vae.decoder
        rows = [torch.cat(pair).to(self.device) for pair in zip(left, fills, strict=True)]
        tokens = stack(rows)
        begin = torch.tensor([len(part) for part in left], device=self.device)
        end = torch.tensor([len(row) for row in rows], device=self.device)
        first, inside = first.to(self.device), self.gapped.inside.to(self.device)
        log_prob = torch.zeros(len(rows), device=self.device)
        token, state = torch.full_like(begin, -1), decoder.start(z)
        for position in range(tokens.shape[1]):
            logits, state = decoder.step(token, state)
            token = tokens[:, position]
            inside_gap = (begin <= position) & (position < end)
            if inside_gap.any():
                allowed = torch.where((begin == position).unsqueeze(1), first, inside)
                nats = torch.log_softmax(logits.float().masked_fill(~allowed, -math.inf), -1)
                drawn = torch.multinomial(nats.exp(), 1, generator=self.generator).squeeze(1)
                token = torch.where(inside_gap & (token < 0), drawn, token)
                tokens[:, position] = token
                own = nats.gather(1, token.clamp(min=0).unsqueeze(1)).squeeze(1)
                log_prob += torch.where(inside_gap, own, 0.0)
        spans = zip(tokens.cpu(), begin.tolist(), end.tolist(), strict=True)
        return _Drawn([row[start:stop] for row, start, stop in spans], log_prob)

    @torch.no_grad()
    def _redraw(self) -> Tensor:
        """Choose each chain's z among draws from its posterior and the one it has; return estimates of log p(x)."""
        x = self._windows()
        posterior = self.vae.encoder(x)
        pool = torch.cat([posterior.rsample(PROPOSALS, self.generator), self.z.unsqueeze(0)])
        weights = self.vae.terms_at(x, posterior, pool, self.prior).log_weights
        self.z = pool[self._choose(weights.T), torch.arange(CHAINS)]
        return weights[:-1].logsumexp(0) - math.log(PROPOSALS)

    def _climb(self) -> Tensor:
        """Move each chain's z up log p(x, z); return what it has come to."""
        x, z = self._windows(), self.z.clone().requires_grad_()
        optimizer = torch.optim.Adam([z], lr=RATE)
        for _ in range(CLIMB):
            (gradient,) = torch.autograd.grad(self._joint(x, z).sum(), z)
            z.grad = -gradient
            optimizer.step()
        self.z = z.detach()
        with torch.no_grad():
            return self._joint(x, self.z)

    def _joint(self, x: Tensor, z: Tensor) -> Tensor:
        with torch.backends.cudnn.flags(enabled=False):  # its LSTM has no backward pass outside of training
            return self.vae.decoder.log_prob(x, z) + self.prior.log_prob(z.unsqueeze(0))[0]

    def _windows(self) -> Tensor:
        return stack([_window(self.gapped, fills) for fills in self.fills]).to(self.device)

    def _log_likelihood(self, windows: Sequence[Tensor], z: Tensor) -> Tensor:
        parts = zip(torch.split(stack(windows).to(self.device), ROWS), torch.split(z, ROWS), strict=True)
        return torch.cat([self.vae.decoder.log_prob(x, part) for x, part in parts])

    def _choose(self, log_weights: Float[Tensor, "chains pool"]) -> Int[Tensor, " chains"]:
        """Return a place in each chain's pool, drawn in proportion to the weights."""
        return torch.multinomial(torch.softmax(log_weights, 1), 1, generator=self.generator).squeeze(1)
