"""From a song to monophonic lines on a grid of steps, from lines to classes, and back."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pretty_midi
from numpy.typing import NDArray

from seqvae.data.midi.meters import COMMON, Meter, Stretch, stretches
from seqvae.data.midi.notes import END, PITCH, START, VELOCITY, Song, Track, song_of
from seqvae.data.midi.tracks import Tracks

NO_EVENT, NOTE_OFF, FIRST_NOTE = 0, 1, 2  # classes; FIRST_NOTE + n strikes pitch LOWEST + n
LOWEST, HIGHEST = 21, 108
VOCAB_SIZE = FIRST_NOTE + HIGHEST - LOWEST + 1
NUMBER = VELOCITY + 1  # the column of a song's notes that says whose they are
STEPS_A_BEAT = 4  # a beat is a quarter note
TRIPLET_STEPS = 12  # a quarter note, where triplets have steps of their own
BAR = 16  # steps

ONSETS = "onsets in all"
BENT = "onsets moved by more than a quarter of a step"
TRIPLETS = f"of these near a step of {TRIPLET_STEPS} a quarter note (triplets)"
ONLY_DRUMS = "no instrument but drums plays"
OUT_OF_RANGE = f"notes left out: outside pitches {LOWEST} to {HIGHEST}"


class Note(NamedTuple):
    """One note of a line, in steps."""

    start: int
    end: int
    pitch: int


class Line(NamedTuple):
    """What one instrument plays under one time signature, one note at a time; steps count from a bar line."""

    instrument: int  # its place among the song's tracks
    notes: NDArray[np.int64]  # [note 3] as Note
    bar: int = BAR  # steps
    meter: Meter = COMMON
    bar_line: int = 0  # the tick that its steps count from


class Transcription(NamedTuple):
    """A song's lines, what its metres cost by rule (in windows), and what else was counted (as the names say)."""

    lines: list[Line]
    dropped: Counter[str]
    counted: Counter[str]

    def tune(self) -> list[Line]:
        """Return the lines of the instrument with the most notes, the first of equals."""
        notes: Counter[int] = Counter()
        for line in self.lines:
            notes[line.instrument] += len(line.notes)
        best = max(notes, key=lambda number: (notes[number], -number), default=None)
        return [line for line in self.lines if line.instrument == best]


def transcribe(
    midi: pretty_midi.PrettyMIDI | Song,
    meter: str = "strict",
    bars: int = 2,
    *,
    steps_per_quarter: int = STEPS_A_BEAT,
    tracks: Tracks | None = None,
    split_on_tempo: bool = False,
) -> Transcription:
    """Return the lines of the chosen tracks, of all but drums by default, after MusicVAE (Roberts et al., 2018).

    Times are counted in the song's own beats, so tempo changes move nothing. Of several notes on one step the highest
    stays; a later onset ends the note before it. Bars begin where time signatures say (see `stretches`); music in
    metres that `meter` leaves out is counted in windows of `bars` bars.
    """
    song = song_of(midi)
    parts = stretches(song, meter, steps_per_quarter, split_on_tempo)
    result = Transcription([], Counter(), Counter())
    # all tracks at once: a file may have thousands of short ones
    notes = in_range(_numbered((tracks or Tracks()).chosen(song)), result.counted)
    places = places_of(notes[:, START], np.array([part.start for part in parts]), song.resolution, steps_per_quarter)
    ends, bar_lines = np.array([(part.end, part.bar_line) for part in parts]).T
    times = np.minimum(notes[:, [START, END]], ends[places, None]) - bar_lines[places, None]
    refused = np.array([bool(part.refusal) for part in parts])[places]
    for rows in _runs(np.flatnonzero(refused), notes[:, NUMBER], places):
        stretch = parts[places[rows[0]]]
        windows = refused_windows(stretch, times[rows, 0], song.resolution, bars, steps_per_quarter)
        result.dropped[stretch.refusal] += windows

    kept = np.flatnonzero(~refused)
    if not len(kept):
        return result
    steps, moved = on_grid(times[kept], song.resolution, steps_per_quarter)
    runs = _runs(kept, notes[:, NUMBER], places)
    for rows, line in zip(runs, _skylines(steps, notes[kept, PITCH], [len(rows) for rows in runs]), strict=True):
        stretch, number = parts[places[rows[0]]], int(notes[rows[0], NUMBER])
        result.lines.append(Line(number, line, int(stretch.bar), stretch.meter, stretch.bar_line))
    bent = times[kept[4 * moved[:, 0] > song.resolution], 0]
    result.counted[ONSETS] += len(kept)
    result.counted[BENT] += len(bent)
    if len(bent) and steps_per_quarter < TRIPLET_STEPS:
        missed = on_grid(bent, song.resolution, TRIPLET_STEPS)[1]
        result.counted[TRIPLETS] += int((4 * missed <= song.resolution).sum())
    return result


