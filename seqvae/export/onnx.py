"""A trained VAE as ONNX graphs: the encoder, and a decoder that a caller steps or calls once."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seqvae.data.codec import Codec
from seqvae.models.conv import ConvDecoder, ConvEncoder
from seqvae.models.lstm import DecoderState, LSTMDecoder
from seqvae.models.lstm_encoder import LSTMEncoder
from seqvae.vae import VAE, Decoder, Encoder

DECODING = (
    "hidden, cell = start(z), z [batch latent_dim], the posterior's mean or a draw from the prior",
    "token = -1 in every row",
    "max_length times: logits, hidden, cell = step(token, hidden, cell, z); token = argmax of logits, or a draw from "
    "softmax(logits / temperature)",
    "never draw unk_id, and end a row at end_id, where they are not null",
)
PAINTING = (
    "pixels = decoder(z), the expected brightness in [0, 1], z as the posterior's mean or a draw from the prior",
)


class _Encode(nn.Module):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.encoder(x)
        return posterior.mean, posterior.log_variance


class _Start(nn.Module):
    def __init__(self, decoder: LSTMDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        state = self.decoder.start(z)
        return state.hidden, state.cell


class _Step(nn.Module):
    def __init__(self, decoder: LSTMDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, token: Tensor, hidden: Tensor, cell: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, state = self.decoder.step(token, DecoderState(hidden, cell, z))
        return logits, state.hidden, state.cell


class _Paint(nn.Module):
    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, z: Tensor) -> Tensor:
        pixels: Tensor = self.decoder.sample(z)
        return pixels


@dataclass(frozen=True)
class _Graph:
    """What becomes one file: a module, example inputs by name with their axes' names, and the outputs."""

    module: nn.Module
    inputs: dict[str, tuple[Tensor, tuple[str, ...]]]
    outputs: dict[str, tuple[str, ...]]


def export_onnx(vae: VAE, codec: Codec[Any], folder: Path) -> None:
    """Write the graphs, a config.json that says how to use them, and the codec's files into a directory.

    Every axis named batch or time can have any length. Of a batch of tokens every row is whole, without a -1.

    Raises:
        ValueError: without the libraries of the extra, or for a network that has no graph.
    """
    try:
        import onnxscript  # noqa: F401 - torch.onnx needs it, and onnx below it
    except ImportError:
        raise ValueError("--format onnx needs onnx and onnxscript: pip install 'seqvae[onnx]'") from None
    graphs, how = _graphs(vae)
    for name, graph in graphs.items():
        _write(graph, folder / f"{name}.onnx")
    config = {
        "latent_dim": vae.latent_dim,
        "prior": type(vae.prior).__name__,
        **codec.spec,
        "graphs": {
            name: {
                "inputs": {key: _told(example, axes) for key, (example, axes) in graph.inputs.items()},
                "outputs": {key: f"float32 [{' '.join(axes)}]" for key, axes in graph.outputs.items()},
            }
            for name, graph in graphs.items()
        },
        "decoding": how,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    codec.save(folder)


def _told(example: Tensor, axes: tuple[str, ...]) -> str:
    return f"{str(example.dtype).removeprefix('torch.')} [{' '.join(axes)}]"


def _graphs(vae: VAE) -> tuple[dict[str, _Graph], tuple[str, ...]]:
    """Return the graphs of a model by the name of their file, and how they decode."""
    encoder, decoder = vae.encoder.cpu(), vae.decoder.cpu()
    z = torch.zeros(3, vae.latent_dim)  # of 1 row, or of 0, exporting would make a constant
    row = ("batch", "latent_dim")
    posterior: dict[str, tuple[str, ...]] = {"mean": row, "log_variance": row}
    if isinstance(encoder, ConvEncoder) and isinstance(decoder, ConvDecoder):
        pixels, axes = decoder.sample(z), ("batch", "channels", "height", "width")
        return {
            "encoder": _Graph(_Encode(encoder), {"pixels": (pixels, axes)}, posterior),
            "decoder": _Graph(_Paint(decoder), {"z": (z, row)}, {"pixels": axes}),
        }, PAINTING
    if isinstance(encoder, LSTMEncoder) and isinstance(decoder, LSTMDecoder):
        token, state, layers = torch.zeros(3, dtype=torch.int64), decoder.start(z), ("layers", "batch", "hidden_dim")
        carried = {"hidden": (state.hidden, layers), "cell": (state.cell, layers), "z": (z, row)}
        tokens = token.unsqueeze(1).repeat(1, 2)
        return {
            "encoder": _Graph(_Encode(encoder), {"tokens": (tokens, ("batch", "time"))}, posterior),
            "start": _Graph(_Start(decoder), {"z": (z, row)}, {"hidden": layers, "cell": layers}),
            "step": _Graph(
                _Step(decoder),
                {"token": (token, ("batch",)), **carried},
                {"logits": ("batch", "vocab_size"), "next_hidden": layers, "next_cell": layers},
            ),
        }, DECODING
    raise ValueError(
        f"model is made of {type(encoder).__name__} and {type(decoder).__name__}; --format onnx knows lstm and conv"
    )


@torch.no_grad()
def _write(graph: _Graph, path: Path) -> None:
    """Write a graph as one file, without what its tracing knew of this machine."""
    moving = {
        name: {place: axis for place, axis in enumerate(axes) if axis in ("batch", "time")}
        for name, (_, axes) in graph.inputs.items()
    }
    with _quietly():
        program = torch.onnx.export(
            graph.module.eval(),
            tuple(example for example, _ in graph.inputs.values()),
            dynamo=True,
            dynamic_shapes=tuple(moving.values()),
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph:  # where in which file of this machine each came from
        node.metadata_props.clear()
    program.save(path)


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep from the user what torch.onnx and its libraries say of themselves: deprecations, simplifications."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
