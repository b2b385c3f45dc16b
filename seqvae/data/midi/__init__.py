"""MIDI melodies: a guarded reader, the melody codec after MusicVAE (Roberts et al., 2018), a folder's preparation."""

from seqvae.data.midi.preparing import prepare_midi
from seqvae.data.midi.reading import MidiError, read_midi
from seqvae.data.midi.tokenizer import MelodyTokenizer

__all__ = ["MelodyTokenizer", "MidiError", "prepare_midi", "read_midi"]
