"""Checkpoints: directories of safetensors and JSON with a manifest, written whole or not at all, verified when read.

checkpoints/step-000001000/
    model.safetensors      the weights
    config.json            what builds the model again: format, builder names and arguments, versions, metrics
    codec.json ...         the codec's files
    training.safetensors   optimizer and random number generators
    training.json          position and best score
    MANIFEST.json          the sha256 of each
"""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from seqvae.data.codec import Codec
from seqvae.data.dataset import sha256

log = logging.getLogger(__name__)

FORMAT = 1
MANIFEST = "MANIFEST.json"
TEMPORARY_PREFIX = ".tmp-"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: which one, and why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"checkpoint {path}: {reason}")


@dataclass(frozen=True)
class TrainingState:
    """What a training needs to go on as if it had never stopped, beside the weights."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


def save_checkpoint(
    root: Path,
    step: int,
    weights: dict[str, Tensor],
    config: dict[str, Any],
    codec: Codec[Any],
    training: TrainingState,
) -> Path:
    """Write a checkpoint below `root` and return its path. Either all of it appears under its name or nothing does."""
    root.mkdir(parents=True, exist_ok=True)
    target = root / f"step-{step:09d}"
    temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=root))  # same filesystem: the rename is atomic
    try:
        save_file(_detached(weights), temporary / "model.safetensors")
        _write_json(temporary / "config.json", {"format": FORMAT, **config})
        codec.save(temporary)
        save_file(_detached(training.tensors), temporary / "training.safetensors")
        _write_json(temporary / "training.json", training.values)
        files = sorted(path for path in temporary.iterdir() if path.is_file())
        _write_json(temporary / MANIFEST, {path.name: sha256(path) for path in files})
        for path in (*files, temporary / MANIFEST, temporary):
            _fsync(path)
        temporary.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
        _fsync(root)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def _detached(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(root: Path) -> None:
    """Remove what a killed save left behind."""
    for path in root.glob(f"{TEMPORARY_PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)


def verify(path: Path) -> None:
    """Raise CheckpointError unless every file of the checkpoint is what was written."""
    if not path.is_dir():
        raise CheckpointError(path, "no such directory")
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(path, f"damaged: {MANIFEST} cannot be read ({error})") from None
    if not isinstance(manifest, dict) or not {"model.safetensors", "config.json"} <= manifest.keys():
        raise CheckpointError(path, f"damaged: {MANIFEST} does not list a checkpoint's files")
    for name, digest in manifest.items():
        file = path / name
        if file.parent != path:
            raise CheckpointError(path, f"damaged: {MANIFEST} names a file elsewhere ({name!r})")
        if not file.is_file():
            raise CheckpointError(path, f"damaged: {name} is missing")
        if sha256(file) != digest:
            raise CheckpointError(path, f"damaged: {name} is not what was written (its sha256 differs)")


def read_config(path: Path) -> dict[str, Any]:
    """Return a checkpoint's config.json. Raises CheckpointError for one that this version cannot read."""
    try:
        config: dict[str, Any] = json.loads((path / "config.json").read_text(encoding="utf-8"))
        format_number = int(config["format"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(path, f"damaged: config.json cannot be read ({error})") from None
    if format_number > FORMAT:
        raise CheckpointError(path, f"has format {format_number}, this seqvae reads up to {FORMAT}")
    return config


def read_tensors(path: Path, name: str) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint's safetensors file. Raises CheckpointError when it is none."""
    try:
        return load_file(path / name)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(path, f"damaged: {name} cannot be read ({error})") from None


def read_training(path: Path) -> TrainingState:
    """Return what a training goes on from."""
    try:
        values = json.loads((path / "training.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(path, f"damaged: training.json cannot be read ({error})") from None
    return TrainingState(read_tensors(path, "training.safetensors"), values)


def checkpoints(run_dir: Path) -> list[Path]:
    """Return a run's checkpoints, the oldest first, whether they are sound or not."""
    return sorted((run_dir / "checkpoints").glob("step-*"))


def last(run_dir: Path) -> Path | None:
    """Return the newest sound checkpoint of a run; a damaged one is named in a warning and passed over."""
    return next(_sound(reversed(checkpoints(run_dir))), None)


def best(run_dir: Path) -> Path | None:
    """Return the sound checkpoint with the best validation score, or the newest where none was scored."""
    scored: list[tuple[float, Path]] = []
    for path in checkpoints(run_dir):
        try:
            score = read_config(path).get("score")
        except CheckpointError as error:
            log.warning("%s; passed over", error)
            continue
        if score is not None:
            scored.append((score, path))
    ordered = (path for _, path in sorted(scored, reverse=True))
    return next(_sound(ordered), None) or last(run_dir)


def _sound(paths: Iterator[Path]) -> Iterator[Path]:
    for path in paths:
        try:
            verify(path)
        except CheckpointError as error:
            log.warning("%s; the one before it is used", error)
        else:
            yield path


def prune(run_dir: Path, keep_last: int, protected: Path | None) -> None:
    """Remove all but the newest `keep_last` checkpoints and the protected one."""
    for path in checkpoints(run_dir)[:-keep_last]:
        if path != protected:
            doomed = path.with_name(TEMPORARY_PREFIX + path.name)
            path.rename(doomed)  # first out of sight: half a checkpoint must never stand under its name
            shutil.rmtree(doomed)


def resolve(name: str) -> Path:
    """Return the verified checkpoint directory that CKPT names: itself, RUN (its best) or RUN@last.

    Raises:
        CheckpointError: when there is none, or it is damaged.
    """
    run, _, which = name.rpartition("@") if "@" in Path(name).name else (name, "", "best")
    if which not in ("best", "last"):
        raise CheckpointError(Path(name), f"@{which} names no checkpoint; it is @best or @last")
    path = Path(run)
    if not path.exists():
        raise CheckpointError(path, "no such file or directory")
    if checkpoints(path):
        found = best(path) if which == "best" else last(path)
        if found is None:
            raise CheckpointError(path, "every checkpoint of this run is damaged")
        return found
    if not (path / MANIFEST).exists():
        raise CheckpointError(path, f"neither a checkpoint (no {MANIFEST}) nor a run directory that holds one")
    verify(path)
    return path
