"""How an autoregressive decoder's next token is chosen, and the loop that writes sequences with it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, Self, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

CACHED = 2**18  # logits whose tokens are chosen at once: 1 MiB, and twice that for their cumulative sums


class Carried(Protocol):
    """What a decoder carries from token to token."""

    def select(self, rows: Int[Tensor, " rows"]) -> Self:
        """Return the state of these rows of the batch, in this order; a row may come more than once."""


State = TypeVar("State", bound=Carried)


class Strategy(Protocol):
    """Chooses the next token of every row."""

    def __call__(
        self, logits: Float[Tensor, "batch vocab"], generator: torch.Generator | None
    ) -> Int[Tensor, " batch"]:
        """Return one token a row; -inf marks a token that must not be chosen."""


@dataclass(frozen=True)
class Greedy:
    """The most likely token."""

    def __call__(
        self, logits: Float[Tensor, "batch vocab"], generator: torch.Generator | None
    ) -> Int[Tensor, " batch"]:
        return logits.argmax(-1)


def _draw(weights: Float[Tensor, "batch choices"], generator: torch.Generator | None) -> Int[Tensor, " batch"]:
    """Return a choice a row in proportion to the weights, never one of weight 0.

    One random number a row: torch.multinomial draws one a choice, which costs as much as the network.
    """
    point = torch.rand(len(weights), generator=generator, device=weights.device, dtype=_precision(weights))
    return draw_at(weights, point)


def draw_at(weights: Float[Tensor, "batch choices"], point: Float[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """Return the choice of each row in which this point of [0, 1) lies, where its choices stand end to end."""
    cumulative = weights.to(_precision(weights)).cumsum(-1)
    place = torch.searchsorted(cumulative, point.unsqueeze(1) * cumulative[:, -1:], right=True).squeeze(-1)
    return place.clamp(max=weights.shape[-1] - 1)


def _precision(weights: Tensor) -> torch.dtype:
    """Return what sums of weights are in: a float32 sum would miss weights below 1e-7 of it, and MPS has no float64."""
    return torch.float32 if weights.device.type == "mps" else torch.float64


@dataclass(frozen=True)
class Temperature:
    """A draw from softmax(logits / temperature): 1 is the model's own distribution, below 1 is safer."""

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be positive, got {self.temperature!r}")

    def __call__(
        self, logits: Float[Tensor, "batch vocab"], generator: torch.Generator | None
    ) -> Int[Tensor, " batch"]:
        scaled = logits if self.temperature == 1 else logits / self.temperature
        return _draw(torch.softmax(scaled, -1), generator)


@dataclass(frozen=True)
class TopK:
    """A draw from the k likeliest tokens (Fan et al., 2018), in proportion to softmax(logits / temperature)."""

    k: int
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise ValueError(f"top-k must be a positive int, got {self.k!r}")
        Temperature(self.temperature)

    def __call__(
        self, logits: Float[Tensor, "batch vocab"], generator: torch.Generator | None
    ) -> Int[Tensor, " batch"]:
        likeliest, tokens = logits.topk(min(self.k, logits.shape[-1]))
        place = Temperature(self.temperature)(likeliest, generator)
        return tokens.gather(-1, place.unsqueeze(-1)).squeeze(-1)


@dataclass(frozen=True)
class TopP:
    """A draw from the nucleus: the fewest likeliest tokens that together hold probability p (Holtzman et al., 2020).

    The probabilities are those of softmax(logits / temperature); the likeliest token is always among them.
    """

    p: float
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1:
            raise ValueError(f"top-p must be above 0 and at most 1, got {self.p!r}")
        Temperature(self.temperature)

    def __call__(
        self, logits: Float[Tensor, "batch vocab"], generator: torch.Generator | None
    ) -> Int[Tensor, " batch"]:
        probability, tokens = torch.softmax(logits / self.temperature, -1).sort(descending=True)
        likelier = probability.cumsum(-1) - probability  # what the tokens before each one hold
        place = _draw(probability.masked_fill(likelier >= self.p, 0.0), generator)
        return tokens.gather(-1, place.unsqueeze(-1)).squeeze(-1)


