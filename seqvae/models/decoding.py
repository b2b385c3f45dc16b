"""How an autoregressive decoder's next token is chosen, and the loop that writes sequences with it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

State = TypeVar("State")


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
        return torch.multinomial(torch.softmax(logits / self.temperature, -1), 1, generator=generator).squeeze(-1)


@torch.no_grad()
def generate(
    step: Callable[[Int[Tensor, " batch"], State], tuple[Float[Tensor, "batch vocab"], State]],
    state: State,
    strategy: Strategy,
    *,
    batch: int,
    max_length: int,
    end_id: int | None,
    unk_id: int | None,
    device: torch.device,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "batch time"]:
    """Write `batch` sequences a token at a time until every row has ended; behind its end a row holds -1.

    The first token fed is -1, the zero vector. With an `end_id` the end is forced at `max_length`, as the
    likelihood has it; `unk_id` is never written, because nobody can read it.
    """
    token = torch.full((batch,), -1, dtype=torch.long, device=device)
    going = torch.ones(batch, dtype=torch.bool, device=device)
    tokens: list[Tensor] = []
    for position in range(max_length):
        logits, state = step(token, state)
        logits = logits.float()
        if unk_id is not None:
            logits[:, unk_id] = -torch.inf
        if end_id is not None and position == max_length - 1:
            chosen = torch.full_like(token, end_id)
        else:
            chosen = strategy(logits, generator)
        token = torch.where(going, chosen, -1)
        tokens.append(token)
        if end_id is not None:
            going = going & (token != end_id)
            if not going.any():
                break
    return torch.stack(tokens, dim=1)
