"""seqvae: variational autoencoders for images, text and MIDI."""

from typing import Any

__version__ = "0.1.0"

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":  # on first use: `seqvae --help` must not wait for torch
        from seqvae.harness.config import load

        return load
    raise AttributeError(f"module 'seqvae' has no attribute {name!r}")