@dataclass(frozen=True)
class Beam:
    """The best sequence that a search with `width` hypotheses a row finds: nothing is drawn, width 1 is greedy.

    The best has the highest log p(x|z) / length ** length_penalty: 0 looks for the most probable sequence, which is
    often a short one, and 1 for the most probable token on average. Lengths count the end.
    """

    width: int
    length_penalty: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.width, bool) or not isinstance(self.width, int) or self.width < 1:
            raise ValueError(f"beam width must be a positive int, got {self.width!r}")
        if not 0 <= self.length_penalty < math.inf:
            raise ValueError(f"length_penalty must be 0 or more, got {self.length_penalty!r}")


@torch.no_grad()
def generate(
    step: Callable[[Int[Tensor, "batch *parts"], State], tuple[Float[Tensor, "batch vocab"], State]],
    state: State,
    strategy: Strategy | Beam,
    *,
    batch: int,
    max_length: int,
    end_id: int | None,
    unk_id: int | None,
    device: torch.device,
    generator: torch.Generator | None = None,
    part_sizes: Sequence[int] = (),
) -> Int[Tensor, "batch time *parts"]:
    """Write `batch` sequences a token at a time until every row has ended; behind its end a row holds -1.

    The first token fed is -1, the zero vector. With an `end_id` the end is forced at `max_length`, as the
    likelihood has it; `unk_id` is never written, because nobody can read it. Rows that have ended are no longer
    computed, and draw no random numbers. Where tokens have several parts, whose logits stand side by side in blocks
    of `part_sizes`, the strategy chooses each part by itself.

    Raises:
        ValueError: for a beam over tokens of several parts, or with a length penalty where nothing ends.
    """
    shape = (len(part_sizes),) if len(part_sizes) > 1 else ()
    if isinstance(strategy, Beam):
        if shape:
            raise ValueError(
                f"a beam search needs tokens of one part, got {len(part_sizes)}; greedy or a draw does not"
            )
        return search(
            step,
            state,
            strategy,
            batch=batch,
            max_length=max_length,
            end_id=end_id,
            unk_id=unk_id,
            device=device,
        ).tokens
    token = torch.full((batch, *shape), -1, dtype=torch.long, device=device)
    going = torch.arange(batch, device=device)
    tokens = torch.full((batch, max_length, *shape), -1, dtype=torch.long, device=device)
    for position in range(max_length):
        logits, state = step(token, state)
        logits = logits.float()
        if unk_id is not None:
            logits[:, unk_id] = -torch.inf
        if end_id is not None and position == max_length - 1:
            token = torch.full_like(token, end_id)
        else:
            token = choose_parts(lambda part: _choose(strategy, part, generator), logits, part_sizes)
        tokens[going, position] = token
        if end_id is not None:
            rows = (token != end_id).nonzero().squeeze(1)
            if len(rows) == 0:
                return tokens[:, : position + 1]
            if len(rows) < len(token):
                token, going, state = token[rows], going[rows], state.select(rows)
    return tokens


def choose_parts(
    choose: Callable[[Float[Tensor, "*batch vocab"]], Int[Tensor, "*batch"]],
    logits: Float[Tensor, "*batch vocab"],
    part_sizes: Sequence[int],
) -> Int[Tensor, "*batch_and_parts"]:
    """Return what is chosen of the logits, or of each part's block of them, side by side."""
    if len(part_sizes) < 2:
        return choose(logits)
    return torch.stack([choose(part) for part in logits.split(list(part_sizes), -1)], dim=-1)


