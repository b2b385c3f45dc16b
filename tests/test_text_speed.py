"""What the benchmark of text measures seqvae against is the same model."""

import pytest
import torch
from torch import Tensor, nn

from benchmarks.speed import forward_multiply_adds
from benchmarks.text_speed import EMBEDDING, HIDDEN, LATENT, VOCAB, Plain, batches, model
from seqvae.models.lstm import LSTMDecoder
from seqvae.models.lstm_encoder import LSTMEncoder


@torch.no_grad()
def test_the_plain_model_has_the_same_loss() -> None:
    vae, plain = model(), Plain()
    assert isinstance(vae.encoder, LSTMEncoder)
    assert isinstance(vae.decoder, LSTMDecoder)
    pairs: list[tuple[nn.Module, nn.Module]] = [
        (plain.encoder, vae.encoder.lstm),
        (plain.mean, vae.encoder.head.mean),
        (plain.log_variance, vae.encoder.head.log_variance),
        (plain.decoder, vae.decoder.lstm),
        (plain.output, vae.decoder.output),
    ]
    for theirs, ours in pairs:
        theirs.load_state_dict(ours.state_dict())
    cell, hidden = vae.decoder.initial_state.parameters()
    plain.initial_state.load_state_dict({"weight": cell, "bias": hidden})
    for embedding, tokens in (
        (plain.encoder_embedding, vae.encoder.embedding),
        (plain.decoder_embedding, vae.decoder.embedding),
    ):
        embedding.weight[:VOCAB] = tokens.weight
    x = batches(2, equal_lengths=False)[0]
    assert (x < 0).any()
    torch.manual_seed(0)
    expected = -vae.terms(x).elbo.mean()
    torch.manual_seed(0)
    torch.testing.assert_close(plain(x), expected)


def test_the_multiply_adds_are_those_of_the_layers() -> None:
    x: Tensor = torch.zeros(2, 5, dtype=torch.long)
    a_token = 4 * HIDDEN * (EMBEDDING + HIDDEN) + 4 * HIDDEN * (EMBEDDING + LATENT + HIDDEN) + HIDDEN * VOCAB
    an_example = 2 * HIDDEN * LATENT + LATENT * 2 * HIDDEN
    assert forward_multiply_adds(model(), [x]) == pytest.approx(5 * a_token + an_example)
