"""What a trained VAE is for: (vae, codec, items) -> items."""

from seqvae.latent.attributes import attribute, edit, orthogonalize
from seqvae.latent.interpolation import grid, interpolate, lerp, slerp
from seqvae.latent.neighbors import nearest, similar
from seqvae.latent.novelty import Sieve
from seqvae.latent.sampling import decode, encode, log_likelihood, posterior, reconstruct, sample, stream

__all__ = [
    "Sieve",
    "attribute",
    "decode",
    "edit",
    "encode",
    "grid",
    "interpolate",
    "lerp",
    "log_likelihood",
    "nearest",
    "orthogonalize",
    "posterior",
    "reconstruct",
    "sample",
    "similar",
    "slerp",
    "stream",
]
