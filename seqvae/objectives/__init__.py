"""Objectives: values that ask a VAE for the terms they need and return the loss to minimise."""

from seqvae.objectives.elbo import Autoencoder, BetaELBO, CapacityELBO
from seqvae.objectives.importance import IWAE, DReG
from seqvae.objectives.objective import OF_THE_LIKELIHOOD as OF_THE_LIKELIHOOD
from seqvae.objectives.objective import BatchMean as BatchMean
from seqvae.objectives.objective import Loss as Loss
from seqvae.objectives.objective import Objective as Objective
from seqvae.objectives.objective import batch_mean as batch_mean
from seqvae.objectives.rate import TargetRate
from seqvae.objectives.sampling import ScheduledSampling

# what a configuration may name; the rest is for those who write or call an objective
__all__ = ["IWAE", "Autoencoder", "BetaELBO", "CapacityELBO", "DReG", "ScheduledSampling", "TargetRate"]
