"""The annotations of shapes are checked while testing."""

import jaxtyping
import pytest
import torch

from seqvae.gaussian import DiagonalGaussian
from seqvae.models import lstm


def test_a_tensor_of_another_shape_than_annotated_is_caught() -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="log_variance"):
        DiagonalGaussian(torch.zeros(2, 3), torch.zeros(2, 4))
    _, decoder = lstm(vocab_size=5, max_length=4, hidden_dim=6, encoder_hidden_dim=6, latent_dim=3)
    with pytest.raises(jaxtyping.TypeCheckError, match="z"):
        decoder.log_prob(torch.zeros(2, 4, dtype=torch.long), torch.zeros(3, 3))
