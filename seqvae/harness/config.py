"""Configuration: the one door from names to objects, and what assembles a training or a trained VAE from them."""

import inspect
import logging
import os
import platform
import sys
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import hydra
import hydra._internal.hydra
import torch
from filelock import FileLock, Timeout
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from torch.nn.modules.module import register_module_parameter_registration_hook
from yaml import YAMLError

import seqvae
from seqvae import data, models, objectives, priors, schedules
from seqvae.data.batching import BatchOrder, loader
from seqvae.data.codec import Codec
from seqvae.data.dataset import WindowDataset, read_manifest
from seqvae.harness import checkpoint, conf_dir
from seqvae.harness.checkpoint import CheckpointError
from seqvae.harness.comparison import flat, newest_config
from seqvae.harness.engine import Engine
from seqvae.harness.options import trainer_options
from seqvae.harness.signals import Stopped
from seqvae.harness.sweep import Outcome, Outcomes, job_dir, table
from seqvae.harness.trainer import Trainer, TrainingStep
from seqvae.vae import VAE

log = logging.getLogger(__name__)

FAILURES = (HydraException, OmegaConfBaseException, YAMLError, ValueError, OSError)
"""What a user can cause: one line, no traceback."""

LOGGING: dict[str, Any] = {"level": logging.INFO, "format": "%(message)s"}  # to stderr

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

CHANGEABLE = (
    *(
        f"trainer.{name}"
        for name in ("max_steps", "max_minutes", "valid_every", "save_every", "log_every", "keep_last")
    ),
    *(f"trainer.{name}" for name in ("clip_norm", "patience", "skip_nonfinite", "devices", "timeout_minutes")),
    *(f"trainer.{name}" for name in ("compile", "deterministic", "profile")),
    "optimizer.lr",
    "data.root",
    "data.workers",
)
"""The keys that may differ when a run goes on: none of them moves its position or changes what its weights mean."""

ITS_OWN = ("run_dir", "resume", "init_from", "init_parts")
"""The keys that say which run it is and how it begins: they are no part of what is compared."""


def build(node: Any, **runtime: Any) -> Any:
    """Return what a node names: REGISTRY[node["_target_"]] called with the node's arguments and the runtime ones.

    Arguments that are nodes themselves are built first.

    Raises:
        ValueError: for a name outside the registry, an argument the builder does not have or lacks, or a value it
            refuses; the message says which.
    """
    parameters, target = _arguments_of(node), node["_target_"]
    arguments = {name: _build_argument(value) for name, value in node.items() if name != "_target_"}
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
        return REGISTRY[target](**arguments, **runtime)
    except (ArithmeticError, AttributeError, MemoryError, TypeError) as error:  # a value of a kind it never thought of
        raise ValueError(f"{target} cannot be built of these values ({error})") from error


def _arguments_of(node: Any) -> Mapping[str, inspect.Parameter]:
    """Return what the builder that a node names takes. Raises ValueError where it names none."""
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise ValueError(f"expected a mapping with a _target_, got {node!r}")
    target = node["_target_"]
    if not isinstance(target, str) or target not in REGISTRY:
        raise ValueError(f"_target_ {target!r} cannot be built; it must be one of {', '.join(sorted(REGISTRY))}")
    return inspect.signature(REGISTRY[target]).parameters


def _build_argument(value: Any) -> Any:
    if isinstance(value, Mapping):
        return build(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_build_argument(part) for part in value]
    return value


