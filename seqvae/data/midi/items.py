"""What all MIDI codecs do alike: how they read, make, write, chain and show songs."""

import math
import os
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import ClassVar

import numpy as np
import pretty_midi
import torch
from torch import Tensor

from seqvae.data.codec import Codec, Preview
from seqvae.data.midi.preview import documents, piano_rolls, play
from seqvae.data.midi.reading import read_midi

TEMPO, VELOCITY = 120.0, 90  # of what is like nothing


class MidiCodec(Codec[pretty_midi.PrettyMIDI]):
    """A codec of songs, whose windows of steps stand one after another."""

    suffix = ".mid"
    endings = (".mid", ".midi", ".rmi", ".kar")
    document_endings: ClassVar[tuple[str, ...]] = (".html", ".abc")
    joins = True

    def sizes(self, tensor: Tensor) -> dict[str, int]:
        return {"step": len(tensor)}

    def read(self, source: str) -> list[pretty_midi.PrettyMIDI]:
        return [read_midi(Path(source))]

    def write(self, item: pretty_midi.PrettyMIDI, path: Path) -> None:
        write_midi(item, path)

    def chain(self, items: Sequence[pretty_midi.PrettyMIDI]) -> pretty_midi.PrettyMIDI | None:
        """Return the items' music one after another, each from a window of its own on; a silent item is a rest."""
        parts = np.shape(self.spec["vocab_size"])
        rest = torch.zeros(self.spec["max_length"], *parts, dtype=torch.int64)
        windows: list[Tensor] = []
        like = None
        for item in items:
            try:
                windows += self.windows(item)
                like = like or item
            except ValueError:  # it has no music of this codec
                windows.append(rest)
        return self.join(windows, like)

    def preview(
        self, items: Sequence[pretty_midi.PrettyMIDI], columns: int | None = None, sound: bool = True
    ) -> Preview:
        """Return piano rolls to one scale of pitch, and the items' first minutes played one after another."""
        return Preview(image=piano_rolls(items, columns), audio=play(items) if sound else None)

    def documents(
        self, items: Sequence[pretty_midi.PrettyMIDI], title: str, captions: Sequence[str], columns: int | None = None
    ) -> dict[str, str]:
        return documents(items, title, captions, columns)


def is_int(value: object) -> bool:
    """Return whether a value is a whole number, and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool)


def new_song(like: pretty_midi.PrettyMIDI | None = None, steps_per_quarter: int = 4) -> pretty_midi.PrettyMIDI:
    """Return a song without notes, in the initial tempo of another one; a step is a whole number of ticks."""
    tempo = TEMPO if like is None else float(like.get_tempo_changes()[1][0])
    microseconds = min(max(round(6e7 / tempo), 1), 2**24 - 1)
    # written files hold whole microseconds a beat, cut off: a hair more, or 93 bpm would be slower every time
    return pretty_midi.PrettyMIDI(resolution=55 * steps_per_quarter, initial_tempo=6e7 / (microseconds + 1e-3))


def write_midi(item: pretty_midi.PrettyMIDI, path: Path) -> None:
    """Write a MIDI file. Raises ValueError for a note that no MIDI file can hold."""
    for note in (note for instrument in item.instruments for note in instrument.notes):
        whole = isinstance(note.pitch, Integral) and isinstance(note.velocity, Integral)
        if not (whole and 0 <= note.pitch <= 127 and 1 <= note.velocity <= 127):
            raise ValueError(f"pitch must be an int from 0 to 127 and velocity from 1 to 127, got {note}")
        if not 0 <= note.start < note.end < math.inf:
            raise ValueError(f"a note must start at 0 or later and end after it starts, got {note}")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        item.write(str(temporary))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
