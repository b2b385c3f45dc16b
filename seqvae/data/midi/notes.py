"""The note table: a song's notes in ticks, whichever library read them."""

import importlib.util
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pretty_midi
from numpy.typing import NDArray

from seqvae.data.midi.reading import (
    COARSE_RESOLUTION,
    MAX_TICKS,
    check_length,
    checked_bytes,
    no_notes,
    one_reason,
    read_midi,
)

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
        spans = in_ticks([note.start for note in notes] + [note.end for note in notes]).reshape(
            2, -1
        )  # starts above ends
        sounds = np.array([[note.pitch for note in notes], [note.velocity for note in notes]], np.int64)
        tracks.append(
            Track(
                _name(instrument.name),
                int(instrument.program),
                bool(instrument.is_drum),
                ordered(np.concatenate([spans, sounds]).T),
            )
        )
    changes = [(float(change.time), change) for change in midi.time_signature_changes]
    signatures = {int(midi.time_to_tick(time)): (change.numerator, change.denominator) for time, change in changes}
    return Song(
        int(midi.resolution),
        tracks,
        tempo_map([(int(tick), max(round(6e7 / bpm), 1)) for tick, bpm in zip(ticks, bpms, strict=True)]),
        [(tick, int(over), int(under)) for tick, (over, under) in sorted(signatures.items())],
    )


def _name(name: str) -> str:
    """Return the name that was meant where bytes of UTF-8 were read as Latin-1, as pretty_midi does."""
    try:
        return name.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return name


def read_song(path: Path, reader: str = "pretty_midi") -> Song:
    """Return the note table of a MIDI file, its tracks without notes left out, the others in an order of their own.

    The reader "symusic" is faster by far. Its table is another where a note is never ended on its own (it is left
    out), where a program changes while a note sounds (the note counts for the program that struck it) and in names
    that are no UTF-8.

    Raises:
        MidiError: for a file that is damaged, beyond the limits of `read_midi` or without notes.
        ValueError: for a reader that there is not.
    """
    check_reader(reader)
    if reader == "pretty_midi":
        song = song_of(read_midi(path))
    else:
        with one_reason(path):
            song = _read_with_symusic(*checked_bytes(path))
    heard = [track for track in song.tracks if len(track.notes)]
    # readers have orders of their own, and a dataset shall be the same with each
    return song._replace(tracks=sorted(heard, key=lambda t: (t.is_drum, t.program, t.notes.tobytes())))


def check_reader(reader: str) -> None:
    """Raise ValueError for a reader that there is not, or that is not installed."""
    if reader not in READERS:
        raise ValueError(f"reader must be one of {', '.join(READERS)}, got {reader!r}")
    if reader == "symusic" and importlib.util.find_spec("symusic") is None:
        raise ValueError('the reader symusic is not installed; get it with: pip install "seqvae[fast]"')


def _read_with_symusic(data: bytes, ticks: int) -> Song:
    import symusic

    score: Any = symusic.Score.from_midi(data)  # its types leave most of it out
    resolution = COARSE_RESOLUTION if ticks > MAX_TICKS else score.tpq  # as read_midi

    tracks = []
    for track in score.tracks:
        columns = track.notes.numpy()
        start, length, pitch, velocity = (columns[name].astype(np.int64) for name in columns)
        notes = np.stack([start, _ended(start, length, pitch), pitch, velocity], 1)
        if resolution != score.tpq:
            notes[:, [START, END]] = np.rint(notes[:, [START, END]] * resolution / score.tpq)
        notes = ordered(notes[notes[:, END] > notes[:, START]])
        tracks.append(Track(track.name, track.program, track.is_drum, notes))
    if not any(len(track.notes) for track in tracks):
        raise no_notes()
    ratio = Fraction(resolution, score.tpq)
    tempos = tempo_map([(round(tempo.time * ratio), tempo.mspq) for tempo in score.tempos])
    signatures = {round(s.time * ratio): (s.numerator, s.denominator) for s in score.time_signatures}
    song = Song(resolution, tracks, tempos, [(tick, *signature) for tick, signature in sorted(signatures.items())])
    check_length(seconds_of(song, max(int(track.notes[:, END].max(initial=0)) for track in tracks)))
    return song


def _ended(start: NDArray[np.int64], length: NDArray[np.int64], pitch: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the ends of notes as pretty_midi has them: the first end after its start ends every note of a pitch.

    symusic, which paired them, takes the first note that sounds for each end.
    """
    apart = 1 << 40  # ticks between one pitch and the next
    ends = np.sort(pitch * apart + start + length)
    following = np.searchsorted(ends, pitch * apart + start, side="right")
    closed = np.append(ends, 0)[following] - pitch * apart
    return np.where(length > 0, closed, start)


def ordered(notes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rows by start, then end, pitch and velocity."""
    start, end, pitch, velocity = notes.T
    return notes[np.lexsort((pitch << 7 | velocity, start << 32 | end))]  # two keys sort faster than four


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


def seconds_of(song: Song, tick: int) -> float:
    """Return when a tick sounds."""
    seconds, ends = 0.0, [start for start, _ in song.tempos[1:]] + [tick]
    for (start, bpm), end in zip(song.tempos, ends, strict=True):
        seconds += max(min(end, tick) - start, 0) * 60 / (bpm * song.resolution)
    return seconds
