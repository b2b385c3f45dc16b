"""What all MIDI codecs do alike: what they take out of a song, and how they make and write one."""

import math
import os
from collections import Counter
from collections.abc import Iterable
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pretty_midi
from numpy.typing import NDArray

TEMPO, VELOCITY = 120.0, 90  # of what is like nothing


class Extraction(NamedTuple):
    """What a song gives a dataset, and why it gives no more."""

    windows: list[NDArray[Any]]  # [step] or [step parts], the short ones among them
    tune: str  # tells the song's music from other music, whatever the key
    dropped: Counter[str]  # windows left out, by rule
    counted: Counter[str]
    missing: str  # why a song gives nothing where no window was left out


def is_int(value: object) -> bool:
    """Return whether a value is a whole number, and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool)


def in_any_key(notes: Iterable[tuple[int, int, int]] | NDArray[np.int64]) -> str:
    """Return notes (start, end, pitch) as text that a transposition leaves as it is."""
    rows = [tuple(map(int, note)) for note in notes]
    return repr([(start, end, pitch - rows[0][2]) for start, end, pitch in rows])


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
