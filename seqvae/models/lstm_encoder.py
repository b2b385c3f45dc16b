"""The encoder of the LSTM sequence VAE, and the encoder that a language model has."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from seqvae.gaussian import DiagonalGaussian, GaussianHead
from seqvae.models.layers import TokenEmbedding, dropout_of, hide_tokens, is_there, lengths_of, spread_memory
from seqvae.vae import Encoder

POOLINGS = ("final", "max")


class LSTMEncoder(Encoder):
    """Tokens -> q(z|x): a (bi)directional LSTM whose states are pooled into the features of a Gaussian.

    While training it may see less than there is: `word_dropout` hides tokens from it that the decoder must still
    find, so that z is of the sentence and not of its spelling (Im et al., 2017; Shen et al., 2020).
    """

    def __init__(
        self,
        vocab_size: int | Sequence[int],
        max_length: int,
        latent_dim: int,
        embedding_dim: int,
        hidden_dim: int,
        num_layers: int,
        bidirectional: bool,
        pooling: str,
        dropout: float,
        locked_dropout: bool,
        word_dropout: float,
        posterior_gamma: float | None,
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.pooling = pooling
        self.embedding = TokenEmbedding(vocab_size, embedding_dim)
        self.dropout = dropout_of(dropout, locked_dropout)
        self.word_dropout = word_dropout
        self.lstm = nn.LSTM(embedding_dim, hidden_dim, num_layers, batch_first=True, bidirectional=bidirectional)
        spread_memory(self.lstm, max_length)
        self.head = GaussianHead(hidden_dim * (2 if bidirectional else 1), latent_dim, posterior_gamma)

    def forward(self, x: Int[Tensor, "batch time *parts"]) -> DiagonalGaussian:
        posterior: DiagonalGaussian = self.head(self._features(x))
        return posterior

    def _features(self, x: Int[Tensor, "batch time *parts"]) -> Float[Tensor, "batch features"]:
        seen = hide_tokens(x, self.word_dropout) if self.training else x
        embedded = self.dropout(self.embedding(seen))
        ragged = not torch.compiler.is_exporting() and not bool(is_there(x).all())  # an exported graph has whole rows
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
        return states.masked_fill(~is_there(x).unsqueeze(-1), -torch.inf).amax(1)


class NoEncoder(Encoder):
    """A posterior of width zero: there is no latent, so a VAE with it is an exact language model."""

    latent_dim = 0

    def forward(self, x: Int[Tensor, "batch time *parts"]) -> DiagonalGaussian:
        nothing = torch.zeros(len(x), 0, device=x.device)
        return DiagonalGaussian(nothing, nothing)
