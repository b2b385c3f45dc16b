"""LSTM sequence VAE for any token vocabulary (Bowman et al., 2016).

The wiring is that of MusicVAE's flat model (Roberts et al., 2018), for text and MIDI alike.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from seqvae.models.decoding import Beam, Greedy, Strategy, choose_parts, draw_at, generate
from seqvae.models.layers import (
    Bias,
    TokenEmbedding,
    check_choice,
    check_flag,
    check_positive,
    check_positive_number,
    check_rate,
    check_vocabulary,
    dropout_of,
    hide_tokens,
    part_sizes,
    past_of,
    run_lstm,
    spread_memory,
)
from seqvae.models.lstm_encoder import POOLINGS, LSTMEncoder, NoEncoder
from seqvae.models.softmax import CHUNK_ROWS, token_nats
from seqvae.vae import Decoder, Encoder


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

    The initial cell and hidden state of every layer are tanh(Linear(z)), and z stands in the first layer's input at
    every step; with `z_to_output` a Linear(z) is added to what the softmax sees, too. The first token fed is the zero
    vector. Without an `end_id` it is a distribution over sequences of the given length; with one, over sequences of at
    most `max_length` tokens, where the end is forced. With a `latent_dim` of 0 it is an LSTM language model, whose
    initial states are learned.

    With several vocabulary sizes a token has as many parts, given z and the past independent of each other: a softmax
    each, whose logits stand side by side.
    """

    def __init__(
        self,
        vocab_size: int | Sequence[int],
        max_length: int,
        end_id: int | None,
        unk_id: int | None,
        latent_dim: int,
        embedding_dim: int,
        hidden_dim: int,
        num_layers: int,
        dropout: float,
        locked_dropout: bool,
        weight_drop: float,
        word_dropout: float,
        tie_embeddings: bool,
        z_to_output: bool,
    ) -> None:
        super().__init__()
        self.max_length, self.end_id, self.unk_id = max_length, end_id, unk_id
        self.word_dropout = word_dropout
        self.part_sizes = part_sizes(vocab_size)
        self.embedding = TokenEmbedding(vocab_size, embedding_dim)
        self.dropout = dropout_of(dropout, locked_dropout)
        self.weight_drop = weight_drop
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
        features = embedding_dim if tie_embeddings else hidden_dim
        self.from_z = nn.Linear(latent_dim, features, bias=False) if z_to_output and latent_dim else None
        self.output = nn.Linear(features, sum(self.part_sizes))
        if tie_embeddings:
            nn.init.normal_(self.embedding.weight, std=embedding_dim**-0.5)
            self.output.weight = self.embedding.weight

    def start(self, z: Float[Tensor, "batch latent"]) -> DecoderState:
        """Return the state before the first token."""
        states = torch.tanh(self.initial_state(z)).unflatten(1, (self.lstm.num_layers, 2, self.lstm.hidden_size))
        cell, hidden = states.unbind(2)  # layer by layer: c0, h0, c1, h1, ...
        return DecoderState(hidden.transpose(0, 1).contiguous(), cell.transpose(0, 1).contiguous(), z)

    def step(
        self, token: Int[Tensor, "batch *parts"], state: DecoderState
    ) -> tuple[Float[Tensor, "batch vocab"], DecoderState]:
        """Feed one token a row (-1 before the first); return the logits of the next and the new state."""
        features, state = self._run(token.unsqueeze(1), state)
        if token.shape[0] == 1:  # a product with a vector takes a third of the time of one with a matrix of one row
            return torch.addmv(self.output.bias, self.output.weight, features[0, 0]).unsqueeze(0), state
        return self.output(features).squeeze(1), state

    def logits(
        self,
        x: Int[Tensor, "batch time *parts"],
        z: Float[Tensor, "batch latent"],
        past: Int[Tensor, "batch time *parts"] | None = None,
    ) -> Float[Tensor, "batch time vocab"]:
        """Return the logits of every token given z and the true tokens before it, or what `past` has in their place."""
        logits: Tensor = self.output(self._features(past_of(x) if past is None else past, z))
        if self._ends_here(x):
            forced = torch.full_like(logits[0, 0], -torch.inf)
            forced[self.end_id] = 0.0
            logits = torch.cat([logits[:, :-1], forced.expand(len(x), 1, -1)], dim=1)
        return logits

    def _ends_here(self, x: Int[Tensor, "batch time *parts"]) -> bool:
        """Return whether the last token can only be the end."""
        return self.end_id is not None and x.shape[1] == self.max_length

    def _features(
        self, past: Int[Tensor, "batch time *parts"], z: Float[Tensor, "batch latent"]
    ) -> Float[Tensor, "batch time features"]:
        """Return what the softmax scores every token by, given z and the tokens fed before it."""
        # Bowman et al. (2016), section 3.1: the word is hidden, not its features
        if self.training:
            past = hide_tokens(past, self.word_dropout)
        return self._run(past, self.start(z))[0]

    def _run(
        self, past: Int[Tensor, "batch time *parts"], state: DecoderState
    ) -> tuple[Float[Tensor, "batch time features"], DecoderState]:
        embedded = self.dropout(self.embedding(past))
        inputs = torch.cat([embedded, state.z.unsqueeze(1).expand(-1, past.shape[1], -1)], dim=-1)
        weight_drop = self.weight_drop if self.training else 0.0
        outputs, (hidden, cell) = run_lstm(self.lstm, inputs, (state.hidden, state.cell), weight_drop)
        features: Tensor = self.bottleneck(self.dropout(outputs))
        if self.from_z is not None:
            features = features + self.from_z(state.z).unsqueeze(1)
        return features, DecoderState(hidden, cell, state.z)

    def log_prob(
        self,
        x: Int[Tensor, "batch time *parts"],
        z: Float[Tensor, "batch latent"],
        past: Int[Tensor, "batch time *parts"] | None = None,
    ) -> Float[Tensor, " batch"]:
        """Return log p(x|z) in nats. With `past` fed in place of the true tokens before each, it is no p(x|z)."""
        features, scored = self._features(past_of(x) if past is None else past, z), x
        if self._ends_here(x):  # the end is certain there and costs nothing
            scored = torch.cat([x[:, :-1], torch.full_like(x[:, -1:], -1)], dim=1)
        rows = features.flatten(0, 1)
        targets = scored.reshape(len(rows), len(self.part_sizes)).unbind(1)
        nats = [token_nats(rows, *head, target) for head, target in zip(self._heads(), targets, strict=True)]
        log_prob = -torch.stack(nats).sum(0).view(x.shape[:2]).sum(1)
        if self._ends_here(x):
            log_prob = log_prob.masked_fill((x[:, -1] >= 0) & (x[:, -1] != self.end_id), -torch.inf)
        return log_prob

    def _heads(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the weight and bias of each part's softmax."""
        if len(self.part_sizes) == 1:  # a split's gradient is a copy of the weights
            yield self.output.weight, self.output.bias
        else:
            yield from zip(
                self.output.weight.split(self.part_sizes), self.output.bias.split(self.part_sizes), strict=True
            )

    @torch.no_grad()
    def draw(
        self,
        past: Int[Tensor, "batch time *parts"],
        z: Float[Tensor, "batch latent"],
        point: Float[Tensor, "batch time *parts"],
    ) -> Int[Tensor, "batch time *parts"]:
        """Return a token for every place of a sequence that goes on, given z and the tokens fed before it.

        It is the one in whose share of the probability the point of [0, 1) lies.
        """
        drawn = []
        features = self._features(past, z).flatten(0, 1)
        points = point.reshape(len(features), len(self.part_sizes))
        for rows, at in zip(features.split(CHUNK_ROWS), points.split(CHUNK_ROWS), strict=True):
            logits = self.output(rows)
            if self.end_id is not None:
                logits[:, self.end_id] = -torch.inf
            blocks = zip(logits.split(self.part_sizes, -1), at.unbind(1), strict=True)
            drawn.append(torch.stack([draw_at(torch.softmax(block, -1), where) for block, where in blocks], -1))
        return torch.cat(drawn).view(past.shape)

    def predict(
        self,
        x: Int[Tensor, "batch time *parts"],
        z: Float[Tensor, "batch latent"],
        past: Int[Tensor, "batch time *parts"] | None = None,
    ) -> Int[Tensor, "batch time *parts"]:
        likeliest = choose_parts(lambda logits: logits.argmax(-1), self.logits(x, z, past), self.part_sizes)
        return likeliest.masked_fill(x < 0, -1)

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
            part_sizes=self.part_sizes,
            device=z.device,
            generator=generator,
        )


