"""Attribute vectors as files: one tensor, and which model's latent space it is a direction of."""

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

TENSOR = "attribute"


def pack_vector(vector: Float[Tensor, " latent"], weights: str, facts: dict[str, Any]) -> bytes:
    """Return a safetensors file of the vector, the sha256 of the weights it belongs to, and other facts as JSON."""
    told = {"weights": weights, **{name: json.dumps(value) for name, value in facts.items()}}
    return save({TENSOR: vector.detach().cpu().contiguous()}, metadata=told)


def load_vector(path: Path, weights: str, latent_dim: int) -> Float[Tensor, " latent"]:
    """Return the vector that a file holds.

    Raises:
        ValueError: when it is no attribute vector, or one of another model's latent space.
    """
    if not path.is_file():
        raise ValueError(f"no such attribute vector: {path}")
    try:
        with safe_open(path, "pt") as file:
            told = file.metadata() or {}
            shape = file.get_slice(TENSOR).get_shape() if TENSOR in file.keys() else []  # noqa: SIM118 - it is no dict
            if "weights" not in told or len(shape) != 1:
                raise ValueError(f"{path} is no attribute vector")
            if told["weights"] != weights or shape[0] != latent_dim:
                raise ValueError(
                    f"{path} was made with another model ({shape[0]} latent dimensions, weights {told['weights'][:8]}; "
                    f"this one has {latent_dim} and {weights[:8]}); make it again with this checkpoint"
                )
            vector: Tensor = file.get_tensor(TENSOR).float()
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read as an attribute vector ({error})") from None
    if not torch.isfinite(vector).all():
        raise ValueError(f"{path} holds numbers that are not finite")
    return vector
