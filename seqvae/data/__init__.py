"""Items to tensors and back, prepared datasets, and the order in which they are seen."""

from pathlib import Path
from typing import Any

from seqvae.data.codec import CODEC_FILE, Codec, read_json
from seqvae.data.image import PixelCodec
from seqvae.data.midi import DrumTokenizer, MelodyTokenizer, TrioTokenizer
from seqvae.data.text import SentencePieceTokenizer

__all__ = ["DrumTokenizer", "MelodyTokenizer", "PixelCodec", "SentencePieceTokenizer", "TrioTokenizer"]


def load_codec(directory: Path) -> Codec[Any]:
    """Return the codec saved in a directory. Raises ValueError when its files are damaged or none of ours."""
    codecs: dict[str, type[Codec[Any]]] = {
        codec.__name__: codec
        for codec in (DrumTokenizer, MelodyTokenizer, PixelCodec, SentencePieceTokenizer, TrioTokenizer)
    }
    saved = read_json(directory / CODEC_FILE)
    name = saved.get("codec")
    if not isinstance(name, str) or name not in codecs:
        raise ValueError(f"{directory / CODEC_FILE} names the codec {name!r}; known are {', '.join(codecs)}")
    return codecs[name].load(directory)
