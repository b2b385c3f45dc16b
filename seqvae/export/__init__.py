"""A trained VAE in the terms of other programs: @magenta/music in a browser, or any runtime of ONNX."""

from seqvae.export.magenta import export_magenta
from seqvae.export.onnx import export_onnx

__all__ = ["export_magenta", "export_onnx"]
