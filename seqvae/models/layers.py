"""Small parts that several networks share, and the checks their builders make of a person's numbers."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F


class TokenEmbedding(nn.Embedding):
    """An embedding in which -1 ("nothing here") is the zero vector.

    An element of several parts has the sum of their embeddings, each part with a vocabulary of its own: what a linear
    layer makes of their one-hot vectors side by side. The table holds one vocabulary after the other.
    """

    def __init__(self, vocab_size: int | Sequence[int], embedding_dim: int) -> None:
        self.sizes = part_sizes(vocab_size)
        super().__init__(sum(self.sizes), embedding_dim)
        with torch.no_grad():
            self.weight.mul_(len(self.sizes) ** -0.5)  # so that a sum varies as one embedding does

    def forward(self, tokens: Int[Tensor, "*batch"]) -> Float[Tensor, "*elements embedding"]:
        if len(self.sizes) == 1:
            return self._embed(tokens, self.weight)
        tables = self.weight.split(self.sizes)
        embedded = [self._embed(part, table) for part, table in zip(tokens.unbind(-1), tables, strict=True)]
        return torch.stack(embedded).sum(0)

    def _embed(
        self, tokens: Int[Tensor, "*batch"], table: Float[Tensor, "vocab embedding"]
    ) -> Float[Tensor, "*batch embedding"]:
        return F.embedding(tokens.clamp(min=0), table) * (tokens >= 0).unsqueeze(-1)


def part_sizes(vocab_size: int | Sequence[int]) -> tuple[int, ...]:
    """Return the size of the vocabulary of each part of an element: of one part it is a number."""
    return (vocab_size,) if isinstance(vocab_size, int) else tuple(vocab_size)


class Bias(nn.Module):
    """What a linear layer is for inputs of no features: its bias, whatever the input."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: Float[Tensor, "batch 0"]) -> Float[Tensor, "batch features"]:
        return self.bias.expand(len(x), -1)


def spread_memory(lstm: nn.LSTM, horizon: int) -> None:
    """Start the units of every layer with memories of all lengths up to `horizon` steps (Tallec & Ollivier, 2018).

    A forget gate's bias of log(t) keeps a state for about t steps, and the input gate's bias is its negative. With
    gates half open, nothing at one end of a sequence would reach the other.
    """
    units = lstm.hidden_size
    with torch.no_grad():
        for name, bias in lstm.named_parameters():
            if name.startswith("bias_"):  # PyTorch adds two biases; the gates' order is input, forget, cell, output
                bias[: 2 * units] = 0.0
            if name.startswith("bias_ih"):
                bias[units : 2 * units] = torch.empty(units).uniform_(1, max(horizon - 1, 2)).log()
                bias[:units] = -bias[units : 2 * units]


