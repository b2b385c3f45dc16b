"""Aggressive training: the encoder catches up with the decoder before each step (He et al., 2019)."""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.optim import Optimizer

from seqvae.harness.engine import Engine
from seqvae.harness.meter import Report
from seqvae.objectives import Objective
from seqvae.vae import VAE

BLOCK = 10  # steps whose loss is compared with that of as many before
FIRST_EPOCH = 1 << 32  # of the order that the encoder's own steps follow: beyond any epoch that the others reach


def check_aggressive(steps: int, vae: VAE, objective: Objective) -> None:
    """Raise ValueError for a VAE or an objective that such steps make no sense for."""
    if steps and vae.latent_dim == 0:
        raise ValueError(f"trainer.aggressive_steps={steps} are steps of the encoder, and a language model has none")
    if steps and not objective.noise:
        raise ValueError(
            f"trainer.aggressive_steps={steps} end when the mutual information no longer grows, and an autoencoder, "
            "without noise, has none"
        )
    if steps and isinstance(objective, nn.Module):
        raise ValueError(
            f"trainer.aggressive_steps={steps} would move the controller of {type(objective).__name__} "
            "as often as the encoder; use an objective without a state"
        )


def catch_up(
    engine: Engine,
    module: nn.Module,
    optimizer: Optimizer,
    vae: VAE,
    gradients: Callable[[], list[Report]],
    most: int,
    clip_norm: float,
) -> int:
    """Take steps of the encoder alone, at most `most`, until they no longer help; return how many were taken.

    He et al. (2019), "Lagging Inference Networks and Posterior Collapse", algorithm 1: they end where the loss of ten
    is not below that of the ten before. A step whose gradient is not finite is not taken, and is the last one too.
    `gradients` adds up the gradients of one step and returns what its batches reported.
    """
    encoder = {id(parameter) for parameter in vae.encoder.parameters()}
    others = [parameter for parameter in vae.parameters() if id(parameter) not in encoder]
    taken, before = 0, math.inf
    block: list[Report] = []
    while taken < most:
        block += gradients()
        for parameter in others:
            parameter.grad = None  # an optimizer leaves alone what has no gradient
        norm = engine.clip(module, optimizer, clip_norm)
        finite = not engine.largest(not bool(norm.isfinite()))
        if finite:
            optimizer.step()
            taken += 1
        optimizer.zero_grad(set_to_none=True)
        if not finite:
            break
        if taken % BLOCK == 0:
            loss = _loss(engine, block)
            if not loss < before:
                break
            before, block = loss, []
    return taken


def _loss(engine: Engine, reports: list[Report]) -> float:
    """Return the mean loss a token, or an example where there are no tokens, over all processes."""
    here = torch.stack(
        [
            torch.stack([report.metrics["loss"] * report.examples, report.metrics["loss"].new_tensor(_size(report))])
            for report in reports
        ]
    )
    loss, elements = engine.sum(here.sum(0)).tolist()
    return float(loss / elements)


def _size(report: Report) -> int:
    """Return how many tokens or examples a loss is of: none for the row that fills a process's missing batch."""
    return (report.tokens or report.examples) if report.examples else 0
