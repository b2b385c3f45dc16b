"""The note table: a song's notes in ticks, whichever library read them."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pretty_midi
from numpy.typing import NDArray

from seqvae.data.midi.reading import read_midi

START, END, PITCH, VELOCITY = range(4)  # the columns of Track.notes
READERS = ("pretty_midi", "symusic")


class Track(NamedTuple):
    """What one instrument plays."""

    name: str
    program: int
    is_drum: bool
    notes: NDArray[np.int64]  # [note 4] start and end in ticks, pitch, velocity; in the order of these


class Song(NamedTuple):
    """A song's tracks and, in ticks, where its tempo and its time signature change."""

    resolution: int  # ticks a quarter note
    tracks: list[Track]
    tempos: list[tuple[int, float]]  # (tick, quarter notes a minute), the first at tick 0
    time_signatures: list[tuple[int, int, int]]  # (tick, numerator, denominator), at most one a tick; maybe none


def song_of(midi: pretty_midi.PrettyMIDI | Song) -> Song:
    """Return the note table of a song: a track for each of its instruments, in their order.

    Tempos are rounded to what a MIDI file can hold, whole microseconds a quarter note.
    """
    if isinstance(midi, Song):
        return midi
    times, bpms = midi.get_tempo_changes()
    ticks: NDArray[np.int64] = np.array([int(midi.time_to_tick(time)) for time in times])
    ticks_a_second = bpms * midi.resolution / 60

    def in_ticks(seconds: list[float]) -> NDArray[np.int64]:
        moments = np.asarray(seconds, np.float64)
        place = np.maximum(np.searchsorted(times, moments, side="right") - 1, 0)
        beyond: NDArray[np.int64] = np.rint((moments - times[place]) * ticks_a_second[place]).astype(np.int64)
        return ticks[place] + beyond

    tracks = []
    for instrument in midi.instruments:
        notes = instrument.notes
        columns = [in_ticks([note.start for note in notes]), in_ticks([note.end for note in notes])]
        columns += [np.array([note.pitch for note in notes], np.int64), np.array([n.velocity for n in notes], np.int64)]
        name = instrument.name
        tracks.append(Track(name, int(instrument.program), bool(instrument.is_drum), ordered(np.stack(columns, 1))))
    changes = [(float(change.time), change) for change in midi.time_signature_changes]
    signatures = {int(midi.time_to_tick(time)): (change.numerator, change.denominator) for time, change in changes}
    return Song(
        int(midi.resolution),
        tracks,
        tempo_map([(int(tick), max(round(6e7 / bpm), 1)) for tick, bpm in zip(ticks, bpms, strict=True)]),
        [(tick, int(over), int(under)) for tick, (over, under) in sorted(signatures.items())],
    )


def read_song(path: Path, reader: str = "pretty_midi") -> Song:
    """Return the note table of a MIDI file.

    Raises MidiError for a file that `read_midi` refuses, ValueError for a reader that there is not.
    """
    if reader not in READERS:
        raise ValueError(f"reader must be one of {', '.join(READERS)}, got {reader!r}")
    return song_of(read_midi(path))


def ordered(notes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rows by start, then end, pitch and velocity."""
    return notes[np.lexsort(notes.T[::-1])]


def tempo_map(changes: list[tuple[int, int]]) -> list[tuple[int, float]]:
    """Return tempos in quarter notes a minute from changes (tick, microseconds a quarter) in order.

    120 bpm until the first of them; the last at one tick holds, and what changes nothing is none.
    """
    latest = dict([(0, 500_000), *changes])
    kept: list[tuple[int, int]] = []
    for tick in sorted(latest):
        if not kept or latest[tick] != kept[-1][1]:
            kept.append((tick, latest[tick]))
    return [(tick, 6e7 / microseconds) for tick, microseconds in kept]
