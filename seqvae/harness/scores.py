"""What one checkpoint scored on each example of a split, kept beside its run, and paired with what another scored."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from seqvae.harness.checkpoint import MANIFEST, WEIGHTS

PAIRED = ("elbo", "log_likelihood", "kl", "nll")


@dataclass(frozen=True)
class Scores:
    """What one checkpoint scored on each example of a split, in nats, in the order of the split."""

    split: str
    data: str  # the dataset's fingerprint
    seen: str  # the sha256 of what the model saw of every example, and of whether its nats are a density's
    weights: str  # the sha256 of the model's weights
    importance_samples: int  # of the nll; 0 where there is none, or where it is exact
    index: NDArray[np.int64]
    elbo: NDArray[np.float64]
    log_likelihood: NDArray[np.float64]
    kl: NDArray[np.float64]
    nll: NDArray[np.float64] | None = None

    def save(self, path: Path) -> None:
        """Write a .npz file without pickles."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        with temporary.open("wb") as file:
            columns: dict[str, Any] = {name: value for name, value in asdict(self).items() if value is not None}
            np.savez(file, **columns)
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote. Raises ValueError when the file is something else."""
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                columns = {name: file[name] for name in file.files}
            facts = {name: columns.pop(name).item() for name in ("split", "data", "seen", "weights")}
            samples = int(columns.pop("importance_samples"))
            scores = cls(**facts, importance_samples=samples, **columns)
        except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
            raise ValueError(f"{path} cannot be read as the scores of an evaluation ({error})") from None
        if any(column.shape != (len(scores.index),) or column.dtype.kind not in "if" for column in columns.values()):
            raise ValueError(f"{path} cannot be read as the scores of an evaluation (no columns of one length)")
        return scores


class Subset(NamedTuple):
    """So many windows of a split, drawn at random with a seed."""

    size: int
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.size:,} windows drawn with seed {self.seed}"

    @property
    def options(self) -> str:
        """What a person types for it."""
        return f"--subset {self.size} --subset-seed {self.seed}"


def scores_path(path: Path, split: str, subset: Subset | None = None) -> Path | None:
    """Return where a checkpoint's scores belong: beside the checkpoints of its run; None where it is in no run."""
    run_dir = run_dir_of(path)
    which = split if subset is None else f"{split}-{subset.size}-of-seed-{subset.seed}"
    return None if run_dir is None else run_dir / "scores" / f"{path.name}-{which}.npz"


def keep(scores: Scores, path: Path) -> None:
    """Write scores, unless those that are there say more of the same: an nll of more importance samples took longer."""
    try:
        there = Scores.load(path)
    except ValueError:  # none, or damaged
        there = None
    if (
        there is None
        or there.weights != scores.weights
        or there.importance_samples <= scores.importance_samples
        or other_examples(there, scores) is not None
    ):
        scores.save(path)


class Difference(NamedTuple):
    """Mean and standard error, over the same examples, of a run's score minus the first run's."""

    mean: float
    error: float


def paired_differences(first: Scores, other: Scores) -> dict[str, Difference]:
    """Return the mean of `other` minus `first` over the same examples, with its standard error (NaN for one example).

    The nll is left out where two estimates differ in their number of importance samples, with which they fall; what
    is exact needs none.

    Raises:
        ValueError: when they did not score the same examples; the message says what differs.
    """
    reason = other_examples(first, other)
    if reason is not None:
        raise ValueError(f"the scores cannot be paired: {reason}")
    differences = {}
    for name in PAIRED:
        a, b = getattr(first, name), getattr(other, name)
        samples = {scores.importance_samples for scores in (first, other)} - {0}
        if a is None or b is None or (name == "nll" and len(samples) > 1):
            continue
        delta = b - a
        error = float(delta.std(ddof=1) / math.sqrt(len(delta))) if len(delta) > 1 else math.nan
        differences[name] = Difference(float(delta.mean()), error)
    return differences


def other_examples(first: Scores, other: Scores) -> str | None:
    """Return why two did not score the same examples; None where they did."""
    if first.split != other.split:
        return f"one scored the {other.split} split, the other the {first.split} split"
    if first.data != other.data:
        return "they were scored on different datasets (their sha256 differs)"
    if not np.array_equal(first.index, other.index):
        return f"they scored different examples ({len(other.index):,} and {len(first.index):,} of them)"
    if first.seen != other.seen:
        return "their models saw the examples differently (data.view), or one gives a density and one a probability"
    return None


def weights_digest(path: Path) -> str:
    """Return the sha256 of a verified checkpoint's weights."""
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    return str(manifest[WEIGHTS])


def run_dir_of(path: Path) -> Path | None:
    """Return the run directory that a checkpoint lies in; None where it stands alone."""
    path = path.absolute()
    return path.parent.parent if path.parent.name == "checkpoints" else None
