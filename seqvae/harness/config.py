"""Configuration: the one door from names to objects, and what assembles a training or a trained VAE from them."""

import inspect
import logging
import os
import platform
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import hydra
import hydra._internal.hydra
import torch
from filelock import FileLock, Timeout
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch.nn.modules.module import register_module_parameter_registration_hook
from yaml import YAMLError

import seqvae
from seqvae import data, models, objectives, priors, schedules
from seqvae.data.batching import BatchOrder
from seqvae.data.codec import Codec
from seqvae.data.dataset import WindowDataset, read_manifest
from seqvae.harness import checkpoint, conf_dir
from seqvae.harness.checkpoint import CheckpointError
from seqvae.harness.engine import Engine
from seqvae.harness.trainer import Trainer, trainer_options
from seqvae.vae import VAE

log = logging.getLogger(__name__)

OPTIMIZERS = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)


def _public(module: ModuleType) -> dict[str, Any]:
    """Return a module's public builders by their full names: its own functions and classes, nothing it imports."""
    builders = {name: getattr(module, name) for name in module.__all__}
    for name, builder in builders.items():
        home = getattr(builder, "__module__", "")
        assert home == module.__name__ or home.startswith(f"{module.__name__}."), (
            f"{module.__name__}: {name} is not its own"
        )
        assert inspect.isclass(builder) or inspect.isfunction(builder), f"{module.__name__}: {name} is no builder"
    return {f"{module.__name__}.{name}": builder for name, builder in builders.items()}


REGISTRY: dict[str, Any] = {
    **{f"torch.optim.{optimizer.__name__}": optimizer for optimizer in OPTIMIZERS},
    **{
        name: builder
        for module in (data, models, objectives, priors, schedules)
        for name, builder in _public(module).items()
    },
}
"""Every name that a configuration or a checkpoint may build. Nothing is ever imported by a name from outside."""

CHANGEABLE = ("trainer.", "optimizer.lr", "data.root", "data.workers", "data.max_tokens", "run_dir", "resume", "debug")
"""The keys, or their beginnings, that may differ when a run goes on."""


def build(node: Any, **runtime: Any) -> Any:
    """Return what a node names: REGISTRY[node["_target_"]] called with the node's arguments and the runtime ones.

    Arguments that are nodes themselves are built first.

    Raises:
        ValueError: for a name outside the registry, an argument the builder does not have or lacks, or a value it
            refuses; the message says which.
    """
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise ValueError(f"expected a mapping with a _target_, got {node!r}")
    target = node["_target_"]
    if not isinstance(target, str) or target not in REGISTRY:
        raise ValueError(f"_target_ {target!r} cannot be built; it must be one of {', '.join(sorted(REGISTRY))}")
    builder = REGISTRY[target]
    arguments = {name: _build_argument(value) for name, value in node.items() if name != "_target_"}
    parameters = inspect.signature(builder).parameters
    for name in arguments:
        if name not in parameters or name.startswith("_"):
            raise ValueError(f"{target} has no argument {name!r}; it has: {', '.join(parameters)}")
        if name in runtime:
            raise ValueError(f"{target}: {name} is given by the data or by another part, not by the configuration")
    for name in runtime:
        if name not in parameters:
            raise ValueError(f"{target} does not fit this data: it takes no {name}")
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in arguments and name not in runtime:
            raise ValueError(f"{target} needs {name}, which neither the configuration nor the data gives")
    try:
        return builder(**arguments, **runtime)
    except (ArithmeticError, AttributeError, MemoryError, TypeError) as error:  # a value of a kind it never thought of
        raise ValueError(f"{target} cannot be built of these values ({error})") from error


def _build_argument(value: Any) -> Any:
    if isinstance(value, Mapping):
        return build(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_build_argument(part) for part in value]
    return value


def assemble(model: Mapping[str, Any], prior: Mapping[str, Any], codec: Codec[Any]) -> VAE:
    """Return a VAE for the codec's windows, freshly initialised."""
    encoder, decoder = build(model, **codec.spec)
    return VAE(encoder, decoder, build(prior, latent_dim=encoder.latent_dim))


MOST_LENGTH = 1 << 20
"""Tokens of a window that a checkpoint may ask for: no weight tells how many, and sampling too many would not end."""


@dataclass(frozen=True)
class Trained:
    """A trained VAE, what its tensors mean, and what its checkpoint says of it."""

    vae: VAE
    codec: Codec[Any]
    config: dict[str, Any]
    path: Path


