"""The mixture that stands for a trained model's aggregate posterior: fitted when a training ends, kept with its best.

The best checkpoint is what a run directory means to every command, and which one that is only the end tells; so one
fit is enough, and a training that goes on makes its own again when another checkpoint becomes the best.
"""

import logging
from pathlib import Path

import numpy as np
import torch

from seqvae.aggregate import RotatedMixture, fit_aggregate, from_tensors
from seqvae.data.batching import VALID_SEED, BatchOrder, loader
from seqvae.data.dataset import VALID_EPOCH, WindowDataset, spread
from seqvae.gaussian import DiagonalGaussian
from seqvae.harness import checkpoint
from seqvae.harness.checkpoint import AGGREGATE, CheckpointError
from seqvae.harness.config import Trained, load

log = logging.getLogger(__name__)

MOST_WINDOWS = 4096  # of train that are encoded, evenly spread
BATCH = 256  # of them at once


def keep_aggregate(run_dir: Path, train: WindowDataset, device: torch.device) -> None:
    """Add the mixture to the best checkpoint of a run, unless it is there; what hinders it is a warning."""
    path = checkpoint.best(run_dir)
    if path is None or (path / AGGREGATE).exists():
        return
    try:
        trained = load(path, device)
        if trained.vae.latent_dim:
            checkpoint.add_tensors(path, AGGREGATE, fit_to(trained, train).tensors())
    except (ValueError, OSError) as error:  # the training itself has come to its end
        log.warning("%s has no mixture to sample from (%s)", path, error)


def read_aggregate(trained: Trained) -> RotatedMixture | None:
    """Return the mixture that a checkpoint holds; None where it was saved without one.

    Raises:
        CheckpointError: when the file is none of ours.
    """
    if not (trained.path / AGGREGATE).exists():
        return None
    tensors = checkpoint.read_tensors(trained.path, AGGREGATE)
    device = next(trained.vae.parameters()).device
    try:
        return from_tensors({name: tensor.to(device) for name, tensor in tensors.items()}, trained.vae.latent_dim)
    except ValueError as error:
        raise CheckpointError(trained.path, f"damaged: {AGGREGATE} cannot be used ({error})") from None


@torch.no_grad()
def fit_to(trained: Trained, train: WindowDataset) -> RotatedMixture:
    """Return the mixture fitted to the posteriors of training windows, none of them augmented.

    Of a model that was trained without noise it is fitted to their means alone.
    """
    device = next(trained.vae.parameters()).device
    places = np.array(spread(range(len(train)), MOST_WINDOWS))
    batches = [places[batch].tolist() for batch in BatchOrder(train.lengths[places], BATCH, None).epoch(0)]
    posteriors = [
        trained.vae.encoder(batch.x.to(device))
        for batch in loader(train, trained.codec, batches, seed=VALID_SEED, epoch=VALID_EPOCH)
    ]
    mean, log_variance = (
        torch.cat([getattr(posterior, name).cpu() for posterior in posteriors]) for name in ("mean", "log_variance")
    )
    posterior = DiagonalGaussian(mean, log_variance)
    fitted = fit_aggregate(posterior if trained.noise else posterior.without_noise()).tensors()
    return from_tensors({name: tensor.to(device) for name, tensor in fitted.items()}, trained.vae.latent_dim)
