"""Hierarchical LSTM sequence VAE: a conductor plans the bars, a core writes each of them (Roberts et al., 2018)."""

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from seqvae.models.decoding import Beam, Greedy, Strategy, generate
from seqvae.models.layers import (
    check_positive,
    check_positive_number,
    check_rate,
    check_vocabulary,
    past_of,
    run_lstm,
    spread_memory,
)
from seqvae.models.lstm import DecoderState, LSTMDecoder
from seqvae.models.lstm_encoder import LSTMEncoder
from seqvae.vae import Decoder


class HierarchicalState(NamedTuple):
    """What a hierarchical decoder carries from token to token."""

    written: int  # tokens of this segment
    hidden: Float[Tensor, "layers batch conductor"]
    cell: Float[Tensor, "layers batch conductor"]
    core: DecoderState

    def select(self, rows: Int[Tensor, " rows"]) -> Self:
        """Return the state of these rows, in this order."""
        return self._replace(hidden=self.hidden[:, rows], cell=self.cell[:, rows], core=self.core.select(rows))


class HierarchicalDecoder(Decoder):
    """p(x|z) over sequences of the given length, in segments of `segment_length` tokens; the last may be shorter.

    The conductor is an LSTM that reads nothing: its initial states are tanh(Linear(z)), and each of its outputs stands
    for one segment. The core is a flat decoder to which that output is what z is to a sequence: it makes the initial
    states, anew for every segment, and stands in every input. Only the last token of the segment before is fed across
    the border. So a segment is written without the states of the earlier ones, and all of a batch's are one batch.
    """

    def __init__(
        self,
        core: LSTMDecoder,
        max_length: int,
        unk_id: int | None,
        latent_dim: int,
        conductor_dim: int,
        conductor_layers: int,
    ) -> None:
        super().__init__()
        self.segment_length = core.max_length
        self.max_length, self.end_id, self.unk_id = max_length, None, unk_id
        self.initial_state = nn.Linear(latent_dim, 2 * conductor_layers * conductor_dim)
        # PyTorch has no LSTM without an input; the weights of a constant 1 are one more bias, those of a 0 were dead
        self.conductor = nn.LSTM(1, conductor_dim, conductor_layers, batch_first=True)
        spread_memory(self.conductor, -(-max_length // self.segment_length))
        self.core = core

    def start(self, z: Float[Tensor, "batch latent"]) -> HierarchicalState:
        """Return the state before the first token."""
        return self._next_segment(*self._conductor_state(z))

    def step(
        self, token: Int[Tensor, "batch *parts"], state: HierarchicalState
    ) -> tuple[Float[Tensor, "batch vocab"], HierarchicalState]:
        """Feed one token a row (-1 before the first); return the logits of the next and the new state."""
        if state.written == self.segment_length:
            state = self._next_segment(state.hidden, state.cell)
        logits, core = self.core.step(token, state.core)
        return logits, state._replace(written=state.written + 1, core=core)

    def _conductor_state(self, z: Float[Tensor, "batch latent"]) -> tuple[Tensor, Tensor]:
        states = torch.tanh(self.initial_state(z))
        states = states.view(len(z), self.conductor.num_layers, 2, self.conductor.hidden_size)
        cell, hidden = states.permute(2, 1, 0, 3).contiguous()  # layer by layer: c0, h0, c1, h1, ...
        return hidden, cell

    def _next_segment(self, hidden: Tensor, cell: Tensor) -> HierarchicalState:
        plan, (hidden, cell) = run_lstm(self.conductor, hidden.new_ones(hidden.shape[1], 1, 1), (hidden, cell))
        return HierarchicalState(0, hidden, cell, self.core.start(plan.squeeze(1)))

    def _plans(self, z: Float[Tensor, "batch latent"], length: int) -> Float[Tensor, "batch_and_segments conductor"]:
        """Return what the conductor says of every segment of sequences of this length."""
        nothing = z.new_ones(len(z), -(-length // self.segment_length), 1)
        return run_lstm(self.conductor, nothing, self._conductor_state(z))[0].flatten(0, 1)

    def _segments(
        self, values: Shaped[Tensor, "batch time *parts"]
    ) -> Shaped[Tensor, "batch_and_segments segment *parts"]:
        """Return the segments of every row below each other, the last one filled up with -1."""
        rows, length, *parts = values.shape
        filled = torch.cat([values, values.new_full((rows, -length % self.segment_length, *parts), -1)], dim=1)
        segments: Tensor = filled.unflatten(1, (-1, self.segment_length)).flatten(0, 1)
        return segments

    def _joined(
        self, segments: Shaped[Tensor, "batch_and_segments segment *values"], like: Int[Tensor, "batch time *parts"]
    ) -> Shaped[Tensor, "batch time *values"]:
        """Return the rows that segments were cut from, without what filled them up."""
        rows: Tensor = segments.unflatten(0, (len(like), -1)).flatten(1, 2)
        return rows[:, : like.shape[1]]

    def _cut(
        self,
        x: Int[Tensor, "batch time *parts"],
        z: Float[Tensor, "batch latent"],
        past: Int[Tensor, "batch time *parts"] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the core scores, given what, and fed what: every segment is a sequence of its own to it."""
        past = past_of(x) if past is None else past
        return self._segments(x), self._plans(z, x.shape[1]), self._segments(past)

    def logits(
        self,
        x: Int[Tensor, "batch time *parts"],
        z: Float[Tensor, "batch latent"],
        past: Int[Tensor, "batch time *parts"] | None = None,
    ) -> Float[Tensor, "batch time vocab"]:
        """Return the logits of every token given z and the true tokens before it, or what `past` has in their place."""
        return self._joined(self.core.logits(*self._cut(x, z, past)), x)

    def log_prob(
        self,
        x: Int[Tensor, "batch time *parts"],
        z: Float[Tensor, "batch latent"],
        past: Int[Tensor, "batch time *parts"] | None = None,
    ) -> Float[Tensor, " batch"]:
        """Return log p(x|z) in nats. With `past` fed in place of the true tokens before each, it is no p(x|z)."""
        return self.core.log_prob(*self._cut(x, z, past)).view(len(x), -1).sum(1)

    def draw(
        self,
        past: Int[Tensor, "batch time *parts"],
        z: Float[Tensor, "batch latent"],
        point: Float[Tensor, "batch time *parts"],
    ) -> Int[Tensor, "batch time *parts"]:
        """Return a token for every place, given z and the tokens fed before it, as the core's `draw` has it."""
        plans = self._plans(z, past.shape[1])
        return self._joined(self.core.draw(self._segments(past), plans, self._segments(point)), past)

    def predict(
        self, x: Int[Tensor, "batch time *parts"], z: Float[Tensor, "batch latent"]
    ) -> Int[Tensor, "batch time *parts"]:
        return self._joined(self.core.predict(*self._cut(x, z, None)), x)

    def sample(
        self,
        z: Float[Tensor, "batch latent"],
        *,
        strategy: Strategy | Beam | None = None,
        generator: torch.Generator | None = None,
    ) -> Int[Tensor, "batch time *parts"]:
        return generate(
            self.step,
            self.start(z),
            strategy or Greedy(),
            batch=len(z),
            max_length=self.max_length,
            end_id=self.end_id,
            unk_id=self.unk_id,
            device=z.device,
            generator=generator,
            part_sizes=self.core.part_sizes,
        )


def hierarchical(
    *,
    vocab_size: int | Sequence[int],
    max_length: int,
    end_id: int | None = None,
    unk_id: int | None = None,
    segment_length: int = 16,
    latent_dim: int = 128,
    embedding_dim: int = 64,
    encoder_hidden_dim: int = 256,
    encoder_layers: int = 2,
    posterior_gamma: float | None = None,
    conductor_dim: int = 256,
    conductor_layers: int = 1,
    hidden_dim: int = 256,
    num_layers: int = 1,
    dropout: float = 0.0,
    word_dropout: float = 0.0,
) -> tuple[LSTMEncoder, HierarchicalDecoder]:
    """Build a bidirectional LSTM encoder and a hierarchical decoder; the first four arguments are the codec's facts.

    Args:
        segment_length: tokens of a segment, such as the steps of a bar.
        posterior_gamma: batch normalisation of the posterior means with this fixed scale, as in `lstm`.
        conductor_dim: size of the conductor's states, and so of what the core knows of a segment.
        dropout: on both networks' embeddings, between the core's layers and before its softmax, while training.
        word_dropout: share of the core's input tokens that are hidden while training.

    Raises:
        ValueError: for a number out of its range, or sequences that end by themselves.
    """
    check_vocabulary(vocab_size, end_id, unk_id)
    check_positive(
        max_length=max_length,
        segment_length=segment_length,
        latent_dim=latent_dim,
        embedding_dim=embedding_dim,
        encoder_hidden_dim=encoder_hidden_dim,
        encoder_layers=encoder_layers,
        conductor_dim=conductor_dim,
        conductor_layers=conductor_layers,
        hidden_dim=hidden_dim,
        num_layers=num_layers,
    )
    check_positive_number(posterior_gamma=posterior_gamma)
    check_rate(dropout=dropout, word_dropout=word_dropout)
    if end_id is not None:
        raise ValueError(
            f"a hierarchical decoder plans sequences of one length, and these end by themselves (end_id {end_id}): "
            "use model=lstm"
        )
    encoder = LSTMEncoder(
        vocab_size,
        max_length,
        latent_dim,
        embedding_dim,
        encoder_hidden_dim,
        encoder_layers,
        bidirectional=True,
        pooling="final",
        dropout=dropout,
        locked_dropout=False,
        word_dropout=0.0,
        posterior_gamma=posterior_gamma,
    )
    core = LSTMDecoder(
        vocab_size,
        segment_length,
        end_id,
        unk_id,
        conductor_dim,
        embedding_dim,
        hidden_dim,
        num_layers,
        dropout,
        locked_dropout=False,
        weight_drop=0.0,
        word_dropout=word_dropout,
        tie_embeddings=False,
        z_to_output=False,
    )
    return encoder, HierarchicalDecoder(core, max_length, unk_id, latent_dim, conductor_dim, conductor_layers)