def load(name: str | Path, device: str | torch.device = "cpu") -> Trained:
    """Return the VAE and the codec of a checkpoint: a checkpoint directory, RUN (its best) or RUN@last.

    Raises:
        CheckpointError: when it is missing, damaged or no checkpoint of ours.
        ValueError: when there is no such device.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either, of several lines
        raise ValueError(f"device {str(device)!r} cannot be used ({str(error).splitlines()[0]})") from None
    path = checkpoint.resolve(str(name))
    config = checkpoint.read_config(path)
    weights = checkpoint.read_tensors(path, checkpoint.WEIGHTS)
    try:
        _check_description(config)
        codec = data.load_codec(path)
        if codec.spec.get("max_length", 0) > MOST_LENGTH:
            raise ValueError(f"windows of {codec.spec['max_length']} tokens are more than {MOST_LENGTH:,}")
        with torch.device("meta"), _parameters(2 * len(weights)):  # shapes only: a size costs nothing yet
            expected = assemble(config["model"], config["prior"], codec).state_dict()
        checkpoint.check_weights(path, weights, expected)
        vae = assemble(config["model"], config["prior"], codec)
        vae.load_state_dict(weights)
    except CheckpointError:
        raise
    except Exception as error:  # what a hostile file makes a builder raise is no finite list
        raise CheckpointError(path, " ".join(str(error).split()) or type(error).__name__) from error
    return Trained(vae.eval().to(device), codec, config, path)


def _check_description(config: Mapping[str, Any]) -> None:
    """Raise ValueError unless a checkpoint's config.json says what its users rely on."""
    for name in ("model", "prior", "data"):
        if not isinstance(config.get(name), dict):
            raise ValueError(f"{name} in {checkpoint.CONFIG} must be an object, got {config.get(name)!r}")
    for name in ("root", "fingerprint"):
        value = config["data"].get(name)
        if not isinstance(value, str):
            raise ValueError(f"data.{name} in {checkpoint.CONFIG} must be a string, got {value!r}")


@contextmanager
def _parameters(most: int) -> Iterator[None]:
    """Let at most so many parameters be made: a hostile number of layers ends here and not when memory does."""
    made = 0

    def count(module: Any, name: str, parameter: Any) -> None:
        nonlocal made
        made += 1
        if made > most:
            raise ValueError(f"the model of {checkpoint.CONFIG} has more parameters than {checkpoint.WEIGHTS}")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def train(config: DictConfig) -> dict[str, float]:
    """Train as the configuration says and return the last validation's metrics.

    Everything that can be refused is refused before the run directory is touched.
    """
    run_dir = Path(str(config.run_dir)).resolve()
    if config.resume not in (None, "auto"):
        run_dir = Path(str(config.resume)).resolve()
        if not (run_dir / "config.yaml").is_file():
            raise ValueError(f"resume={config.resume} is no run directory (no config.yaml); or use resume=auto")
        config = _continued(run_dir)
    elif (run_dir / "config.yaml").exists():
        if config.resume != "auto":
            raise ValueError(
                f"run directory {_shown(run_dir)} is already in use; go on with resume=auto or choose another run_dir="
            )
        _refuse_changes(OmegaConf.load(run_dir / "config.yaml"), config)
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    options = trainer_options(plain["trainer"])
    engine = Engine(options.devices, options.precision)
    root = Path(plain["data"]["root"]).resolve()
    manifest = read_manifest(root)
    codec = data.load_codec(root / "codec").replace(**plain["data"]["view"])
    splits = {split: WindowDataset(root, split, plain["data"]["limit"]) for split in ("train", "valid")}
    for split, dataset in splits.items():
        if len(dataset) == 0:
            raise ValueError(f"{root} has no windows in its {split} split")
    batch_size = plain["data"]["batch_size"]
    torch.manual_seed(plain["seed"])
    vae = assemble(plain["model"], plain["prior"], codec)
    objective = build(plain["objective"])
    optimizer = build(plain["optimizer"], params=vae.parameters())
    learning_rate = build(plain["learning_rate"])
    engine.launch()
    order = BatchOrder(
        splits["train"].lengths, batch_size, plain["data"]["max_tokens"], plain["seed"], engine.world_size
    )
    lock = FileLock(run_dir / ".lock")
    if engine.is_main:
        run_dir.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(f"run directory {_shown(run_dir)} is being trained in by another process") from None
        _log_to(run_dir / "train.log")
        checkpoint.sweep(run_dir / "checkpoints")
        if not (run_dir / "config.yaml").exists():
            OmegaConf.save(config, run_dir / "config.yaml", resolve=True)
        parameters = sum(parameter.numel() for parameter in vae.parameters())
        log.info(
            "%s: %s parameters; %s train and %s valid windows; run directory %s",
            plain["experiment"],
            f"{parameters:,}",
            f"{len(splits['train']):,}",
            f"{len(splits['valid']):,}",
            _shown(run_dir),
        )
        if len(splits["train"]) < batch_size:
            log.warning(
                "the train split has %d windows, fewer than data.batch_size=%d: batches are smaller",
                len(splits["train"]),
                batch_size,
            )
    engine.barrier()
    trainer = Trainer(
        engine=engine,
        vae=vae,
        codec=codec,
        objective=objective,
        optimizer=optimizer,
        learning_rate=learning_rate,
        train=splits["train"],
        valid=splits["valid"],
        order=order,
        options=options,
        run_dir=run_dir,
        config={
            "versions": {"seqvae": seqvae.__version__, "torch": torch.__version__, "python": platform.python_version()},
            "experiment": plain["experiment"],
            "model": plain["model"],
            "prior": plain["prior"],
            "objective": plain["objective"],
            "data": {"root": str(root), "kind": manifest["kind"], "fingerprint": manifest["fingerprint"]},
        },
        seed=plain["seed"],
        workers=plain["data"]["workers"],
        fresh_views=plain["data"]["fresh_views"],
    )
    try:
        return trainer.fit(checkpoint.last(run_dir))
    finally:
        lock.release()


