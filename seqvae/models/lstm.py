"""LSTM sequence VAE for any token vocabulary (Bowman et al., 2016).

The wiring is that of MusicVAE's flat model (Roberts et al., 2018), for text and MIDI alike.
"""

from typing import NamedTuple, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from seqvae.gaussian import DiagonalGaussian, GaussianHead
from seqvae.models.decoding import Beam, Greedy, Strategy, generate
from seqvae.models.layers import (
    Bias,
    TokenEmbedding,
    check_choice,
    check_flag,
    check_positive,
    check_rate,
    lengths_of,
    lstm_step,
    spread_memory,
)
from seqvae.models.softmax import token_nats
from seqvae.vae import Decoder, Encoder

POOLINGS = ("final", "max")


class LSTMEncoder(Encoder):
    """Tokens -> q(z|x): a (bi)directional LSTM whose states are pooled into the features of a Gaussian."""

    def __init__(
        self,
        vocab_size: int,
        max_length: int,
        latent_dim: int,
        embedding_dim: int,
        hidden_dim: int,
        num_layers: int,
        bidirectional: bool,
        pooling: str,
        dropout: float,
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.pooling = pooling
        self.embedding = TokenEmbedding(vocab_size, embedding_dim)
        self.dropout = nn.Dropout(dropout)
        self.lstm = nn.LSTM(embedding_dim, hidden_dim, num_layers, batch_first=True, bidirectional=bidirectional)
        spread_memory(self.lstm, max_length)
        self.head = GaussianHead(hidden_dim * (2 if bidirectional else 1), latent_dim)

    def forward(self, x: Int[Tensor, "batch time"]) -> DiagonalGaussian:
        posterior: DiagonalGaussian = self.head(self._features(x))
        return posterior

    def _features(self, x: Int[Tensor, "batch time"]) -> Float[Tensor, "batch features"]:
        embedded = self.dropout(self.embedding(x))
        ragged = bool((x < 0).any())
        if ragged:  # packing costs time, and batches of equal length are the rule
            packed = pack_padded_sequence(embedded, lengths_of(x).cpu(), batch_first=True, enforce_sorted=False)
            outputs, (hidden, _) = self.lstm(packed)
        else:
            outputs, (hidden, _) = self.lstm(embedded)
        if self.pooling == "final":  # of both directions: the last output holds only one backward step
            last_layer: Tensor = hidden[-2:] if self.lstm.bidirectional else hidden[-1:]
            return last_layer.transpose(0, 1).flatten(1)
        states: Tensor = outputs
        if ragged:
            states, _ = pad_packed_sequence(outputs, batch_first=True, total_length=x.shape[1])
        return states.masked_fill((x < 0).unsqueeze(-1), -torch.inf).amax(1)


class NoEncoder(Encoder):
    """A posterior of width zero: there is no latent, so a VAE with it is an exact language model."""

    latent_dim = 0

    def forward(self, x: Int[Tensor, "batch time"]) -> DiagonalGaussian:
        nothing = torch.zeros(len(x), 0, device=x.device)
        return DiagonalGaussian(nothing, nothing)


class DecoderState(NamedTuple):
    """What an LSTM decoder carries from token to token."""

    hidden: Float[Tensor, "layers batch hidden"]
    cell: Float[Tensor, "layers batch hidden"]
    z: Float[Tensor, "batch latent"]

    def select(self, rows: Int[Tensor, " rows"]) -> Self:
        """Return the state of these rows, in this order."""
        return self._replace(hidden=self.hidden[:, rows], cell=self.cell[:, rows], z=self.z[rows])


class LSTMDecoder(Decoder):
    """p(x|z), a token at a time.

    The initial cell and hidden state of every layer are tanh(Linear(z)), z stands in the first layer's input at
    every step, and the first token fed is the zero vector. Without an `end_id` it is a distribution over sequences of
    the given length; with one, over sequences of at most `max_length` tokens, where the end is forced. With a
    `latent_dim` of 0 it is an LSTM language model, whose initial states are learned.
    """

    def __init__(
        self,
        vocab_size: int,
        max_length: int,
        end_id: int | None,
        unk_id: int | None,
        latent_dim: int,
        embedding_dim: int,
        hidden_dim: int,
        num_layers: int,
        dropout: float,
        word_dropout: float,
        tie_embeddings: bool,
    ) -> None:
        super().__init__()
        self.max_length, self.end_id, self.unk_id = max_length, end_id, unk_id
        self.word_dropout = word_dropout
        self.embedding = TokenEmbedding(vocab_size, embedding_dim)
        self.dropout = nn.Dropout(dropout)
        states = 2 * num_layers * hidden_dim
        self.initial_state = nn.Linear(latent_dim, states) if latent_dim else Bias(states)
        self.lstm = nn.LSTM(
            embedding_dim + latent_dim,
            hidden_dim,
            num_layers,
            batch_first=True,
            dropout=dropout if num_layers > 1 else 0.0,
        )
        spread_memory(self.lstm, max_length)
        # a tied softmax scores embeddings, so the hidden state goes through a bottleneck of their size
        self.bottleneck = nn.Linear(hidden_dim, embedding_dim) if tie_embeddings else nn.Identity()
        self.output = nn.Linear(embedding_dim if tie_embeddings else hidden_dim, vocab_size)
        if tie_embeddings:
            nn.init.normal_(self.embedding.weight, std=embedding_dim**-0.5)
            self.output.weight = self.embedding.weight

    def start(self, z: Float[Tensor, "batch latent"]) -> DecoderState:
        """Return the state before the first token."""
        states = torch.tanh(self.initial_state(z)).view(len(z), self.lstm.num_layers, 2, self.lstm.hidden_size)
        cell, hidden = states.unbind(2)  # layer by layer: c0, h0, c1, h1, ...
        return DecoderState(hidden.transpose(0, 1).contiguous(), cell.transpose(0, 1).contiguous(), z)

    def step(
        self, token: Int[Tensor, " batch"], state: DecoderState
    ) -> tuple[Float[Tensor, "batch vocab"], DecoderState]:
        """Feed one token a row (-1 before the first); return the logits of the next and the new state."""
        features, state = self._run(token.unsqueeze(1), state)
        if len(token) == 1:  # a product with a vector takes a third of the time of one with a matrix of one row
            return torch.addmv(self.output.bias, self.output.weight, features[0, 0]).unsqueeze(0), state
        return self.output(features).squeeze(1), state

    def logits(
        self, x: Int[Tensor, "batch time"], z: Float[Tensor, "batch latent"]
    ) -> Float[Tensor, "batch time vocab"]:
        """Return the logits of every token given z and the true tokens before it."""
        logits: Tensor = self.output(self._features(x, z))
        if self._ends_here(x):
            forced = torch.full_like(logits[0, 0], -torch.inf)
            forced[self.end_id] = 0.0
            logits = torch.cat([logits[:, :-1], forced.expand(len(x), 1, -1)], dim=1)
        return logits

    def _ends_here(self, x: Int[Tensor, "batch time"]) -> bool:
        """Return whether the last token can only be the end."""
        return self.end_id is not None and x.shape[1] == self.max_length

    def _features(
        self, x: Int[Tensor, "batch time"], z: Float[Tensor, "batch latent"]
    ) -> Float[Tensor, "batch time features"]:
        """Return what the softmax scores every token by, given z and the true tokens before it."""
        past = F.pad(x[:, :-1], (1, 0), value=-1)
        # Bowman et al. (2016), section 3.1: the word is hidden, not its features
        if self.training and self.word_dropout:
            past = past.masked_fill(torch.rand(past.shape, device=past.device) < self.word_dropout, -1)
        return self._run(past, self.start(z))[0]

    def _run(
        self, past: Int[Tensor, "batch time"], state: DecoderState
    ) -> tuple[Float[Tensor, "batch time features"], DecoderState]:
        embedded = self.dropout(self.embedding(past))
        inputs = torch.cat([embedded, state.z.unsqueeze(1).expand(-1, past.shape[1], -1)], dim=-1)
        before = state.hidden, state.cell
        one = past.shape[1] == 1 and not self.training
        outputs, (hidden, cell) = lstm_step(self.lstm, inputs, before) if one else self.lstm(inputs, before)
        features: Tensor = self.bottleneck(self.dropout(outputs))
        return features, DecoderState(hidden, cell, state.z)

    def log_prob(self, x: Int[Tensor, "batch time"], z: Float[Tensor, "batch latent"]) -> Float[Tensor, " batch"]:
        features, scored = self._features(x, z), x
        if self._ends_here(x):  # the end is certain there and costs nothing
            scored = torch.cat([x[:, :-1], torch.full_like(x[:, -1:], -1)], dim=1)
        nats = token_nats(features.flatten(0, 1), self.output.weight, self.output.bias, scored.flatten())
        log_prob = -nats.view(x.shape).sum(1)
        if self._ends_here(x):
            log_prob = log_prob.masked_fill((x[:, -1] >= 0) & (x[:, -1] != self.end_id), -torch.inf)
        return log_prob

    def predict(self, x: Int[Tensor, "batch time"], z: Float[Tensor, "batch latent"]) -> Int[Tensor, "batch time"]:
        return self.logits(x, z).argmax(-1).masked_fill(x < 0, -1)

    def sample(
        self,
        z: Float[Tensor, "batch latent"],
        *,
        strategy: Strategy | Beam | None = None,
        generator: torch.Generator | None = None,
    ) -> Int[Tensor, "batch time"]:
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
        )


