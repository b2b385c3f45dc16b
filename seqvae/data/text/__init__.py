"""Text: a sentencepiece codec (Kudo & Richardson, 2018), guarded reading of corpora, and their preparation."""

from seqvae.data.text.preparing import prepare_text
from seqvae.data.text.tokenizer import SentencePieceTokenizer

__all__ = ["SentencePieceTokenizer", "prepare_text"]
