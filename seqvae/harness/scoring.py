"""A trained VAE's numbers on a split, by the codec's units and scores beside the trivial guess."""

import hashlib
import logging
import math
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seqvae.data.batching import valid_loader
from seqvae.data.codec import Codec, strip
from seqvae.data.dataset import WindowDataset, read_manifest
from seqvae.evaluation import (
    ExampleScores,
    active_units,
    mean_and_error,
    mutual_information,
    score_examples,
)
from seqvae.vae import VAE

log = logging.getLogger(__name__)


class Report(NamedTuple):
    """The metrics of one evaluation, the rows of reconstruction scores, and the scores of each example."""

    metrics: dict[str, float]
    reconstruction: dict[str, dict[str, float]]  # row -> metric -> value
    examples: dict[str, Tensor]  # score -> one number a window, in the order of `index`
    seen: str  # the sha256 of what the model saw of every window


def open_split(root: Path, split: str, fingerprint: str | None, limit: int | None = None) -> WindowDataset:
    """Return a split of the data a model was trained on.

    Raises:
        ValueError: when the folder is no dataset, or (with a fingerprint) not that one.
    """
    manifest = read_manifest(root)
    if fingerprint is not None and manifest["fingerprint"] != fingerprint:
        raise ValueError(f"{root} is not the dataset this checkpoint was trained on (its sha256 differs)")
    dataset = WindowDataset(root, split, limit)
    if len(dataset) == 0:
        raise ValueError(f"{root} has no windows in its {split} split")
    return dataset


@torch.no_grad()
def evaluate(
    vae: VAE,
    codec: Codec[Any],
    dataset: WindowDataset,
    *,
    importance_samples: int = 0,
    rows: int = 512,
    seed: int = 0,
) -> Report:
    """Return ELBO, importance-weighted NLL, latent health and reconstruction scores of a split.

    All in nats an example unless the name says otherwise; `elbo` and `log_likelihood` higher, `nll` lower is better.
    A model that gives a density gets `log_density` (higher is better) and nothing by units: it has no NLL.
    `rows` bounds how many decoded windows are in memory at once.

    Raises:
        ValueError: for a negative number of samples or no rows.
    """
    if importance_samples < 0:
        raise ValueError(f"importance_samples must be 0 (none) or more, got {importance_samples}")
    if rows < 1:
        raise ValueError(f"rows must be positive, got {rows}")
    device = next(vae.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    started = time.monotonic()
    batches = [
        (batch.x.to(device), batch.index)
        for batch in valid_loader(dataset, codec, batch_size=64 if importance_samples else 256)
    ]
    scores = score_examples(
        vae, [x for x, _ in batches], importance_samples=importance_samples, generator=generator, rows=rows
    )
    density = vae.decoder.is_density
    metrics = _latent_metrics(scores, importance_samples, generator, density)
    order = torch.cat([index for _, index in batches])
    if density:
        log.warning("this model's p(x|z) is a density: its nats are no NLL, and compare with those of no other kind")
    else:
        metrics |= _unit_metrics(scores, codec, [dataset[index] for index in order.tolist()])
    metrics["seconds"] = time.monotonic() - started
    reconstruction = _reconstruction(vae, codec, dataset, batches)
    return Report(metrics, reconstruction, _by_index(scores, order, density), _digest(batches, density))


def _by_index(scores: ExampleScores, order: Tensor, density: bool) -> dict[str, Tensor]:
    columns = {"index": order, "elbo": scores.elbo, "log_likelihood": scores.log_likelihood, "kl": scores.kl}
    if scores.iw_bound is not None and not density:
        columns["nll"] = -scores.iw_bound
    places = order.argsort()
    return {name: column[places] for name, column in columns.items()}


def _digest(batches: list[tuple[Tensor, Tensor]], density: bool = False) -> str:
    """Return one sha256 for what the model saw, however it was cut into batches, and for what its nats are of."""
    rows = [(int(place), _window(row)) for x, index in batches for place, row in zip(index, x.cpu(), strict=True)]
    digest = hashlib.sha256(b"density" if density else b"")
    for place, row in sorted(rows, key=lambda pair: pair[0]):
        digest.update(f"{place} {tuple(row.shape)} {row.dtype} ".encode() + row.numpy().tobytes())
    return digest.hexdigest()


def _latent_metrics(scores: ExampleScores, samples: int, generator: torch.Generator, density: bool) -> dict[str, float]:
    metrics = {"examples": float(len(scores.elbo))}
    for name in ("elbo", "log_likelihood", "kl"):
        metrics[name], metrics[f"{name}_error"] = mean_and_error(getattr(scores, name))
    if scores.iw_bound is not None and scores.effective_samples is not None:
        name, sign = ("log_density", 1) if density else ("nll", -1)
        metrics[name], metrics[f"{name}_error"] = mean_and_error(sign * scores.iw_bound)
        metrics["importance_samples"] = float(samples)
        metrics["effective_samples_median"] = float(scores.effective_samples.median())
    host = torch.Generator().manual_seed(generator.initial_seed())
    metrics["mutual_information"] = mutual_information(scores.posterior, host)
    metrics["mutual_information_cap"] = math.log(len(scores.elbo))
    metrics["active_units"] = float(active_units(scores.posterior))
    metrics["latent_dim"] = float(scores.posterior.mean.shape[1])
    return metrics


def _unit_metrics(scores: ExampleScores, codec: Codec[Any], windows: list[Tensor]) -> dict[str, float]:
    """Return the negative log-likelihood (importance-weighted where there is one) over each of the codec's units."""
    nats = -float((scores.elbo if scores.iw_bound is None else scores.iw_bound).sum())
    counts: Counter[str] = Counter()
    for window in windows:
        counts.update(codec.sizes(window))
    metrics = {f"nats_per_{unit}": nats / count for unit, count in counts.items()}
    if "word" in counts:
        metrics["perplexity"] = float(
            torch.tensor(nats / counts["word"], dtype=torch.float64).exp()
        )  # words and one end a sentence
    if "dim" in counts:
        metrics["bits_per_dim"] = nats / counts["dim"] / math.log(2)
    return metrics


def _reconstruction(
    vae: VAE, codec: Codec[Any], dataset: WindowDataset, batches: list[tuple[Tensor, Tensor]]
) -> dict[str, dict[str, float]]:
    truth: list[Tensor] = []
    rows: dict[str, list[Tensor]] = {"given the true past": [], "free-running": []}
    for x, index in batches:
        mean = vae.encoder(x).mean
        truth += [dataset[place] for place in index.tolist()]
        rows["given the true past"] += [_window(row) for row in vae.decoder.predict(x, mean).cpu()]
        if x.ndim == 2:
            rows["free-running"] += [_window(row) for row in vae.decoder.sample(mean).cpu()]
    if dataset.shape is not None:  # pixels have no past
        return {"reconstruction": codec.score(truth, rows["given the true past"])}
    commonest = int(torch.cat(truth).bincount().argmax())
    rows["always the commonest"] = [torch.full_like(window, commonest) for window in truth]
    return {name: codec.score(truth, windows) for name, windows in rows.items()}


def _window(row: Tensor) -> Tensor:
    return strip(row) if row.ndim == 1 else row
