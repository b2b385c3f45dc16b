"""Configuration: the one door from names to objects, and what assembles a training or a trained VAE from them."""

import inspect
import logging
import os
import platform
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hydra
import torch
from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

import seqvae
from seqvae import data, models, objectives, priors, schedules
from seqvae.data.batching import BatchOrder
from seqvae.data.codec import Codec
from seqvae.data.dataset import WindowDataset, read_manifest
from seqvae.harness import checkpoint, conf_dir
from seqvae.harness.checkpoint import CheckpointError
from seqvae.harness.comparison import flat
from seqvae.harness.engine import Engine
from seqvae.harness.sweep import Outcome, Outcomes, job_dir, table
from seqvae.harness.trainer import Trainer, trainer_options
from seqvae.vae import VAE

log = logging.getLogger(__name__)

FAILURES = (HydraException, OmegaConfBaseException, ValueError, OSError)
"""What a user can cause: one line, no traceback."""

LOGGING: dict[str, Any] = {"level": logging.INFO, "format": "%(message)s"}  # to stderr

OPTIMIZERS = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)

REGISTRY: dict[str, Any] = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (data, models, objectives, priors, schedules)
    for name in module.__all__
} | {f"torch.optim.{optimizer.__name__}": optimizer for optimizer in OPTIMIZERS}
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
    parameters, target = _parameters(node), node["_target_"]
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
    return REGISTRY[target](**arguments, **runtime)


def _parameters(node: Any) -> Mapping[str, inspect.Parameter]:
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
    taken = _parameters(prior)
    facts = {name: fact for name, fact in codec.spec.items() if name in taken}
    return VAE(encoder, decoder, build(prior, latent_dim=encoder.latent_dim, **facts))


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
    try:
        codec = data.load_codec(path)
        vae = assemble(config["model"], config["prior"], codec)
        vae.load_state_dict(checkpoint.read_tensors(path, "model.safetensors"))
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(path, " ".join(str(error).split())) from error
    return Trained(vae.eval().to(device), codec, config, path)


def train(config: DictConfig) -> dict[str, float]:
    """Train as the configuration says and return the last validation's metrics.

    Everything that can be refused is refused before the run directory is touched.
    """
    with ExitStack() as held:  # the run directory's lock and log: the next job of a sweep has its own
        return _train(config, held)


def _train(config: DictConfig, held: ExitStack) -> dict[str, float]:
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
    if engine.is_main:
        run_dir.mkdir(parents=True, exist_ok=True)
        try:
            held.enter_context(FileLock(run_dir / ".lock", timeout=0))
        except Timeout:
            raise ValueError(f"run directory {_shown(run_dir)} is being trained in by another process") from None
        held.enter_context(_logging_to(run_dir / "train.log"))
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
    return trainer.fit(checkpoint.last(run_dir))


def _shown(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


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
    before, after = (flat(OmegaConf.to_container(node, resolve=True)) for node in (saved, config))
    changed = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
    refused = [key for key in changed if not _changeable(key)]
    if refused:
        differences = ", ".join(f"{key}: {before.get(key)!r} -> {after.get(key)!r}" for key in refused[:5])
        raise ValueError(f"the run was started with another configuration ({differences}); choose another run_dir=")


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
        parameters = _parameters(node)
        for name in [str(name) for name in node if name != "_target_"]:
            key = f"{path}.{name}"
            if name in parameters:
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
    """Train one job of a sweep. Whatever becomes of it, the next one may be right: nothing is raised."""
    job, error = HydraConfig.get(), None
    run_dir = job_dir(str(config.run_dir), job.overrides.task, constant)
    try:
        if config.resume not in (None, "auto"):
            raise ValueError(f"resume={config.resume} goes on with one run; the jobs of a sweep go on with resume=auto")
        if config.trainer.devices not in (1, "auto"):
            raise ValueError(f"a job of a sweep is one process, got trainer.devices={config.trainer.devices}")
        config.trainer.devices, config.run_dir = 1, run_dir
        train(config)
    except FAILURES as failure:
        error = " ".join(str(failure).split())
    except Exception as failure:  # a bug, or a model too large for the memory
        log.exception("%s", run_dir)
        error = " ".join(f"{type(failure).__name__}: {failure}".split())
    return Outcome(job.job.num, run_dir, error)


def main(command: list[str] | None = None) -> int:
    """Run `train` under Hydra on sys.argv; return the exit code. What a user got wrong is one line on stderr.

    `command` is the command line that starts other ranks, where sys.argv is not it.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints and exits by itself
    logging.basicConfig(**LOGGING)
    failures: list[str] = []
    constant = _constant(sys.argv[1:])
    with TemporaryDirectory(prefix="seqvae-sweep-") as folder:
        outcomes = Outcomes(Path(folder))

        def task(config: DictConfig) -> None:  # in a sweep it may run in another process, and then with a copy of this
            logging.basicConfig(**LOGGING)
            sys.argv = command or sys.argv
            _leave_out_leftovers(config)
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                outcomes.add(_run_job(config, constant))
                return
            try:
                train(config)
            except FAILURES as error:
                failures.append(str(error))  # Hydra would print a line of its own on the way

        run = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")(task)
        try:
            run()
            jobs = outcomes.read()
            if jobs:
                print(table(jobs))
            failures += [f"{job.run_dir}: {job.error}" for job in jobs if job.error is not None]
        except FAILURES as error:
            failures.append(str(error))
    for failure in failures:
        print(f"seqvae train: {' '.join(failure.split())}", file=sys.stderr)
    return 2 if failures else 0
