"""A run: which directory and configuration a training has, what may change when it goes on, and the training itself."""

import logging
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

import seqvae
from seqvae import data
from seqvae.data.batching import BatchOrder, loader
from seqvae.data.codec import Codec
from seqvae.data.dataset import WindowDataset, read_manifest
from seqvae.harness import checkpoint, conf_dir
from seqvae.harness.aggregate import keep_aggregate
from seqvae.harness.aggressive import check_aggressive
from seqvae.harness.checkpoint import CheckpointError
from seqvae.harness.comparison import flat, newest_config
from seqvae.harness.config import assemble, build
from seqvae.harness.engine import Engine
from seqvae.harness.options import TrainerOptions, trainer_options
from seqvae.harness.scoring import open_split
from seqvae.harness.trainer import Trainer, TrainingStep
from seqvae.priors import Prior, VampPrior
from seqvae.vae import VAE

log = logging.getLogger(__name__)

CHANGEABLE = (
    "trainer.max_steps",
    "trainer.max_minutes",
    "trainer.valid_every",
    "trainer.save_every",
    "trainer.log_every",
    "trainer.keep_last",
    "trainer.clip_norm",
    "trainer.patience",
    "trainer.skip_nonfinite",
    "trainer.devices",
    "trainer.timeout_minutes",
    "trainer.compile",
    "trainer.deterministic",
    "trainer.profile",
    "optimizer.lr",
    "data.root",
    "data.workers",
)
"""The keys that may differ when a run goes on: none of them moves its position or changes what its weights mean."""

ITS_OWN = ("run_dir", "resume", "init_from", "init_parts")
"""The keys that say which run it is and how it begins: they are no part of what is compared."""

Changes = dict[str, tuple[Any, Any]]


def configuration(overrides: Sequence[str]) -> DictConfig:
    """Return the shipped configuration with a command line's overrides."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("train", list(overrides))


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
    newest = checkpoint.last(run_dir)
    dataset = _open_dataset(plain["data"], run_dir, newest)
    vae = _make_vae(plain, dataset, newest)
    trainer = _make_trainer(plain, options, engine, dataset, vae, run_dir)
    with _claimed(run_dir, engine):
        if engine.is_main:
            _describe(trainer, plain["experiment"], plain["data"]["batch_size"])
            _record(run_dir, config, changes)
        to_be_shown = newest is None or bool(changes)
        metrics = trainer.fit(newest, flat(plain) if to_be_shown else None)
        if engine.is_main:
            keep_aggregate(run_dir, dataset.train, engine.device)
        return metrics


class _Dataset(NamedTuple):
    """The data of a run."""

    root: Path
    manifest: dict[str, Any]
    codec: Codec[Any]
    train: WindowDataset
    valid: WindowDataset


def _open_dataset(node: dict[str, Any], run_dir: Path, newest: Path | None) -> _Dataset:
    """Return the data that a configuration names. Raises ValueError where a run's `newest` checkpoint saw others."""
    root = Path(node["root"]).resolve()
    manifest = read_manifest(root)
    if newest is not None and checkpoint.read_config(newest)["data"]["fingerprint"] != manifest["fingerprint"]:
        raise ValueError(f"{root} is not the dataset that {_shown(run_dir)} was trained on (its sha256 differs)")
    codec = data.load_codec(root / "codec").replace(**node["view"])
    train, valid = (open_split(root, split, None, node["limit"]) for split in ("train", "valid"))
    return _Dataset(root, manifest, codec, train, valid)


def _make_vae(plain: dict[str, Any], dataset: _Dataset, newest: Path | None) -> VAE:
    """Return the VAE that a configuration names; in a run that begins, with the weights that it begins with."""
    torch.manual_seed(plain["seed"])
    vae = assemble(plain["model"], plain["prior"], dataset.codec)
    if newest is None:
        _begin_with_data(vae.prior, dataset.train, plain["seed"])
        if plain["init_from"] is not None:
            _warm_start(vae, plain["init_from"], plain["init_parts"])
    return vae


def _make_trainer(
    plain: dict[str, Any], options: TrainerOptions, engine: Engine, dataset: _Dataset, vae: VAE, run_dir: Path
) -> Trainer:
    """Return the trainer of a VAE, whose parts have been seen to go together in every process."""
    objective = build(plain["objective"])
    sampling = build(plain["sampling"]) if plain.get("sampling") else None
    check_aggressive(options.aggressive_steps, vae, objective)
    optimizer = build(plain["optimizer"], params=vae.parameters())
    learning_rate = build(plain["learning_rate"])
    engine.launch()
    node, train = plain["data"], dataset.train
    order = BatchOrder(train.lengths, node["batch_size"], node["max_tokens"], plain["seed"], engine.world_size)
    (first,) = loader(train, dataset.codec, [[0, len(train) - 1]], seed=0, epoch=0)
    engine.rehearse(TrainingStep(vae, objective, sampling), first.x)
    manifest = dataset.manifest
    return Trainer(
        engine=engine,
        vae=vae,
        codec=dataset.codec,
        objective=objective,
        optimizer=optimizer,
        learning_rate=learning_rate,
        train=train,
        valid=dataset.valid,
        order=order,
        options=options,
        run_dir=run_dir,
        config={
            "versions": {"seqvae": seqvae.__version__, "torch": torch.__version__, "python": platform.python_version()},
            "experiment": plain["experiment"],
            "model": plain["model"],
            "prior": plain["prior"],
            "objective": plain["objective"],
            "data": {"root": str(dataset.root), "kind": manifest["kind"], "fingerprint": manifest["fingerprint"]},
        },
        seed=plain["seed"],
        workers=node["workers"],
        fresh_views=node["fresh_views"],
        sampling=sampling,
    )


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


def _begin_with_data(prior: Prior, train: WindowDataset, seed: int) -> None:
    """Give a prior that wants them pictures of the train split, each as often as any other."""
    if isinstance(prior, VampPrior) and prior.from_data:
        places = np.resize(np.random.default_rng(seed).permutation(len(train)), len(prior.pictures))
        prior.begin_with(torch.stack([train[place] for place in places.tolist()]).float() / 255)


def _warm_start(vae: VAE, name: str, parts: Any) -> None:
    """Load the parts of a VAE from a checkpoint: all of it, or those named.

    Raises:
        ValueError: for a part that there is not, or one that does not fit.
    """
    known = [part for part, _ in vae.named_children()]
    if parts is not None and not isinstance(parts, list):
        raise ValueError(f"init_parts must be a list such as [encoder,decoder], got {parts!r}")
    for part in parts or []:
        if part not in known:
            raise ValueError(f"init_parts must be of {', '.join(known)}, got {part!r}")
    try:
        path = checkpoint.resolve(name)
    except CheckpointError as error:
        raise ValueError(f"init_from={name} has no weights to begin with ({error})") from None
    chosen = parts or known

    def of_parts(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {key: tensor for key, tensor in tensors.items() if key.split(".")[0] in chosen}

    there, here = of_parts(checkpoint.read_tensors(path, checkpoint.WEIGHTS)), of_parts(vae.state_dict())
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