def _choose(
    strategy: Strategy, logits: Float[Tensor, "batch vocab"], generator: torch.Generator | None
) -> Int[Tensor, " batch"]:
    """Return a token a row; on a CPU some rows at a time, whose probabilities stay in the cache."""
    rows = max(1, CACHED // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    return torch.cat([strategy(part, generator) for part in logits.split(rows)])


class Found(NamedTuple):
    """The best sequence of each row that a search found, -1 behind its end, and its log p(x|z) in nats."""

    tokens: Int[Tensor, "batch time"]
    log_prob: Float[Tensor, " batch"]


@dataclass(frozen=True)
class _Hypotheses:
    """The hypotheses of each row, in no order; the first column of tokens is what is fed before the first."""

    tokens: Int[Tensor, "batch width time"]
    log_prob: Float[Tensor, "batch width"]
    length: Float[Tensor, "batch width"]
    going: Bool[Tensor, "batch width"]

    def score(self, penalty: float) -> Float[Tensor, "batch width"]:
        return self.log_prob / self.length**penalty

    def grow(
        self, nats: Float[Tensor, "batch width vocab"], penalty: float
    ) -> tuple["_Hypotheses", Int[Tensor, "batch width"]]:
        """Return the best continuations, and which hypothesis each of them continues; what has ended stays."""
        nats = nats.masked_fill(~self.going.unsqueeze(-1), -math.inf)
        nats[..., 0].masked_fill_(~self.going, 0.0)  # one way to have ended
        length = self.length + self.going
        totals = self.log_prob.unsqueeze(-1) + nats
        chosen = (totals / length.unsqueeze(-1) ** penalty).flatten(1).topk(nats.shape[1]).indices
        parent, token = chosen // nats.shape[2], chosen % nats.shape[2]
        going = self.going.gather(1, parent)
        past = self.tokens.gather(1, parent.unsqueeze(-1).expand_as(self.tokens))
        tokens = torch.cat([past, torch.where(going, token, -1).unsqueeze(-1)], dim=-1)
        return _Hypotheses(tokens, totals.flatten(1).gather(1, chosen), length.gather(1, parent), going), parent

    def settled(self, penalty: float, max_length: int) -> bool:
        """Return whether in every row nothing that goes on can overtake the best that has ended."""
        ended = self.score(penalty).masked_fill(self.going, -math.inf).amax(1)
        # log p only falls, and will be divided by no more than this
        possible = (self.log_prob / max_length**penalty).masked_fill(~self.going, -math.inf).amax(1)
        return bool((ended >= possible).all())

    def best(self, penalty: float) -> Found:
        score = self.score(penalty).masked_fill(self.going & ~self.going.all(1, keepdim=True), -math.inf)
        place = score.argmax(1, keepdim=True)
        tokens = self.tokens.gather(1, place.unsqueeze(-1).expand(-1, -1, self.tokens.shape[-1])).squeeze(1)
        written = 1 + int((tokens >= 0).any(0).sum())  # the longest may be one that was not chosen
        return Found(tokens[:, 1:written], self.log_prob.gather(1, place).squeeze(1))


@torch.no_grad()
def search(
    step: Callable[[Int[Tensor, " batch"], State], tuple[Float[Tensor, "batch vocab"], State]],
    state: State,
    beam: Beam,
    *,
    batch: int,
    max_length: int,
    end_id: int | None,
    unk_id: int | None,
    device: torch.device,
) -> Found:
    """Return what a beam search finds under the rules of `generate`.

    A hypothesis that has ended keeps its place for as long as it is among the best `width`.

    Raises:
        ValueError: for a length penalty where all sequences have one length.
    """
    if end_id is None and beam.length_penalty:
        raise ValueError(f"length_penalty is for sequences that end by themselves, got {beam.length_penalty}")
    shape = batch, beam.width
    rows = torch.arange(batch, device=device).unsqueeze(1)
    state = state.select(rows.expand(shape).flatten())
    first = torch.full(shape, -math.inf, device=device)
    first[:, 0] = 0.0  # before the first token there is one hypothesis
    hypotheses = _Hypotheses(
        tokens=torch.full((*shape, 1), -1, dtype=torch.long, device=device),
        log_prob=first,
        length=torch.zeros(shape, device=device),
        going=torch.ones(shape, dtype=torch.bool, device=device),
    )
    for position in range(max_length):
        logits, state = step(hypotheses.tokens[..., -1].flatten(), state)
        nats = torch.log_softmax(logits.float(), -1).view(*shape, -1)
        if end_id is not None and position == max_length - 1:
            nats = torch.full_like(nats, -math.inf)
            nats[..., end_id] = 0.0  # forced: it costs nothing
        elif unk_id is not None:
            nats[..., unk_id] = -math.inf  # after the softmax, so that scores are log p(x|z)
        hypotheses, parent = hypotheses.grow(nats, beam.length_penalty)
        state = state.select((rows * beam.width + parent).flatten())
        if end_id is not None:
            hypotheses = replace(hypotheses, going=hypotheses.going & (hypotheses.tokens[..., -1] != end_id))
            if hypotheses.settled(beam.length_penalty, max_length):
                break
    return hypotheses.best(beam.length_penalty)
