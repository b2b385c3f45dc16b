"""Likelihoods of pixels: the last part of an image decoder, exchangeable by one key of the configuration."""

from seqvae.models.likelihoods.binary import Bernoulli, ContinuousBernoulli
from seqvae.models.likelihoods.discretized import DiscretizedGaussian, DiscretizedLogistic, MixtureOfLogistics
from seqvae.models.likelihoods.likelihood import Likelihood

__all__ = [
    "Bernoulli",
    "ContinuousBernoulli",
    "DiscretizedGaussian",
    "DiscretizedLogistic",
    "Likelihood",
    "MixtureOfLogistics",
]
