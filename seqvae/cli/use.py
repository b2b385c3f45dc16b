"""Commands that use a trained model: sample, reconstruct, interpolate, encode."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from seqvae.cli.arguments import (
    Commands,
    add_command,
    add_inputs,
    add_output,
    add_temperature,
    open_checkpoint,
    read_items,
    seed,
    strategy,
)
from seqvae.cli.writing import write_items, write_whole


def add(commands: Commands) -> None:
    """Add the commands of this file."""
    sample = add_command(commands, "sample", "items drawn from the prior", _sample)
    sample.add_argument("-n", type=int, default=8, help="how many (default 8)")
    add_temperature(sample, "1 for sequences, the expected pixels for images")
    add_output(sample)

    reconstruct = add_command(commands, "reconstruct", "items encoded and decoded again", _reconstruct)
    add_inputs(reconstruct)
    add_temperature(reconstruct, "the most likely item")
    add_output(reconstruct)

    interpolate = add_command(commands, "interpolate", "items on the way from A to B", _interpolate)
    add_inputs(interpolate, "a", "b")
    interpolate.add_argument("--steps", type=int, default=7, help="how many, both ends counted (default 7)")
    interpolate.add_argument(
        "--method", choices=("slerp", "lerp"), default="slerp", help="along an arc (default) or a line"
    )
    add_temperature(interpolate, "the most likely item")
    add_output(interpolate)

    encode = add_command(commands, "encode", "posterior means as a .npy file, a row a window", _encode)
    add_inputs(encode)
    encode.add_argument(
        "-o", "--output", required=True, metavar="OUT", help="latents.npy; names go to latents.names.txt"
    )


def _sample(options: argparse.Namespace) -> None:
    from seqvae import latent

    trained = open_checkpoint(options)
    seed(options)
    tokens = "vocab_size" in trained.codec.spec
    draw = strategy(options, 1.0 if tokens else None)
    write_items(trained, options, "sample", latent.sample(trained.vae, trained.codec, options.n, draw), [])


def _reconstruct(options: argparse.Namespace) -> None:
    from seqvae import latent

    trained = open_checkpoint(options)
    originals = [item for _, item in read_items(options, trained, options.inputs)]
    seed(options)
    items = latent.reconstruct(trained.vae, trained.codec, originals, strategy(options))
    write_items(trained, options, "reconstruction", items, originals)


def _interpolate(options: argparse.Namespace) -> None:
    from seqvae import latent

    trained = open_checkpoint(options)
    ends = [item for _, item in read_items(options, trained, [options.a, options.b])]
    if len(ends) != 2:
        raise ValueError(f"A and B must be one item each, got {len(ends)}")
    seed(options)
    a, b = ends
    items = latent.interpolate(trained.vae, trained.codec, a, b, options.steps, options.method, strategy(options))
    write_items(trained, options, "interpolation", items, ends)


def _encode(options: argparse.Namespace) -> None:
    import io

    import numpy as np

    from seqvae import latent

    trained = open_checkpoint(options)
    named = [(name, trained.codec.windows(item)) for name, item in read_items(options, trained, options.inputs)]
    z = latent.encode(trained.vae, trained.codec, [window for _, windows in named for window in windows])
    output, buffer = Path(options.output), io.BytesIO()
    np.save(buffer, z.cpu().numpy())
    write_whole(output, buffer.getvalue())
    names = [
        name if len(windows) == 1 else f"{name}#{place}" for name, windows in named for place in range(len(windows))
    ]
    write_whole(output.with_suffix(".names.txt"), "".join(f"{name}\n" for name in names).encode())
    print(f"{z.shape[0]} x {z.shape[1]} latents written to {output}", file=sys.stderr)
