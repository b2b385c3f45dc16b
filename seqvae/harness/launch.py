"""`seqvae train` under Hydra: one run or a sweep, whose mistakes are one line each."""

import logging
import os
import sys
import threading
from collections.abc import Collection, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hydra
import hydra._internal.hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from seqvae.harness import conf_dir
from seqvae.harness.config import REGISTRY, arguments_of
from seqvae.harness.run import train
from seqvae.harness.signals import Stopped
from seqvae.harness.sweep import Outcome, Outcomes, job_dir, table

log = logging.getLogger(__name__)

FAILURES = (HydraException, OmegaConfBaseException, YAMLError, ValueError, OSError)
"""What a user can cause: one line, no traceback."""

LOGGING: dict[str, Any] = {"level": logging.INFO, "format": "%(message)s"}  # to stderr


def _constant(arguments: Sequence[str]) -> set[str]:
    """Return the overrides of a command line that sweep over nothing, as Hydra writes them."""
    parser, constant = OverridesParser.create(), set()
    for argument in arguments:
        try:
            (override,) = parser.parse_overrides([argument])
        except (HydraException, RecursionError):  # an option, or what Hydra itself will refuse
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
        target = node.get("_target_") if isinstance(node, DictConfig) else None
        if not isinstance(target, str) or target not in REGISTRY:
            return  # no node, or one that will be refused
        known = arguments_of(node)
        for name in [str(name) for name in node if name != "_target_"]:
            key = f"{path}.{name}"
            if name in known:
                prune(OmegaConf.select(node, name), key)
            elif not any(f"{other}.".startswith(f"{key}.") for other in typed):
                log.info("%s is left out: %s has no such argument", key, target)
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

    Raises:
        BrokenPipeError: when what is printed cannot be written any more.
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
            try:
                _leave_out_leftovers(config)
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
        except BrokenPipeError:  # who reads what Hydra prints has left, which is no failure
            raise
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
