"""MIDI melodies: a guarded reader, the melody codec after MusicVAE (Roberts et al., 2018), a folder's preparation."""

from seqvae.data.midi.notes import Song, Track, read_song, song_of
from seqvae.data.midi.preparing import prepare_midi
from seqvae.data.midi.reading import MidiError, read_midi
from seqvae.data.midi.tokenizer import MelodyTokenizer

__all__ = ["MelodyTokenizer", "MidiError", "Song", "Track", "prepare_midi", "read_midi", "read_song", "song_of"]