def assemble(model: Mapping[str, Any], prior: Mapping[str, Any], codec: Codec[Any]) -> VAE:
    """Return a VAE for the codec's windows, freshly initialised; a prior gets those facts of the data that it takes."""
    encoder, decoder = build(model, **codec.spec)
    taken = _arguments_of(prior)
    facts = {name: fact for name, fact in codec.spec.items() if name in taken}
    return VAE(encoder, decoder, build(prior, latent_dim=encoder.latent_dim, **facts))


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

    Raises:
        ValueError: for what a person got wrong.
        Stopped: after a signal, when everything is saved.
    """
    run_dir, config, changes = _which_run(config)
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    options = trainer_options(plain["trainer"])
    engine = Engine(options.devices, options.precision, options.timeout_minutes, options.deterministic)
    root = Path(plain["data"]["root"]).resolve()
    manifest = read_manifest(root)
    newest = checkpoint.last(run_dir)
    if newest is not None and checkpoint.read_config(newest)["data"]["fingerprint"] != manifest["fingerprint"]:
        raise ValueError(f"{root} is not the dataset that {_shown(run_dir)} was trained on (its sha256 differs)")
    codec = data.load_codec(root / "codec").replace(**plain["data"]["view"])
    splits = {split: WindowDataset(root, split, plain["data"]["limit"]) for split in ("train", "valid")}
    for split, dataset in splits.items():
        if len(dataset) == 0:
            raise ValueError(f"{root} has no windows in its {split} split")
    batch_size = plain["data"]["batch_size"]
    torch.manual_seed(plain["seed"])
    vae = assemble(plain["model"], plain["prior"], codec)
    if newest is None and plain["init_from"] is not None:
        _warm_start(vae, plain["init_from"], plain["init_parts"])
    objective = build(plain["objective"])
    optimizer = build(plain["optimizer"], params=vae.parameters())
    learning_rate = build(plain["learning_rate"])
    engine.launch()
    order = BatchOrder(
        splits["train"].lengths, batch_size, plain["data"]["max_tokens"], plain["seed"], engine.world_size
    )
    (first,) = loader(splits["train"], codec, [[0, len(splits["train"]) - 1]], seed=0, epoch=0)
    engine.rehearse(TrainingStep(vae, objective), first.x)
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
    with _claimed(run_dir, engine):
        if engine.is_main:
            _describe(trainer, plain["experiment"], batch_size)
            _record(run_dir, config, changes)
        to_be_shown = newest is None or bool(changes)
        return trainer.fit(newest, flat(plain) if to_be_shown else None)


@contextmanager
def _claimed(run_dir: Path, engine: Engine) -> Iterator[None]:
    """Hold a run directory for the main process, swept and with its log open; every process waits for it.

    Raises:
        ValueError: in every process, when another training holds it.
    """
    problem: str | None = None
    lock = FileLock(run_dir / ".lock")
    log_file: logging.FileHandler | None = None
    if engine.is_main:
        run_dir.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            problem = f"run directory {_shown(run_dir)} is being trained in by another process"
        else:
            log_file = _RunLog(run_dir / "train.log", encoding="utf-8")
            log_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            logging.getLogger().addHandler(log_file)
            checkpoint.sweep(run_dir / "checkpoints")
    problem = engine.broadcast(problem)
    if problem:
        raise ValueError(problem)
    try:
        yield
    finally:
        if log_file is not None:
            logging.getLogger().removeHandler(log_file)
            log_file.close()
        lock.release()


def _describe(trainer: Trainer, experiment: str, batch_size: int) -> None:
    log.info(
        "%s: %s parameters; %s train and %s valid windows; run directory %s",
        experiment,
        f"{sum(parameter.numel() for parameter in trainer.vae.parameters()):,}",
        f"{len(trainer.train):,}",
        f"{len(trainer.valid):,}",
        _shown(trainer.run_dir),
    )
    if len(trainer.train) < batch_size:
        log.warning(
            "the train split has %d windows, fewer than data.batch_size=%d: batches are smaller",
            len(trainer.train),
            batch_size,
        )


def _shown(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _warm_start(vae: VAE, name: str, parts: list[str] | None) -> None:
    """Load the parts of a VAE from a checkpoint: all of it, or those named.

    Raises:
        ValueError: for a part that there is not, or one that does not fit.
    """
    known = [part for part, _ in vae.named_children()]
    for part in parts or []:
        if part not in known:
            raise ValueError(f"init_parts must be of {', '.join(known)}, got {part!r}")
    path = checkpoint.resolve(name)
    chosen = parts or known

    def of_parts(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {key: tensor for key, tensor in tensors.items() if key.split(".")[0] in chosen}

    there, here = of_parts(checkpoint.read_tensors(path, "model.safetensors")), of_parts(vae.state_dict())
    for key in sorted(there.keys() | here.keys()):
        shapes = [list(tensors[key].shape) if key in tensors else "missing" for tensors in (there, here)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"init_from={name} does not fit: {key} is {shapes[0]} there and {shapes[1]} here; "
                "init_parts=[...] takes only some parts"
            )
    vae.load_state_dict(there, strict=False)
    log.info("begins with %s of %s (%d tensors)", ", ".join(chosen), path, len(there))


class _RunLog(logging.FileHandler):
    """A log file that cannot be written ends the training as any other file does, instead of printing a traceback."""

    def handleError(self, record: logging.LogRecord) -> None:
        raise  # it is called while the error is handled


Changes = dict[str, tuple[Any, Any]]


def _which_run(config: DictConfig) -> tuple[Path, DictConfig, Changes | None]:
    """Return the run directory, its configuration, and what of that is new: None for a run that begins.

    Raises:
        ValueError: when the run directory is in use and nothing says to go on, or for a change that no run survives.
    """
    run_dir = Path(str(config.run_dir)).resolve()
    if config.resume not in (None, "auto"):
        run_dir = Path(str(config.resume)).resolve()
        if not (run_dir / "config.yaml").is_file():
            raise ValueError(f"resume={config.resume} is no run directory (no config.yaml); or use resume=auto")
        config = _overridden(_newest_config(run_dir))
    elif not (run_dir / "config.yaml").exists():
        return run_dir, config, None
    elif config.resume != "auto":
        raise ValueError(
            f"run directory {_shown(run_dir)} is already in use; go on with resume=auto or choose another run_dir="
        )
    before, after = (flat(OmegaConf.to_container(node, resolve=True)) for node in (_newest_config(run_dir), config))
    changes = {
        key: (before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and key not in ITS_OWN
    }
    refused = {key: change for key, change in changes.items() if key not in CHANGEABLE}
    if refused:
        raise ValueError(
            f"a run that goes on cannot change {_told(refused)}; choose another run_dir= (what may change: "
            f"{', '.join(CHANGEABLE)})"
        )
    return run_dir, config, changes


def _newest_config(run_dir: Path) -> DictConfig:
    """Return the configuration that a run went on with last."""
    config = OmegaConf.load(newest_config(run_dir))
    assert isinstance(config, DictConfig)
    return config


def _overridden(saved: DictConfig) -> DictConfig:
    """Return a run's own configuration with the command line's values in it.

    Raises:
        ValueError: for what is no single value, such as model=lstm, which would choose a whole part anew.
    """
    for override in OverridesParser.create().parse_overrides(list(HydraConfig.get().overrides.task)):
        key = override.key_or_group
        if key in ITS_OWN:
            continue
        top = key.split(".")[0]
        is_value = top in saved and not isinstance(OmegaConf.select(saved, key), DictConfig)
        if override.is_delete() or override.is_sweep_override() or override.package is not None or not is_value:
            raise ValueError(
                f"resume=RUN goes on with the run's own configuration and cannot take {override.input_line}; "
                f"only values may change: {', '.join(CHANGEABLE)}"
            )
        OmegaConf.update(saved, key, override.value(), force_add=True)
    return saved


def _told(changes: Changes) -> str:
    return ", ".join(f"{key}: {before!r} -> {after!r}" for key, (before, after) in list(changes.items())[:5])


def _record(run_dir: Path, config: DictConfig, changes: Changes | None) -> None:
    """Keep the configuration: of the start as config.yaml, of every change since as config.resume-N.yaml."""
    name = "config.yaml"
    if changes is not None:
        if not changes:
            return
        log.info("goes on with %s", _told(changes))
        name = f"config.resume-{len(list(run_dir.glob('config.resume-*.yaml'))) + 1}.yaml"
    temporary = run_dir / f".{name}"
    OmegaConf.save(config, temporary, resolve=True)
    temporary.replace(run_dir / name)


def _constant(arguments: Sequence[str]) -> set[str]:
    """Return the overrides of a command line that sweep over nothing, as Hydra writes them."""
    parser, constant = OverridesParser.create(), set()
    for argument in arguments:
        try:
            (override,) = parser.parse_overrides([argument])
        except HydraException:  # an option
            continue
        if not override.is_sweep_override():
            constant.add(f"{override.get_key_element()}={override.get_value_element_as_str()}")
    return constant


def _leave_out_leftovers(config: DictConfig) -> None:
    """Leave out what an experiment says of a part that the command line exchanged for one without such an argument.

    `experiment=fashion objective=autoencoder` is not to fail at the experiment's beta. What a person typed stays.
    """
    overrides = OverridesParser.create().parse_overrides(list(HydraConfig.get().overrides.task))
    typed = [override.key_or_group for override in overrides]

    def prune(node: Any, path: str) -> None:
        if not isinstance(node, DictConfig) or node.get("_target_") not in REGISTRY:
            return
        known = _arguments_of(node)
        for name in [str(name) for name in node if name != "_target_"]:
            key = f"{path}.{name}"
            if name in known:
                prune(OmegaConf.select(node, name), key)
            elif not any(f"{other}.".startswith(f"{key}.") for other in typed):
                log.info("%s is left out: %s has no such argument", key, node["_target_"])
                del node[name]

    with open_dict(config):
        for override in overrides:
            if (conf_dir() / override.key_or_group).is_dir():
                path = override.package or override.key_or_group
                prune(OmegaConf.select(config, path), path)


def _run_job(config: DictConfig, constant: Collection[str]) -> Outcome:
    """Train one job of a sweep: whatever becomes of it, the next one may be right."""
    job, error = HydraConfig.get(), None
    run_dir = job_dir(str(config.run_dir), job.overrides.task, constant)
    try:
        if config.resume not in (None, "auto"):
            raise ValueError(f"resume={config.resume} goes on with one run; the jobs of a sweep go on with resume=auto")
        if config.trainer.devices not in (1, "auto"):
            raise ValueError(f"a job of a sweep is one process, got trainer.devices={config.trainer.devices}")
        config.trainer.devices, config.run_dir = 1, run_dir
        train(config)
    except Stopped:  # so is the whole sweep
        raise
    except FAILURES as failure:
        error = " ".join(str(failure).split())
    except Exception as failure:  # a bug, or a model too large for the memory
        log.exception("%s", run_dir)
        error = " ".join(f"{type(failure).__name__}: {failure}".split())
    return Outcome(job.job.num, run_dir, error)


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
    logging.basicConfig(**LOGGING)
    excepthook, threading.excepthook = threading.excepthook, _quiet_thread
    failures: list[str] = []
    constant = _constant(sys.argv[1:])
    with TemporaryDirectory(prefix="seqvae-sweep-") as folder:
        outcomes = Outcomes(Path(folder))

        def task(config: DictConfig) -> None:  # in a sweep it may run in another process, and then with a copy of this
            logging.basicConfig(**LOGGING)
            sys.argv = command or sys.argv
            _leave_out_leftovers(config)
            try:
                if HydraConfig.get().mode == RunMode.MULTIRUN:
                    outcomes.add(_run_job(config, constant))
                else:
                    train(config)
            except Stopped as stop:
                log.warning("%s", stop)
                raise SystemExit(stop.exit_code) from None  # any other exception: Hydra would start the next job
            except FAILURES as error:
                failures.append(str(error))  # Hydra would print a line of its own on the way

        run = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")(task)
        hydra._internal.hydra.ConfigLoaderImpl = _Loader  # type: ignore[attr-defined]
        try:
            if any(argument.startswith("--e") for argument in sys.argv[1:]):
                raise ValueError("--experimental-rerun is refused: it would unpickle a file")
            run()
            jobs = outcomes.read()
            if jobs:
                print(table(jobs))
            failures += [f"{job.run_dir}: {job.error}" for job in jobs if job.error is not None]
        except FAILURES as error:
            failures.append(str(error))
        except RecursionError:
            failures.append("the configuration is nested too deeply")
        except SystemExit as end:
            return int(end.code or 0)
        finally:
            threading.excepthook = excepthook
    for failure in failures:
        print(f"seqvae train: {' '.join(failure.split())}", file=sys.stderr)
    return 2 if failures else 0