def lstm(
    *,
    vocab_size: int | Sequence[int],
    max_length: int,
    end_id: int | None = None,
    unk_id: int | None = None,
    latent_dim: int = 32,
    embedding_dim: int = 128,
    encoder_hidden_dim: int = 256,
    encoder_layers: int = 1,
    bidirectional: bool = True,
    pooling: str = "final",
    encoder_word_dropout: float = 0.0,
    posterior_gamma: float | None = None,
    hidden_dim: int = 256,
    num_layers: int = 1,
    dropout: float = 0.0,
    locked_dropout: bool = False,
    weight_drop: float = 0.0,
    word_dropout: float = 0.0,
    tie_embeddings: bool = False,
    z_to_output: bool = False,
    language_model: bool = False,
) -> tuple[Encoder, LSTMDecoder]:
    """Build the LSTM encoder and decoder; the first four arguments are the codec's facts.

    Args:
        vocab_size: of a token; of several parts side by side (a melody, a bass, drums) the size of each.
        pooling: the encoder's features: "final" states of both directions, or "max" of all states over time.
        encoder_word_dropout: share of the encoder's input tokens that are hidden while training, and still scored.
        posterior_gamma: batch normalisation of the posterior means with this fixed scale, against a vanishing KL: the
            batch mean of the KL stays above latent_dim * posterior_gamma^2 / 2. 0.5 to 0.7 are common; None: without.
        dropout: on both networks' embeddings, between the decoder's layers and before its softmax, while training.
        locked_dropout: draw what is dropped of embeddings and outputs once a sequence and not once a token (Gal &
            Ghahramani, 2016); between layers it stays a draw a token.
        weight_drop: share of the decoder's hidden-to-hidden weights that are left out of a batch while training
            (Merity et al., 2018).
        word_dropout: share of the decoder's input tokens that are hidden while training.
        tie_embeddings: score the next token against the decoder's own embeddings.
        z_to_output: give z to the softmax too, beside the decoder's states and inputs.
        language_model: the same decoder without a latent, to compare a VAE with: its ELBO, its importance-weighted
            bound and its log-likelihood are one number. What says how the latent is made has no meaning then.

    Raises:
        ValueError: for a number out of its range or an unknown pooling.
    """
    check_vocabulary(vocab_size, end_id, unk_id)
    check_positive(
        max_length=max_length,
        latent_dim=latent_dim,
        embedding_dim=embedding_dim,
        encoder_hidden_dim=encoder_hidden_dim,
        encoder_layers=encoder_layers,
        hidden_dim=hidden_dim,
        num_layers=num_layers,
    )
    check_positive_number(posterior_gamma=posterior_gamma)
    check_rate(
        dropout=dropout, weight_drop=weight_drop, word_dropout=word_dropout, encoder_word_dropout=encoder_word_dropout
    )
    check_flag(
        bidirectional=bidirectional,
        locked_dropout=locked_dropout,
        tie_embeddings=tie_embeddings,
        z_to_output=z_to_output,
        language_model=language_model,
    )
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
            locked_dropout,
            encoder_word_dropout,
            posterior_gamma,
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
        locked_dropout,
        weight_drop,
        word_dropout,
        tie_embeddings,
        z_to_output,
    )
    return encoder, decoder