def _numbered(tracks: Sequence[tuple[int, Track]]) -> NDArray[np.int64]:
    """Return the note tables of tracks below one another, with the track's number in the column NUMBER."""
    tables = [np.empty((0, NUMBER), np.int64), *(track.notes for _, track in tracks)]
    numbers = np.repeat([number for number, _ in tracks], [len(track.notes) for _, track in tracks])
    return np.column_stack([np.concatenate(tables), numbers.astype(np.int64)])


def _runs(rows: NDArray[np.int64], *columns: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Cut these rows of a table wherever one of the columns changes."""
    changes = np.any([np.diff(column[rows]) != 0 for column in columns], axis=0)
    return np.split(rows, np.flatnonzero(changes) + 1) if len(rows) else []


def places_of(
    ticks: NDArray[np.int64], starts: NDArray[np.int64], resolution: int, steps_per_quarter: int = STEPS_A_BEAT
) -> NDArray[np.int64]:
    """Return in which stretch each onset stands, given where they start."""
    # a note up to half a step early belongs to the bar line that it rounds to
    reached = (2 * steps_per_quarter * ticks + resolution) // (2 * steps_per_quarter)
    return np.maximum(np.searchsorted(starts, reached, side="right") - 1, 0)


def refused_windows(
    stretch: Stretch, ticks: NDArray[np.int64], resolution: int, bars: int, steps_per_quarter: int = STEPS_A_BEAT
) -> int:
    """Return how many windows onsets span, in ticks from the bar line of a stretch that is left out."""
    onsets = ticks * steps_per_quarter * stretch.bar.denominator
    first, last = (int(tick) // (resolution * stretch.bar.numerator) for tick in (onsets.min(), onsets.max()))
    return max(1, last - first + 2 - bars)


def in_range(notes: NDArray[np.int64], counted: Counter[str]) -> NDArray[np.int64]:
    """Return the rows of a note table whose pitches have a class; count the others."""
    heard = (notes[:, PITCH] >= LOWEST) & (notes[:, PITCH] <= HIGHEST)
    counted[OUT_OF_RANGE] += int((~heard).sum())
    return notes[heard]


def on_grid(
    ticks: NDArray[np.int64], resolution: int, steps_per_quarter: int = STEPS_A_BEAT
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the nearest step to each tick, and how far it is, in parts of a step of which `resolution` make one.

    Halves go up, everywhere, where round() would send every other one down.
    """
    steps = (2 * steps_per_quarter * ticks + resolution) // (2 * resolution)
    return steps, np.abs(steps_per_quarter * ticks - resolution * steps)


def skyline(notes: NDArray[np.int64], keep_first: bool = False) -> NDArray[np.int64]:
    """Return one note a step at most, the highest, each ending at the latest where the next begins.

    Of equal pitches the longest stays, or with `keep_first` the one that stands first.
    """
    start, end, pitch = notes.T
    end = np.maximum(end, start + 1)
    order = np.lexsort((-np.arange(len(notes)) if keep_first else end, pitch, start))  # what stays is last
    line: NDArray[np.int64] = np.stack([start, end, pitch], axis=1)[order]
    line = line[np.append(line[1:, 0] != line[:-1, 0], True)]
    line[:-1, 1] = np.minimum(line[:-1, 1], line[1:, 0])
    return line


def _skylines(steps: NDArray[np.int64], pitches: NDArray[np.int64], sizes: Sequence[int]) -> list[NDArray[np.int64]]:
    """Return the `skyline` of each of several groups of notes that stand one after another, at least one note each."""
    apart = int(steps.max()) + 2  # no group reaches the steps of the next
    group = np.repeat(np.arange(len(sizes)), sizes)
    line = skyline(np.column_stack([steps + apart * group[:, None], pitches]))
    group = line[:, 0] // apart
    line[:, :2] -= apart * group[:, None]
    return np.split(line, np.flatnonzero(np.diff(group)) + 1)


def phrases(notes: NDArray[np.int64], silence: float = BAR) -> Iterator[NDArray[np.int64]]:
    """Cut a line wherever it is silent for so many steps or more."""
    cuts = (np.flatnonzero(notes[1:, 0] - notes[:-1, 1] >= silence) + 1).tolist()
    for first, last in pairwise([0, *cuts, len(notes)]):
        yield notes[first:last]


def to_events(notes: Sequence[Note] | NDArray[np.int64], bar: int = BAR) -> NDArray[np.uint8]:
    """Return a line's classes in whole bars, from the bar of its first note on."""
    starts, ends, pitches = np.asarray(notes).T
    first = starts[0] // bar * bar
    bars = -(-(ends[-1] - first) // bar)
    events = np.full(bars * bar + 1, NO_EVENT, np.uint8)
    events[ends - first] = NOTE_OFF
    events[starts - first] = FIRST_NOTE + pitches - LOWEST  # after the ends: an onset needs no note off before it
    return events[:-1]


def to_notes(events: NDArray[Any]) -> list[Note]:
    """Return the notes that classes spell out of silence, the last one ending where they end at the latest.

    Raises ValueError for a class that is none.
    """
    if len(events) and not 0 <= events.min() <= events.max() < VOCAB_SIZE:
        raise ValueError(f"classes must be from 0 to {VOCAB_SIZE - 1}, got {events.min()} to {events.max()}")
    return [Note(*row) for row in zip(*(column.tolist() for column in note_columns(events)), strict=True)]


def note_columns(events: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the starts, ends and pitches of the notes that classes spell."""
    changes = np.flatnonzero(events)
    struck = events[changes] >= FIRST_NOTE
    starts, ends = changes[struck], np.append(changes[1:], len(events))[struck]
    return starts, ends, events[starts].astype(np.int64) + LOWEST - FIRST_NOTE


def cut(events: NDArray[np.uint8], size: int, stride: int) -> NDArray[np.uint8]:
    """Return [window size]: windows at every `stride` steps that hold all of a line, with rest beyond its end.

    They need nothing before them: a note held over a start is struck again there, a note off there ends nothing and
    goes.
    """
    count = max(0, -((size - len(events)) // stride)) + 1
    line = np.full(max((count - 1) * stride + size, len(events) + 1), NO_EVENT, np.uint8)
    line[: len(events)] = events
    steps, starts = np.arange(len(line)), stride * np.arange(count)
    latest = line[np.maximum.accumulate(steps * (line != NO_EVENT))]  # the last event up to each step
    line[len(events)] = NOTE_OFF if latest[-1] >= FIRST_NOTE else NO_EVENT
    windows: NDArray[np.uint8] = line[starts[:, None] + steps[:size]]
    windows[:, 0] = np.where(latest[starts] >= FIRST_NOTE, latest[starts], NO_EVENT)
    return windows
