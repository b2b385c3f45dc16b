"""A trained VAE's numbers on a split, by the codec's units and scores beside the trivial guess."""

import hashlib
import logging
import math
import time
from collections import Counter
from collections.abc import Sized
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqvae.data.batching import VALID_SEED, BatchOrder, loader
from seqvae.data.codec import Codec, strip
from seqvae.data.dataset import VALID_EPOCH, WindowDataset, read_manifest
from seqvae.evaluation import (
    ExampleScores,
    active_units,
    mean_and_error,
    mutual_information,
    score_examples,
)
from seqvae.vae import VAE

log = logging.getLogger(__name__)

BATCH = 256  # windows encoded at once
BATCH_OF_ONE_LENGTH = 64  # the samples of each fill up the decoder's rows


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


def unseen(dataset: WindowDataset) -> NDArray[np.int64]:
    """Return the places of a split's windows that do not stand in train as well: a score of those would flatter.

    The preparation has compared the windows themselves, by a hash, whatever item they come from.

    Raises:
        ValueError: when every one does.
    """
    if dataset.split == "train":
        return np.arange(len(dataset))
    places = np.flatnonzero(dataset.column("seen_in_train")[: len(dataset)] == 0)
    if len(places) == 0:
        raise ValueError(f"each of the {len(dataset):,} windows of {dataset.split} also stands in train; --keep-seen")
    return places


def random_subset(dataset: Sized, size: int, seed: int) -> NDArray[np.int64]:
    """Return the places of `size` windows of a split, ascending: always the same ones for a seed.

    Raises:
        ValueError: for a size that the split does not have.
    """
    if not 1 <= size <= len(dataset):
        raise ValueError(f"subset must be between 1 and the {len(dataset):,} windows of the split, got {size}")
    return np.sort(np.random.default_rng(seed).permutation(len(dataset))[:size])


