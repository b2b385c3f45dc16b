"""What a trained VAE is for: (vae, codec, items) -> items."""

from seqvae.latent.interpolation import interpolate, lerp, slerp
from seqvae.latent.sampling import decode, encode, reconstruct, sample

__all__ = ["decode", "encode", "interpolate", "lerp", "reconstruct", "sample", "slerp"]