def _shown(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


class _RunLog(logging.FileHandler):
    """A log file that cannot be written ends the training as any other file does, instead of printing a traceback."""

    def handleError(self, record: logging.LogRecord) -> None:
        raise  # it is called while the error is handled


def _log_to(path: Path) -> None:
    handler = _RunLog(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)


def _changeable(key: str) -> bool:
    return key.startswith(CHANGEABLE)


def _continued(run_dir: Path) -> DictConfig:
    """Return a run's own configuration with the command line's changes to it, as far as they may change."""
    saved = OmegaConf.load(run_dir / "config.yaml")
    assert isinstance(saved, DictConfig)
    overrides = [override for override in HydraConfig.get().overrides.task if not override.startswith("resume=")]
    refused = [override for override in overrides if not _changeable(override.lstrip("+~"))]
    if refused:
        raise ValueError(f"a run that goes on cannot change {', '.join(refused)}; only {', '.join(CHANGEABLE)}*")
    merged = OmegaConf.merge(saved, OmegaConf.from_dotlist(overrides))
    assert isinstance(merged, DictConfig)
    return merged


def _refuse_changes(saved: Any, config: DictConfig) -> None:
    before, after = (_flat(OmegaConf.to_container(node, resolve=True)) for node in (saved, config))
    changed = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
    refused = [key for key in changed if not _changeable(key)]
    if refused:
        differences = ", ".join(f"{key}: {before.get(key)!r} -> {after.get(key)!r}" for key in refused[:5])
        raise ValueError(f"the run was started with another configuration ({differences}); choose another run_dir=")


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix[:-1]: node}
    return {key: value for name, child in node.items() for key, value in _flat(child, f"{prefix}{name}.").items()}


def _quiet_thread(failed: threading.ExceptHookArgs) -> None:
    """Say nothing of a file that a thread could not write: TensorBoard's hands its error on to the training."""
    if not isinstance(failed.exc_value, OSError):
        threading.__excepthook__(failed)


class _Loader(ConfigLoaderImpl):
    """Hydra's loader of configurations, except that none can make Hydra itself build something by its name.

    It would do so before `train` sees the configuration: callbacks and the handlers of a log are such names, and an
    environment variable can be one to the processes that are started.
    """

    def load_configuration(self, *args: Any, **kwargs: Any) -> DictConfig:
        config = super().load_configuration(*args, **kwargs)
        silent = {"version": 1, "root": None, "disable_existing_loggers": False}
        allowed = {"callbacks": {}, "job.env_set": {}, "job_logging": silent, "hydra_logging": silent}
        for key, value in allowed.items():
            if OmegaConf.select(config.hydra, key) != value:
                raise ValueError(f"hydra.{key} cannot be set: Hydra would do what it says without asking seqvae")
        for key in ("launcher._target_", "sweeper._target_"):
            plugin = OmegaConf.select(config.hydra, key)
            if not str(plugin).startswith(("hydra._internal.core_plugins.", "hydra_plugins.")):
                raise ValueError(f"hydra.{key} must be one of Hydra's plugins, got {plugin!r}")
        return config


def main(command: list[str] | None = None) -> int:
    """Run `train` under Hydra on sys.argv; return the exit code. What a user got wrong is one line on stderr.

    `command` is the command line that starts other ranks, where sys.argv is not it.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints and exits by itself
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)

    failures: list[Exception] = []

    def task(config: DictConfig) -> None:
        sys.argv = command or sys.argv
        try:
            train(config)
        except (OmegaConfBaseException, YAMLError, ValueError, OSError) as error:
            failures.append(error)  # Hydra would print a line of its own on the way

    run = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")(task)
    hydra._internal.hydra.ConfigLoaderImpl = _Loader  # type: ignore[attr-defined]
    excepthook, threading.excepthook = threading.excepthook, _quiet_thread
    try:
        if any(argument.startswith("--e") for argument in sys.argv[1:]):
            raise ValueError("--experimental-rerun is refused: it would unpickle a file")
        run()
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError, OSError) as error:
        failures.append(error)
    except RecursionError:
        failures.append(ValueError("the configuration is nested too deeply"))
    finally:
        threading.excepthook = excepthook
    for failure in failures:
        print(f"seqvae train: {' '.join(str(failure).split())}", file=sys.stderr)
    return 2 if failures else 0
