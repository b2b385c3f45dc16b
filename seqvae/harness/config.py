"""Configuration: the one door from names to objects, and what assembles a VAE, new or trained, from them."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook

from seqvae import data, models, objectives, priors, schedules
from seqvae.data.codec import Codec
from seqvae.harness import checkpoint
from seqvae.harness.checkpoint import CheckpointError
from seqvae.vae import VAE

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


def build(node: Any, **runtime: Any) -> Any:
    """Return what a node names: REGISTRY[node["_target_"]] called with the node's arguments and the runtime ones.

    Arguments that are nodes themselves are built first.

    Raises:
        ValueError: for a name outside the registry, an argument the builder does not have or lacks, or a value it
            refuses; the message says which.
    """
    parameters, target = arguments_of(node), node["_target_"]
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


def arguments_of(node: Any) -> Mapping[str, inspect.Parameter]:
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
    taken = arguments_of(prior)
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

    @property
    def noise(self) -> bool:
        """Whether z was drawn in training, so that posteriors have a width: not so for an autoencoder."""
        objective = self.config.get("objective")
        name = objective.get("_target_") if isinstance(objective, dict) else None
        return bool(REGISTRY[name].noise) if name in REGISTRY else True


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
