"""A flat LSTM VAE as the weights that the MusicVAE of @magenta/music loads (Roberts et al., 2018).

That library steps TensorFlow's LSTM cells over one-hot inputs. What differs from PyTorch's is arithmetic on the
weights, done here in float64: the embedding is folded into the kernel of the inputs, a kernel's rows are [input;
hidden], the gates stand in the order input, cell, forget, output, there is one bias, and 1 is added to the forget
gate's when it runs.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from seqvae.data.codec import Codec
from seqvae.gaussian import VARIANCE_FLOOR, BatchNormalizedMean, GaussianHead
from seqvae.models.lstm import LSTMDecoder
from seqvae.models.lstm_encoder import LSTMEncoder
from seqvae.priors import StandardNormal
from seqvae.vae import VAE

SHARD = 4 << 20  # bytes of a file of weights, which browsers cache one by one
FORGET_BIAS = 1.0  # what TensorFlow's cell adds by itself


def export_magenta(vae: VAE, codec: Codec[Any], folder: Path) -> None:
    """Write config.json, weights_manifest.json and the shards of weights, raw little-endian float32, into a directory.

    Only the posterior's mean goes along: the library never asks for its deviation.

    Raises:
        ValueError: for what @magenta/music cannot run, with the option and its value.
    """
    config = {"type": "MusicVAE", "dataConverter": codec.magenta_converter()}
    weights = magenta_weights(vae)
    content = b"".join(array.astype("<f4").tobytes() for array in weights.values())
    parts = [content[start : start + SHARD] for start in range(0, len(content), SHARD)]
    shards = {f"group1-shard{number}of{len(parts)}": part for number, part in enumerate(parts, 1)}
    entries = [{"name": name, "shape": array.shape, "dtype": "float32"} for name, array in weights.items()]
    for name, part in shards.items():
        (folder / name).write_bytes(part)
    (folder / "weights_manifest.json").write_text(json.dumps([{"paths": list(shards), "weights": entries}]) + "\n")
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


@torch.no_grad()
def magenta_weights(vae: VAE) -> dict[str, NDArray[np.float32]]:
    """Return the weights by the names of Magenta's checkpoints. Raises ValueError as `export_magenta` does."""
    encoder, decoder = _flat(vae)
    found = {}
    for name, suffix in (("fw", ""), ("bw", "_reverse")):
        cell = f"encoder/cell_0/bidirectional_rnn/{name}/multi_rnn_cell/cell_0/lstm_cell"
        found[cell] = _cell(encoder.lstm, f"l0{suffix}", encoder.embedding)
    found["encoder/mu"] = _mean(encoder.head)
    found["decoder/z_to_initial_state"] = _dense(decoder.initial_state)
    for layer in range(decoder.lstm.num_layers):
        embedding = decoder.embedding if layer == 0 else None
        found[f"decoder/multi_rnn_cell/cell_{layer}/lstm_cell"] = _cell(decoder.lstm, f"l{layer}", embedding)
    found["decoder/output_projection"] = _output(decoder)
    return {
        f"{name}/{part}": tensor.float().cpu().numpy()
        for name, pair in found.items()
        for part, tensor in zip(("kernel", "bias"), pair, strict=True)
    }


def _flat(vae: VAE) -> tuple[LSTMEncoder, LSTMDecoder]:
    """Return the networks of a model that @magenta/music can run. Raises ValueError for any other."""
    encoder, decoder = vae.encoder, vae.decoder
    if not (isinstance(encoder, LSTMEncoder) and isinstance(decoder, LSTMDecoder)):
        raise ValueError(
            f"model is made of {type(encoder).__name__} and {type(decoder).__name__}; @magenta/music runs the flat lstm"
        )
    for option, value, needed in _options(vae, encoder, decoder):
        if value != needed:
            raise ValueError(f"{option} is {value}; @magenta/music runs only models with {option} {needed}")
    return encoder, decoder


def _options(vae: VAE, encoder: LSTMEncoder, decoder: LSTMDecoder) -> Iterator[tuple[str, Any, Any]]:
    """Yield what a person can choose, what this model has, and what there must be."""
    yield "model.encoder_layers", encoder.lstm.num_layers, 1
    yield "model.bidirectional", str(encoder.lstm.bidirectional).lower(), "true"
    yield "model.pooling", encoder.pooling, "final"
    yield "model.z_to_output", str(decoder.from_z is not None).lower(), "false"
    yield "prior", type(vae.prior).__name__, StandardNormal.__name__  # its sample() and similar() draw from N(0, I)


Layer = tuple[Tensor, Tensor]  # kernel [inputs, outputs] and bias [outputs], in float64


def _cell(lstm: nn.LSTM, suffix: str, embedding: nn.Embedding | None) -> Layer:
    """Return a cell's kernel and bias; with an embedding, its input is one-hot where the embedded token was."""
    inputs, hidden = (getattr(lstm, f"weight_{source}_{suffix}").double().T for source in ("ih", "hh"))
    bias = getattr(lstm, f"bias_ih_{suffix}").double() + getattr(lstm, f"bias_hh_{suffix}").double()
    if embedding is not None:
        embedded, others = inputs.split([embedding.embedding_dim, len(inputs) - embedding.embedding_dim])
        inputs = torch.cat([embedding.weight.double() @ embedded, others])
    i, f, g, o = torch.cat([inputs, hidden]).chunk(4, dim=1)
    bias_i, bias_f, bias_g, bias_o = bias.chunk(4)
    return torch.cat([i, g, f, o], dim=1), torch.cat([bias_i, bias_g, bias_f - FORGET_BIAS, bias_o])


def _mean(head: GaussianHead) -> Layer:
    """Return the layer of the posterior's mean; in evaluation a normalisation over batches is affine, so part of it."""
    kernel, bias = _dense(head.mean)
    normalize = head.normalize
    if isinstance(normalize, BatchNormalizedMean):
        scale = normalize.gamma * torch.rsqrt(normalize.running_variance.double() + VARIANCE_FLOOR)
        kernel, bias = kernel * scale, (bias - normalize.running_mean) * scale + normalize.shift
    return kernel, bias


def _output(decoder: LSTMDecoder) -> Layer:
    """Return the layer from the last hidden state to the logits; the bottleneck of a tied softmax is part of it."""
    kernel, bias = _dense(decoder.output)
    if isinstance(decoder.bottleneck, nn.Linear):
        first_kernel, first_bias = _dense(decoder.bottleneck)
        kernel, bias = first_kernel @ kernel, first_bias @ kernel + bias
    return kernel, bias


def _dense(layer: nn.Module) -> Layer:
    assert isinstance(layer, nn.Linear)
    return layer.weight.double().T, layer.bias.double()
