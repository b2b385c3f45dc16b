"""Checkpoints: directories of safetensors and JSON with a manifest, written whole or not at all, verified when read.

checkpoints/step-000001000/
    model.safetensors      the weights
    config.json            what builds the model again: format, builder names and arguments, versions, metrics
    codec.json ...         the codec's files
    training.safetensors   optimizer and random number generators
    training.json          position and best score
    aggregate.safetensors  the mixture fitted to the aggregate posterior; only of a training's best, when it has ended
    MANIFEST.json          the sha256 of each: exactly these files make the checkpoint
"""

import hashlib
import json
import logging
import math
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from seqvae.data.codec import CODEC_FILE, MOST_JSON, Codec, parse_json
from seqvae.data.dataset import sha256

log = logging.getLogger(__name__)

FORMAT = 1
MANIFEST = "MANIFEST.json"
WEIGHTS, CONFIG = "model.safetensors", "config.json"
TRAINING_TENSORS, TRAINING_VALUES = "training.safetensors", "training.json"
AGGREGATE = "aggregate.safetensors"
REQUIRED = frozenset({WEIGHTS, CONFIG, CODEC_FILE, TRAINING_TENSORS, TRAINING_VALUES})
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
    target = root / f"step-{step:09d}"
    with _rewriting(target) as temporary:
        save_file(_detached(weights), temporary / WEIGHTS)
        _write_json(temporary / CONFIG, {"format": FORMAT, **config})
        codec.save(temporary)
        save_file(_detached(training.tensors), temporary / TRAINING_TENSORS)
        _write_json(temporary / TRAINING_VALUES, training.values)
    return target


def add_tensors(path: Path, name: str, tensors: dict[str, Tensor]) -> None:
    """Add a safetensors file to a sound checkpoint, which stands whole under its name before and after."""
    files = _manifest(path)
    with _rewriting(path) as temporary:
        for one in files:
            shutil.copyfile(path / one, temporary / one)
        save_file(_detached(tensors), temporary / name)


@contextmanager
def _rewriting(target: Path) -> Iterator[Path]:
    """Yield an empty directory; with the files that it then holds it becomes the checkpoint, in one step."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # same filesystem: the rename is atomic
        temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=target.parent))
        try:
            yield temporary
            files = sorted(path for path in temporary.iterdir() if path.is_file())
            _write_json(temporary / MANIFEST, {path.name: sha256(path) for path in files})
            for path in (*files, temporary / MANIFEST, temporary):
                _fsync(path)
            temporary.chmod(0o755)
            _put(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except (OSError, SafetensorError) as error:  # a full disk is the one or the other, by the file that meets it
        raise OSError(f"checkpoint {target} cannot be written ({error}); those before it stand") from error


def _put(temporary: Path, target: Path) -> None:
    """Give a checkpoint its name. Killed anywhere in here, one stands under a name that is read: the old or the new."""
    if target.exists():
        target.rename(target.with_name(f"{target.name}.{time.time_ns()}"))
    temporary.rename(target)
    _fsync(target.parent)
    for replaced in target.parent.glob(f"{target.name}.*"):
        _discard(replaced)


def _discard(path: Path) -> None:
    doomed = path.with_name(TEMPORARY_PREFIX + path.name)
    path.rename(doomed)  # first out of sight: half a checkpoint must never stand under its name
    shutil.rmtree(doomed)


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
    """Raise CheckpointError unless the checkpoint is whole: every file what was written, none missing, none added."""
    manifest = _manifest(path)
    for name in sorted(manifest):
        try:
            digest = sha256(path / name)
        except OSError as error:
            raise CheckpointError(path, f"damaged: {name} cannot be read ({error})") from None
        if digest != manifest[name]:
            raise CheckpointError(path, f"damaged: {name} is not what was written (its sha256 differs)")


def _manifest(path: Path) -> dict[str, Any]:
    """Return the sha256 of each file of a checkpoint, by name; they are the regular files that the directory holds."""
    if not path.is_dir():
        raise CheckpointError(path, "no such directory")
    try:
        present = {file.name: file.lstat().st_mode for file in path.iterdir()}
        if not stat.S_ISREG(present.get(MANIFEST, stat.S_IFREG)):
            raise ValueError("no regular file")
        manifest = parse_json(_read(path / MANIFEST))
    except (OSError, ValueError) as error:
        raise CheckpointError(path, f"damaged: {MANIFEST} cannot be read ({error})") from None
    for name in sorted(REQUIRED | manifest.keys()):
        if name not in manifest:
            raise CheckpointError(path, f"damaged: {MANIFEST} does not list {name}")
        if name not in present:  # a name with a path in it never is
            raise CheckpointError(path, f"damaged: {name!r} is missing")
        if not stat.S_ISREG(present[name]):  # a link may lead anywhere, a pipe never ends
            raise CheckpointError(path, f"damaged: {name} is no regular file")
    for name in sorted(present.keys() - manifest.keys() - {MANIFEST}):
        if not name.startswith("."):  # file managers leave such files; nothing here reads one
            raise CheckpointError(path, f"damaged: it holds {name!r}, which {MANIFEST} does not list")
    return manifest


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MOST_JSON + 1)


def _read_json(path: Path, name: str) -> dict[str, Any]:
    """Return a checkpoint's JSON file; the very bytes that are read are verified."""
    digest = _manifest(path)[name]
    try:
        content = _read(path / name)
        if hashlib.sha256(content).hexdigest() != digest and len(content) <= MOST_JSON:
            raise ValueError("it is not what was written, its sha256 differs")
        return parse_json(content)
    except (OSError, ValueError) as error:
        raise CheckpointError(path, f"damaged: {name} cannot be read ({error})") from None


