"""MIDI: a guarded reader, the codecs of melody, drums and trio after MusicVAE (Roberts et al., 2018), preparation."""

from seqvae.data.midi.drums import DrumTokenizer
from seqvae.data.midi.notes import Song, Track, read_song, song_of
from seqvae.data.midi.preparing import prepare_midi
from seqvae.data.midi.reading import MidiError, read_midi
from seqvae.data.midi.tokenizer import MelodyTokenizer
from seqvae.data.midi.trio import TrioTokenizer

__all__ = [
    "DrumTokenizer",
    "MelodyTokenizer",
    "MidiError",
    "Song",
    "Track",
    "TrioTokenizer",
    "prepare_midi",
    "read_midi",
    "read_song",
    "song_of",
]
