"""The command that writes a trained model for other programs: export."""

from __future__ import annotations

import argparse
from pathlib import Path

from seqvae.cli.arguments import Commands, open_latent
from seqvae.cli.writing import whole_folder

FORMATS = {
    "magenta-js": "what @magenta/music plays in a browser",
    "onnx": "an encoder and a decoder for any runtime of ONNX",
}


def add(commands: Commands) -> None:
    """Add `export`."""
    help = "a model's weights for other programs: a browser, a runtime of ONNX"
    export = commands.add_parser("export", help=help, description=help)
    export.add_argument(
        "checkpoint", metavar="CKPT", help="a checkpoint, or a run directory: its best, RUN@last its newest"
    )
    formats = "; ".join(f"{name}: {what}" for name, what in FORMATS.items())
    export.add_argument("--format", required=True, choices=list(FORMATS), help=formats)
    export.add_argument("-o", "--output", required=True, metavar="DIR", type=Path, help="a new directory")
    export.set_defaults(run=_export, device="cpu")


def _export(options: argparse.Namespace) -> None:
    with whole_folder(options.output) as folder:
        from seqvae.export import export_magenta, export_onnx

        trained = open_latent(options)
        write = {"magenta-js": export_magenta, "onnx": export_onnx}[options.format]
        write(trained.vae, trained.codec, folder)
    for path in sorted(options.output.iterdir()):
        print(path)
