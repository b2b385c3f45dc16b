"""Pictures: a guarded reader of files, idx and .npz arrays, the codec of pixels, preparation."""

from seqvae.data.image.arrays import open_idx, read_idx
from seqvae.data.image.codec import PixelCodec
from seqvae.data.image.pictures import read_picture, write_gif, write_png
from seqvae.data.image.preparing import parse_size, prepare_arrays, prepare_image

__all__ = [
    "PixelCodec",
    "open_idx",
    "parse_size",
    "prepare_arrays",
    "prepare_image",
    "read_idx",
    "read_picture",
    "write_gif",
    "write_png",
]
