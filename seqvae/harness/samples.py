"""What sampled windows of any modality are worth: whether they encode again, repeats, copies, the codec's measures.

Everything stands beside the same numbers of as many training windows and of the test split.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from seqvae.data.codec import Codec, encoded_again
from seqvae.data.dataset import WindowDataset
from seqvae.harness.config import Trained
from seqvae.harness.scoring import open_split, random_subset

TRAINING = "training windows"


def sample_quality(
    trained: Trained, samples: Sequence[Tensor], root: Path, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Return metrics by name of the samples, of as many training windows (drawn with the seed) and of the test split.

    Raises:
        ValueError: for a dataset that is not the model's own, or no samples.
    """
    if not samples:
        raise ValueError("there are no samples to measure")
    train, test = (open_split(root, split, trained.config["data"]["fingerprint"]) for split in ("train", "test"))
    places = random_subset(train, min(len(samples), len(train)), seed)
    sets = {
        "samples": list(samples),
        TRAINING: [train[place] for place in places.tolist()],
        "test split": list(_windows(test)),
    }
    known = {_digest(window) for window in _windows(train)}
    return {
        name: _set_metrics(trained.codec, windows, known)
        | trained.codec.sample_score(windows, sets["test split"], None if name == TRAINING else _windows(train))
        for name, windows in sets.items()
    }


def _set_metrics(codec: Codec[Any], windows: Sequence[Tensor], known: set[bytes]) -> dict[str, float]:
    """Return what is counted of every modality's windows, and the mean of each attribute over those that have it."""
    again = [encoded_again(codec, window) for window in windows]
    digests = [_digest(window if other is None else other) for window, other in zip(windows, again, strict=True)]
    attributes: defaultdict[str, list[float]] = defaultdict(list)
    for window in windows:
        for name, value in codec.attributes(window).items():
            attributes[name].append(value)
    count = len(windows)
    return {
        "windows": float(count),
        "encodable": sum(other is not None for other in again) / count,
        "encodes_again": sum(_comes_back(codec, *pair) for pair in zip(windows, again, strict=True)) / count,
        "unique": len(set(digests)) / count,
        "in_training_data": sum(digest in known for digest in digests) / count,
        **{name: sum(values) / len(values) for name, values in attributes.items()},
    }


def _comes_back(codec: Codec[Any], window: Tensor, again: Tensor | None) -> bool:
    """Return whether a window is what its item encodes to; expected pixels are first made those of a picture."""
    if again is not None and window.is_floating_point():
        window, again = again, encoded_again(codec, again)
    return again is not None and window.shape == again.shape and bool((window == again).all())


def _windows(dataset: WindowDataset) -> Iterator[Tensor]:
    return (dataset[place] for place in range(len(dataset)))


def _digest(window: Tensor) -> bytes:
    return hashlib.blake2b(window.numpy().tobytes(), digest_size=16).digest()
