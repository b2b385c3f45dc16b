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
    end_id: int | None

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
            f"{known} known tokens and {gaps} gaps are more than a window's {decoder.max_length} tokens (with the end)"
        )
    if not all(first.any() for first in gapped.first):
        raise ValueError("no token of this model can begin the filling of a gap that touches a word")
    found: dict[Fills, float] = {}
    for fills, worth in _Search(vae, decoder, gapped, longest, generator).run(steps, method):
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
    """Return whether the filling is an item of its own, and not a space, a line break or half a character."""
    text = codec.join([fill])
    if not text.strip() or text.splitlines() != [text] or "\ufffd" in text:
        return False
    try:
        return bool(codec.join(codec.windows(text)) == text)
    except ValueError:
        return False


def _window(gapped: Gapped, fills: Sequence[Tensor]) -> Tensor:
    """Return the whole window: what is known, and the fillings between."""
    return torch.cat([part for pair in zip(gapped.known, [*fills, fills[0][:0]], strict=True) for part in pair])


class _Pool(NamedTuple):
    """What a gap of each chain may be filled with."""

    fills: list[list[Tensor]]
    log_likelihood: Float[Tensor, "chains pool"]  # of the filling and all behind it
    log_proposal: Float[Tensor, "chains pool"]  # of drawing it


