"""What a trained VAE is for: (vae, codec, items) -> items."""

from seqvae.latent.attributes import attribute, attribute_table, edit, named_attributes, orthogonalize
from seqvae.latent.imputation import Imputation, impute
from seqvae.latent.interpolation import grid, interpolate, lerp, slerp
from seqvae.latent.neighbors import nearest, similar
from seqvae.latent.novelty import Sieve
from seqvae.latent.sampling import chains, decode, encode, log_likelihood, posterior, reconstruct, sample, stream

__all__ = [
    "Imputation",
    "Sieve",
    "attribute",
    "attribute_table",
    "chains",
    "decode",
    "edit",
    "encode",
    "grid",
    "impute",
    "interpolate",
    "lerp",
    "log_likelihood",
    "named_attributes",
    "nearest",
    "orthogonalize",
    "posterior",
    "reconstruct",
    "sample",
    "similar",
    "slerp",
    "stream",
]