def read_config(path: Path) -> dict[str, Any]:
    """Return a checkpoint's config.json. Raises CheckpointError for one that this version cannot read."""
    config = _read_json(path, CONFIG)
    number, score = config.get("format"), config.get("score")
    if not _is_int(number):
        raise CheckpointError(path, f"damaged: format in {CONFIG} must be an int, got {number!r}")
    if number > FORMAT:
        raise CheckpointError(path, f"has format {number}, this seqvae reads up to {FORMAT}")
    if score is not None and not _is_number(score):
        raise CheckpointError(path, f"damaged: score in {CONFIG} must be a number or null, got {score!r}")
    return config


def read_tensors(path: Path, name: str) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint's safetensors file. Raises CheckpointError when it is none."""
    try:
        return load_file(path / name)
    except Exception as error:  # a hostile header has more ways to fail than SafetensorError
        raise CheckpointError(path, f"damaged: {name} cannot be read ({error})") from None


def check_weights(path: Path, weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError unless a checkpoint's weights are finite and of the names, shapes and kinds expected."""
    for name in sorted(expected.keys() ^ weights.keys()):
        what = "lacks" if name in expected else "holds"
        raise CheckpointError(path, f"{WEIGHTS} {what} {name!r}, against the model of {CONFIG}")
    for name, tensor in weights.items():
        found, wanted = (f"{list(one.shape)} {_kind(one)}" for one in (tensor, expected[name]))
        if found != wanted:
            raise CheckpointError(path, f"{name} in {WEIGHTS} is {found}, the model of {CONFIG} needs {wanted}")
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(path, f"{name} in {WEIGHTS} is not finite")


def _kind(tensor: Tensor) -> str:
    """Return what may be converted without a loss of meaning: any floating dtype into another, else none."""
    return "floating" if tensor.is_floating_point() else str(tensor.dtype)


def read_training(path: Path) -> TrainingState:
    """Return what a training goes on from. Raises CheckpointError when it is none."""
    values = _read_json(path, TRAINING_VALUES)
    for name in ("step", "schedule_steps", "world_size"):
        value = values.get(name, 1)
        if not _is_int(value) or value < 1:
            raise CheckpointError(path, f"damaged: {name} in {TRAINING_VALUES} must be a positive int, got {value!r}")
    best_score = values.get("best_score")
    if best_score is not None and not _is_number(best_score):
        raise CheckpointError(
            path, f"damaged: best_score in {TRAINING_VALUES} must be a number or null, got {best_score!r}"
        )
    return TrainingState(read_tensors(path, TRAINING_TENSORS), values)


def _is_int(value: Any) -> TypeGuard[int]:
    """Return whether a JSON value is an int of a size that floating-point numbers can hold exactly."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or _is_int(value)


def checkpoints(run_dir: Path) -> list[Path]:
    """Return a run's checkpoints, the oldest first, whether they are sound or not."""
    # one that a killed save was replacing has a suffix, and comes before what replaced it
    found = (run_dir / "checkpoints").glob("step-*")
    return sorted(found, key=lambda path: (path.stem, path.suffix == "", path.suffix))


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
        if score is not None and math.isfinite(score):
            scored.append((score, path))
    ordered = (path for _, path in sorted(scored, reverse=True))
    return next(_sound(ordered), None) or last(run_dir)


def _sound(paths: Iterable[Path]) -> Iterator[Path]:
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
            _discard(path)


def resolve(name: str) -> Path:
    """Return the verified checkpoint directory that CKPT names: itself, RUN (its best) or RUN@last.

    Raises:
        CheckpointError: when there is none, or it is damaged.
    """
    run, which = name, "best"
    if "@" in Path(name).name and not Path(name).exists():  # a folder may be called so
        run, _, which = name.rpartition("@")
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
