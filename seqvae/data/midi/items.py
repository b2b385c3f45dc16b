"""What all MIDI codecs do alike: how they make and write a song."""

import math
import os
from numbers import Integral
from pathlib import Path

import pretty_midi

TEMPO, VELOCITY = 120.0, 90  # of what is like nothing


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