def lstm(
    *,
    vocab_size: int,
    max_length: int,
    end_id: int | None = None,
    unk_id: int | None = None,
    latent_dim: int = 32,
    embedding_dim: int = 128,
    encoder_hidden_dim: int = 256,
    encoder_layers: int = 1,
    bidirectional: bool = True,
    pooling: str = "final",
    hidden_dim: int = 256,
    num_layers: int = 1,
    dropout: float = 0.0,
    word_dropout: float = 0.0,
    tie_embeddings: bool = False,
    language_model: bool = False,
) -> tuple[Encoder, LSTMDecoder]:
    """Build the LSTM encoder and decoder; the first four arguments are the codec's facts.

    Args:
        pooling: the encoder's features: "final" states of both directions, or "max" of all states over time.
        dropout: on both networks' embeddings, between the decoder's layers and before its softmax, while training.
        word_dropout: share of the decoder's input tokens that are hidden while training.
        tie_embeddings: score the next token against the decoder's own embeddings.
        language_model: the same decoder without a latent, to compare a VAE with: its ELBO, its importance-weighted
            bound and its log-likelihood are one number. What says how the latent is made has no meaning then.

    Raises:
        ValueError: for a number out of its range or an unknown pooling.
    """
    check_positive(
        vocab_size=vocab_size,
        max_length=max_length,
        latent_dim=latent_dim,
        embedding_dim=embedding_dim,
        encoder_hidden_dim=encoder_hidden_dim,
        encoder_layers=encoder_layers,
        hidden_dim=hidden_dim,
        num_layers=num_layers,
    )
    check_rate(dropout=dropout, word_dropout=word_dropout)
    check_flag(bidirectional=bidirectional, tie_embeddings=tie_embeddings, language_model=language_model)
    check_choice(POOLINGS, pooling=pooling)
    encoder: Encoder = NoEncoder()
    if not language_model:
        encoder = LSTMEncoder(
            vocab_size,
            max_length,
            latent_dim,
            embedding_dim,
            encoder_hidden_dim,
            encoder_layers,
            bidirectional,
            pooling,
            dropout,
        )
    decoder = LSTMDecoder(
        vocab_size,
        max_length,
        end_id,
        unk_id,
        encoder.latent_dim,
        embedding_dim,
        hidden_dim,
        num_layers,
        dropout,
        word_dropout,
        tie_embeddings,
    )
    return encoder, decoder
