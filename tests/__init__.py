"""Shapes are checked in tests only; the hook must come before the first import of what it checks."""

from jaxtyping import install_import_hook

from tests.helpers import shapes

SHAPED = ("gaussian", "priors", "vae", "objectives", "evaluation", "models", "latent")

install_import_hook([f"seqvae.{name}" for name in SHAPED], f"{shapes.__name__}.{shapes.check_shapes.__name__}")