class _Search:
    """Chains of (z, fillings) that move side by side."""

    def __init__(
        self, vae: VAE, decoder: Writer, gapped: Gapped, longest: int, generator: torch.Generator | None
    ) -> None:
        self.vae, self.decoder, self.gapped = vae, decoder, gapped
        self.longest, self.generator, self.device = longest, generator, device_of(vae)
        # the last token there can be is forced to be the end, which costs nothing
        self.forced = decoder.max_length if decoder.end_id is None else decoder.max_length - 1
        with torch.no_grad():
            self.prior = vae.prior(vae.encoder)
            # they begin with what is known, and nothing in the gaps
            self.z = vae.encoder(torch.cat(gapped.known).unsqueeze(0).to(self.device)).rsample(CHAINS, generator)[:, 0]
        self.fills = [[torch.empty(0, dtype=torch.int64)] * len(gapped.first) for _ in range(CHAINS)]

    def run(self, steps: int, method: str) -> Iterator[tuple[Fills, float]]:
        """Move all chains so many times; yield each one's fillings and what its window seems to be worth, in nats.

        Beside them come those that differ in one gap and were the likeliest of its pool, though not the ones chosen.
        """
        for _ in range(steps):
            likelier = [self._refill(gap, method) for gap in range(len(self.gapped.first))]
            worth = self._climb() if method == "optimise" else self._redraw()
            for chain, nats in enumerate(worth.tolist()):
                yield _key(self.fills[chain]), nats
                for gap, fills in enumerate(likelier):
                    fill, more = fills[chain]
                    yield _key([*self.fills[chain][:gap], fill, *self.fills[chain][gap + 1 :]]), nats + more

    @torch.no_grad()
    def _refill(self, gap: int, method: str) -> list[tuple[Tensor, float]]:
        """Choose each chain's filling of a gap among proposals and what stands there.

        Return the likeliest of each chain's pool, and by how many nats it is likelier than the one chosen.
        """
        alike: dict[int, list[int]] = {}  # chains with so many tokens before the gap
        for chain in range(CHAINS):
            alike.setdefault(len(self._before(chain, gap)), []).append(chain)
        likeliest: dict[int, tuple[Tensor, float]] = {}
        for chains in alike.values():
            pool = self._propose(chains, gap)
            best = pool.log_likelihood.argmax(1)
            chosen = best if method == "optimise" else self._choose(pool.log_likelihood - pool.log_proposal)
            for row, chain in enumerate(chains):
                self.fills[chain][gap] = pool.fills[row][int(chosen[row])]
                nats = pool.log_likelihood[row]
                likeliest[chain] = pool.fills[row][int(best[row])], float(nats[best[row]] - nats[chosen[row]])
        return [likeliest[chain] for chain in range(CHAINS)]

    def _propose(self, chains: Sequence[int], gap: int) -> _Pool:
        """Return proposals for a gap, drawn from p(token | z, all before it), and last what stands there.

        All chains have as many tokens before the gap. They go through those once; then each proposal has a row.
        """
        decoder = self.decoder
        state, token = decoder.start(self.z[chains]), torch.full((len(chains),), -1, device=self.device)
        before = torch.stack([self._before(chain, gap) for chain in chains]).to(self.device)
        for following in before.T:
            _, state = decoder.step(token, state)
            token = following
        rows, lengths, new = self._rows(chains, gap)
        copies = torch.arange(len(chains), device=self.device).repeat_interleave(len(rows) // len(chains))
        token, state = token[copies], state.select(copies)
        log_likelihood = log_proposal = torch.zeros(len(rows), device=self.device)
        for position in range(rows.shape[1]):
            logits, state = decoder.step(token, state)
            nats = torch.log_softmax(logits.float(), -1)
            token, filling = rows[:, position], position < lengths
            if filling.any():
                allowed = self.gapped.inside if position else self.gapped.first[gap]
                proposal = torch.log_softmax(nats.masked_fill(~allowed.to(self.device), -math.inf), -1)
                drawn = torch.multinomial(proposal.exp(), 1, generator=self.generator).squeeze(1)
                token = rows[:, position] = torch.where(filling & new, drawn, token)
                log_proposal = log_proposal + torch.where(filling, _of(proposal, token), 0.0)
            if before.shape[1] + position < self.forced:
                log_likelihood = log_likelihood + torch.where(token >= 0, _of(nats, token), 0.0)
        fills = [row[:length] for row, length in zip(rows.cpu(), lengths.tolist(), strict=True)]
        size = len(rows) // len(chains)
        return _Pool(
            [fills[start : start + size] for start in range(0, len(fills), size)],
            log_likelihood.view(len(chains), -1),
            log_proposal.view(len(chains), -1),
        )

    def _rows(self, chains: Sequence[int], gap: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the pool's rows from the gap on, how long each filling is, and which are to be drawn."""
        rows, lengths, new = [], [], []
        for chain in chains:
            behind, current = self._behind(chain, gap), self.fills[chain][gap]
            fills = [torch.full((length,), -1) for length in self._lengths(chain, gap)]
            rows += [torch.cat([fill, behind]) for fill in fills]
            lengths += [len(fill) for fill in fills]
            new += [True] * len(fills)
            if len(current):  # nothing stands there at first
                rows, lengths, new = [*rows, torch.cat([current, behind])], [*lengths, len(current)], [*new, False]
        return (
            stack(rows).to(self.device),
            torch.tensor(lengths, device=self.device),
            torch.tensor(new, device=self.device),
        )

    def _lengths(self, chain: int, gap: int) -> list[int]:
        """Return the lengths of a chain's proposals; every gap gets a token at least."""
        others = sum(max(1, len(fill)) for place, fill in enumerate(self.fills[chain]) if place != gap)
        room = self.decoder.max_length - sum(map(len, self.gapped.known)) - others
        drawn = torch.randint(min(self.longest, room), (PROPOSALS,), generator=self.generator, device=self.device)
        lengths: list[int] = (1 + drawn).tolist()
        return lengths

    def _before(self, chain: int, gap: int) -> Tensor:
        """Return all of a chain's tokens before a gap."""
        known, fills = self.gapped.known, self.fills[chain]
        return torch.cat([*(part for place in range(gap) for part in (known[place], fills[place])), known[gap]])

    def _behind(self, chain: int, gap: int) -> Tensor:
        """Return all of a chain's tokens behind a gap."""
        known, fills = self.gapped.known, self.fills[chain]
        later = range(gap + 1, len(fills))
        return torch.cat([known[gap + 1], *(part for place in later for part in (fills[place], known[place + 1]))])

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
            joint: Tensor = self.vae.decoder.log_prob(x, z) + self.prior.log_prob(z.unsqueeze(0))[0]
            return joint

    def _windows(self) -> Tensor:
        return stack([_window(self.gapped, fills) for fills in self.fills]).to(self.device)

    def _choose(self, log_weights: Float[Tensor, "chains pool"]) -> Int[Tensor, " chains"]:
        """Return a place in each chain's pool, drawn in proportion to the weights."""
        return torch.multinomial(torch.softmax(log_weights, 1), 1, generator=self.generator).squeeze(1)


def _of(nats: Float[Tensor, "rows vocab"], token: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """Return each row's own value; anything where there is no token."""
    return nats.gather(1, token.clamp(min=0).unsqueeze(1)).squeeze(1)


def _key(fills: Sequence[Tensor]) -> Fills:
    return tuple(tuple(fill.tolist()) for fill in fills)
