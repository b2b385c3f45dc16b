"""Networks: a builder returns (encoder, decoder), and a VAE is made of the two and a prior."""

from seqvae.models.conv import conv
from seqvae.models.hierarchical import hierarchical
from seqvae.models.likelihoods import (
    Bernoulli,
    ContinuousBernoulli,
    DiscretizedGaussian,
    DiscretizedLogistic,
    MixtureOfLogistics,
)
from seqvae.models.lstm import lstm

__all__ = [
    "Bernoulli",
    "ContinuousBernoulli",
    "DiscretizedGaussian",
    "DiscretizedLogistic",
    "MixtureOfLogistics",
    "conv",
    "hierarchical",
    "lstm",
]