@torch.no_grad()
def evaluate(
    vae: VAE,
    codec: Codec[Any],
    dataset: WindowDataset,
    *,
    importance_samples: int = 0,
    rows: int = 512,
    max_tokens: int = 4096,
    places: NDArray[np.int64] | None = None,
    seed: int = 0,
    noise: bool = True,
) -> Report:
    """Return ELBO, importance-weighted NLL, latent health and reconstruction scores of a split.

    All in nats an example unless the name says otherwise; `elbo` and `log_likelihood` higher, `nll` lower is better.
    A model that gives a density gets `log_density` (higher is better) and nothing by units: it has no NLL.
    `rows` bounds how many windows are decoded at once, `max_tokens` the tokens of sequences among them. `places` are
    the windows to evaluate, by default all of them. A model trained without `noise` has no mutual information.

    Raises:
        ValueError: for a negative number of samples, or no rows or tokens.
    """
    if importance_samples < 0:
        raise ValueError(f"importance_samples must be 0 (none) or more, got {importance_samples}")
    for name, value in (("rows", rows), ("max_tokens", max_tokens)):
        if value < 1:
            raise ValueError(f"{name} must be positive, got {value}")
    device = next(vae.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    started = time.monotonic()
    budget = max_tokens if dataset.shape is None else None
    cut = _cut(
        dataset.lengths, np.arange(len(dataset)) if places is None else places, rows, budget, importance_samples > 0
    )
    batches = [
        (batch.x.to(device), batch.index) for batch in loader(dataset, codec, cut, seed=VALID_SEED, epoch=VALID_EPOCH)
    ]
    scores = score_examples(
        vae,
        [x for x, _ in batches],
        importance_samples=importance_samples,
        generator=generator,
        rows=rows,
        max_values=budget,
    )
    density = vae.decoder.is_density
    host = torch.Generator().manual_seed(seed) if noise else None
    metrics = _latent_metrics(scores, importance_samples, host, density)
    order = torch.cat([index for _, index in batches])
    if density:
        log.warning("this model's p(x|z) is a density: its nats are no NLL, and compare with those of no other kind")
    else:
        metrics |= _unit_metrics(scores, codec, [dataset[index] for index in order.tolist()])
    metrics["seconds"] = time.monotonic() - started
    metrics["examples_per_second"] = len(order) / metrics["seconds"]
    reconstruction = _reconstruction(vae, codec, dataset, batches, scores.posterior.mean, rows)
    return Report(metrics, reconstruction, _by_index(scores, order, density), _digest(batches, density))


def _cut(
    lengths: NDArray[np.int64], places: NDArray[np.int64], rows: int, max_tokens: int | None, of_one_length: bool
) -> list[list[int]]:
    """Return the places in batches, of one length each where every window is decoded many times: nothing is filled."""
    lengths = lengths[places]
    if not of_one_length:
        batches = BatchOrder(lengths, min(rows, BATCH), max_tokens).epoch(0)
        return [places[batch].tolist() for batch in batches]
    cut: list[list[int]] = []
    for length in np.unique(lengths):
        alike = places[lengths == length].tolist()
        most = min(rows, BATCH_OF_ONE_LENGTH, rows if max_tokens is None else max(1, max_tokens // int(length)))
        cut += [alike[start : start + most] for start in range(0, len(alike), most)]
    return cut


def _by_index(scores: ExampleScores, order: Tensor, density: bool) -> dict[str, Tensor]:
    columns = {"index": order, "elbo": scores.elbo, "log_likelihood": scores.log_likelihood, "kl": scores.kl}
    if scores.iw_bound is not None and not density:
        columns["nll"] = -scores.iw_bound
    places = order.argsort()
    return {name: column[places] for name, column in columns.items()}


def _digest(batches: list[tuple[Tensor, Tensor]], density: bool = False) -> str:
    """Return one sha256 for what the model saw, however it was cut into batches, and for what its nats are of."""
    rows = [(int(place), strip(row)) for x, index in batches for place, row in zip(index, x.cpu(), strict=True)]
    digest = hashlib.sha256(b"density" if density else b"")
    for place, row in sorted(rows, key=lambda pair: pair[0]):
        digest.update(f"{place} {tuple(row.shape)} {row.dtype} ".encode() + row.numpy().tobytes())
    return digest.hexdigest()


def _latent_metrics(
    scores: ExampleScores, samples: int, generator: torch.Generator | None, density: bool
) -> dict[str, float]:
    """Return the metrics of every unit; of mutual information only with a generator to draw z with."""
    metrics = {"examples": float(len(scores.elbo))}
    for name in ("elbo", "log_likelihood", "kl"):
        metrics[name], metrics[f"{name}_error"] = mean_and_error(getattr(scores, name))
    if scores.iw_bound is not None:
        name, sign = ("log_density", 1) if density else ("nll", -1)
        metrics[name], metrics[f"{name}_error"] = mean_and_error(sign * scores.iw_bound)
    if scores.effective_samples is not None:
        metrics["importance_samples"] = float(samples)
        metrics["effective_samples_median"] = float(scores.effective_samples.median())
    if generator is not None:
        metrics["mutual_information"] = mutual_information(scores.posterior, generator)
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
        metrics["perplexity"] = perplexity(nats, counts["word"])
    if "dim" in counts:
        metrics["bits_per_dim"] = nats / counts["dim"] / math.log(2)
    return metrics


def perplexity(nats: float, words: int) -> float:
    """Return exp(nats / words), the end of each sentence counted as a word; infinity where no float can hold it."""
    return float(torch.tensor(nats / words, dtype=torch.float64).exp())


def _reconstruction(
    vae: VAE,
    codec: Codec[Any],
    dataset: WindowDataset,
    batches: list[tuple[Tensor, Tensor]],
    posterior_mean: Tensor,
    rows: int,
) -> dict[str, dict[str, float]]:
    truth = [dataset[place] for _, index in batches for place in index.tolist()]
    parameter = next(vae.parameters())
    mean = posterior_mean.to(parameter.dtype).to(parameter.device)
    known = mean.split([len(x) for x, _ in batches])
    predicted = [vae.decoder.predict(x, z).cpu() for (x, _), z in zip(batches, known, strict=True)]
    found = {"given the true past": [strip(row) for part in predicted for row in part]}
    if dataset.shape is not None:  # pixels have no past
        return {"reconstruction": codec.evaluation_score(truth, found["given the true past"])}
    sampled = [vae.decoder.sample(z).cpu() for z in mean.split(min(rows, BATCH))]
    found["free-running"] = [strip(row) for part in sampled for row in part]
    commonest = torch.cat(truth).mode(0).values  # of each part
    found["always the commonest"] = [commonest.expand_as(window) for window in truth]
    return {name: codec.evaluation_score(truth, windows) for name, windows in found.items()}