class LockedDropout(nn.Module):
    """Dropout that leaves out the same features at every time of a sequence (Gal & Ghahramani, 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Float[Tensor, "batch time features"]) -> Float[Tensor, "batch time features"]:
        return x * F.dropout(torch.ones_like(x[:, :1]), self.rate, self.training)


def dropout_of(rate: float, locked: bool) -> nn.Module:
    """Return the dropout that a person asked for."""
    return LockedDropout(rate) if locked else nn.Dropout(rate)


def past_of(x: Int[Tensor, "batch time *parts"]) -> Int[Tensor, "batch time *parts"]:
    """Return the token before each token, -1 before the first."""
    return torch.cat([torch.full_like(x[:, :1], -1), x[:, :-1]], dim=1)


def hide_tokens(tokens: Int[Tensor, "*batch"], rate: float) -> Int[Tensor, "*batch"]:
    """Return the tokens with a share of them replaced by -1, the zero vector of an embedding, each part by itself."""
    if not rate:
        return tokens
    return tokens.masked_fill(torch.rand(tokens.shape, device=tokens.device) < rate, -1)


State = tuple[Float[Tensor, "layers batch hidden"], Float[Tensor, "layers batch hidden"]]


def run_lstm(
    lstm: nn.LSTM, inputs: Float[Tensor, "batch time features"], state: State, weight_drop: float = 0.0
) -> tuple[Float[Tensor, "batch time hidden"], State]:
    """Return an LSTM's outputs and last state; `weight_drop` is DropConnect on its recurrence (Merity et al., 2018).

    It leaves out a share of the hidden-to-hidden weights for this one call. They stay as they are and under their
    names, and only a gradient comes back to them.
    """
    if inputs.shape[1] == 1 and not lstm.training:
        return _lstm_step(lstm, inputs, state)
    dropped = {
        name: F.dropout(weight, weight_drop)
        for name, weight in lstm.named_parameters()
        if weight_drop and name.startswith("weight_hh")
    }
    outputs, state = functional_call(lstm, dropped, (inputs, state)) if dropped else lstm(inputs, state)
    return outputs, state


def _lstm_step(
    lstm: nn.LSTM, inputs: Float[Tensor, "batch 1 features"], state: State
) -> tuple[Float[Tensor, "batch 1 hidden"], State]:
    """Return what a unidirectional LSTM in evaluation returns for one token a row.

    A call of the whole LSTM prepares its weights for many steps, which for a few rows takes longer than the step.
    """
    assert not lstm.bidirectional
    output, hidden, cell = inputs.squeeze(1), [], []
    for weights, *before in zip(lstm.all_weights, *state, strict=True):
        output, memory = torch.lstm_cell(output, before, *weights)
        hidden.append(output)
        cell.append(memory)
    return output.unsqueeze(1), (torch.stack(hidden), torch.stack(cell))


class ResidualBlock(nn.Module):
    """x + conv(act(conv(act(x)))); the last convolution starts at zero, so the block starts as the identity.

    That is what lets the network train without a normalisation layer (Zhang et al., 2019, "Fixup"). A `bottleneck`
    of n works on an n-th of the channels: 1x1 convolutions lead there and back, and one of 3x3 stands between them
    (He et al., 2016, figure 5). A `gated` block lets half of its inner maps decide how much of the other half
    passes (Dauphin et al., 2017, eq. 1).
    """

    def __init__(self, channels: int, bottleneck: int = 1, gated: bool = False) -> None:
        super().__init__()
        inner = channels // bottleneck
        before_gate = 2 * inner if gated else inner
        self.activation = nn.GLU(dim=1) if gated else nn.SiLU()
        if bottleneck == 1:
            self.first = nn.Conv2d(channels, before_gate, 3, padding=1)
            self.middle: nn.Module = nn.Identity()
            self.last = nn.Conv2d(inner, channels, 3, padding=1)
        else:
            self.first = nn.Conv2d(channels, inner, 1)
            self.middle = nn.Sequential(nn.SiLU(), nn.Conv2d(inner, before_gate, 3, padding=1))
            self.last = nn.Conv2d(inner, channels, 1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        refined: Tensor = self.last(self.activation(self.middle(self.first(F.silu(x)))))
        return x + refined


def check_positive(**values: int) -> None:
    """Raise ValueError for a value that is no positive int, with its name."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive int, got {value!r}")


def check_vocabulary(vocab_size: int | Sequence[int], end_id: int | None, unk_id: int | None) -> None:
    """Raise ValueError for a vocabulary without tokens, or special tokens where elements have several parts."""
    if isinstance(vocab_size, str) or not isinstance(vocab_size, Sequence):
        check_positive(vocab_size=vocab_size)
        return
    if len(vocab_size) < 2:
        raise ValueError(f"vocab_size must be a positive int, or one for each of several parts, got {vocab_size!r}")
    for size in vocab_size:
        check_positive(vocab_size=size)
    if end_id is not None or unk_id is not None:
        raise ValueError(f"elements of several parts have no end_id and no unk_id, got {end_id!r} and {unk_id!r}")


def check_rate(**values: float) -> None:
    """Raise ValueError for a value that is no probability below 1, with its name."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise ValueError(f"{name} must be a rate in [0, 1), got {value!r}")


def check_positive_number(**values: float | None) -> None:
    """Raise ValueError for a value that is neither a finite number > 0 nor None, with its name."""
    for name, value in values.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(f"{name} must be a positive number or null, got {value!r}")


def check_choice(choices: tuple[str, ...], **values: str) -> None:
    """Raise ValueError for a value that is none of the choices, with its name."""
    for name, value in values.items():
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_flag(**values: bool) -> None:
    """Raise ValueError for a value that is neither true nor false, with its name."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false, got {value!r}")


def is_there(x: Int[Tensor, "batch time *parts"]) -> Bool[Tensor, "batch time"]:
    """Return where a row holds an element, and not the -1 that fills it."""
    return x >= 0 if x.ndim == 2 else (x >= 0).any(-1)


def lengths_of(x: Int[Tensor, "batch time *parts"]) -> Int[Tensor, " batch"]:
    """Return how many elements each row holds before the -1 that fills it."""
    return is_there(x).sum(1)
