"""From a song to monophonic lines on a grid of sixteenths, from lines to classes, and back."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pretty_midi
from numpy.typing import NDArray

from seqvae.data.midi.notes import END, PITCH, START, Song, song_of

NO_EVENT, NOTE_OFF, FIRST_NOTE = 0, 1, 2  # classes; FIRST_NOTE + n strikes pitch LOWEST + n
LOWEST, HIGHEST = 21, 108
VOCAB_SIZE = FIRST_NOTE + HIGHEST - LOWEST + 1
STEPS_A_BEAT = 4  # a beat is a quarter note
BAR = 16  # steps
STRICT_METERS = ("4/4", "2/2", "2/4")
METERS = ("strict", "folded")

ONSETS = "onsets in all"
BENT = "onsets moved by more than a quarter of a step"
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
    start: int  # the tick of that bar line


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


def transcribe(midi: pretty_midi.PrettyMIDI | Song, meter: str = "strict", bars: int = 2) -> Transcription:
    """Return the lines of every instrument but drums, after the rules of MusicVAE (Roberts et al., 2018).

    Times are counted in the song's own beats, so tempo changes move nothing. Of several notes on one step the highest
    stays; a later onset ends the note before it. With `meter="strict"` bars begin where time signatures say, and music
    in other metres than 4/4, 2/2 and 2/4 is left out, counted in windows of `bars` bars.
    """
    song = song_of(midi)
    result = Transcription([], Counter(), Counter())
    for number, track in enumerate(song.tracks):
        if track.is_drum:
            continue
        heard = (track.notes[:, PITCH] >= LOWEST) & (track.notes[:, PITCH] <= HIGHEST)
        result.counted[OUT_OF_RANGE] += int((~heard).sum())
        for stretch, part in in_stretches(song, track.notes[heard], meter):
            if stretch.meter in STRICT_METERS:
                steps, bent = on_grid(part[:, [START, END]], song.resolution)
                result.lines.append(Line(number, skyline(np.column_stack([steps, part[:, PITCH]])), stretch.start))
                result.counted[ONSETS] += len(part)
                result.counted[BENT] += int(bent[:, 0].sum())
            else:
                result.dropped.update(left_out(stretch, part, bars, song.resolution))
    return result


def in_stretches(song: Song, notes: NDArray[np.int64], meter: str) -> Iterator[tuple["Stretch", NDArray[np.int64]]]:
    """Yield each stretch of a song in which some of these notes begin, and those, in ticks from its first bar line.

    With `meter="folded"` the song is one stretch in 4/4.
    """
    stretches = [Stretch(0, _NEVER, "4/4")] if meter == "folded" else _stretches(song)
    starts = np.array([stretch.start for stretch in stretches])
    # a note up to half a step early belongs to the bar line that it rounds to
    half_a_step = 2 * STEPS_A_BEAT
    reached = (half_a_step * notes[:, START] + song.resolution) // half_a_step
    places = np.searchsorted(starts, reached, side="right") - 1
    for place in np.unique(places):
        stretch, part = stretches[place], notes[places == place]
        part[:, [START, END]] = np.minimum(part[:, [START, END]], stretch.end) - stretch.start
        yield stretch, part


def left_out(stretch: "Stretch", notes: NDArray[np.int64], bars: int, resolution: int) -> dict[str, int]:
    """Return how many windows a metre that is not kept costs, by the rule that says so."""
    rule = f"time signature {stretch.meter} (strict keeps {', '.join(STRICT_METERS)})"
    return {rule: _count_windows(notes[:, START], stretch.meter, bars, resolution)}


def on_grid(ticks: NDArray[np.int64], resolution: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the nearest step to each tick, and which lie more than a quarter of a step from it.

    Halves go up, everywhere, where round() would send every other one down.
    """
    steps = (2 * STEPS_A_BEAT * ticks + resolution) // (2 * resolution)
    return steps, 4 * np.abs(STEPS_A_BEAT * ticks - resolution * steps) > resolution


_NEVER = 2**62  # ticks


class Stretch(NamedTuple):
    """The music under one time signature, which also sets where bars begin."""

    start: int  # ticks
    end: int
    meter: str


def _stretches(song: Song) -> list[Stretch]:
    """Return the song's stretches; a signature that changes neither bars nor bar lines begins no new one."""
    meters = {0: "4/4", **{tick: f"{over}/{under}" for tick, over, under in song.time_signatures}}
    kept: list[tuple[int, str]] = []
    for tick, meter in meters.items():
        if kept and meter in STRICT_METERS and kept[-1][1] in STRICT_METERS:
            if (tick - kept[-1][0]) % (BAR // STEPS_A_BEAT * song.resolution) == 0:
                continue
        elif kept and meter == kept[-1][1]:
            continue
        kept.append((tick, meter))
    ends = [tick for tick, _ in kept[1:]] + [_NEVER]
    return [Stretch(tick, end, meter) for (tick, meter), end in zip(kept, ends, strict=True)]


def _count_windows(onsets: NDArray[np.int64], meter: str, bars: int, resolution: int) -> int:
    """Return how many windows of `bars` bars of its own metre the notes span, at a stride of one bar."""
    numerator, denominator = map(int, meter.split("/"))
    first, last = (int(tick) * denominator // (4 * resolution * numerator) for tick in (onsets.min(), onsets.max()))
    return max(1, last - first + 2 - bars)


def skyline(notes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return one note a step at most, the highest, each ending at the latest where the next begins."""
    start, end, pitch = notes.T
    notes = notes[np.lexsort((np.maximum(end, start + 1), pitch, start))]  # of equal pitches the longest is last
    line = notes[np.append(notes[1:, 0] != notes[:-1, 0], True)]
    line[:, 1] = np.maximum(line[:, 1], line[:, 0] + 1)
    line[:-1, 1] = np.minimum(line[:-1, 1], line[1:, 0])
    return line


def phrases(notes: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Cut a line wherever it is silent for a bar or longer."""
    yield from np.split(notes, np.flatnonzero(notes[1:, 0] - notes[:-1, 1] >= BAR) + 1)


def to_events(notes: Sequence[Note] | NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return a line's classes in whole bars, from the bar of its first note on."""
    starts, ends, pitches = np.asarray(notes).T
    first = starts[0] // BAR * BAR
    bars = -(-(ends[-1] - first) // BAR)
    events = np.full(bars * BAR + 1, NO_EVENT, np.uint8)
    events[ends - first] = NOTE_OFF
    events[starts - first] = FIRST_NOTE + pitches - LOWEST  # after the ends: an onset needs no note off before it
    return events[:-1]


def to_notes(events: NDArray[Any]) -> list[Note]:
    """Return the notes that classes spell out of silence, the last one ending where they end at the latest.

    Raises ValueError for a class that is none.
    """
    if len(events) and not 0 <= events.min() <= events.max() < VOCAB_SIZE:
        raise ValueError(f"classes must be from 0 to {VOCAB_SIZE - 1}, got {events.min()} to {events.max()}")
    changes = [int(step) for step in np.flatnonzero(events)]
    return [
        Note(start, end, int(events[start]) - FIRST_NOTE + LOWEST)
        for start, end in zip(changes, [*changes, len(events)][1:], strict=True)
        if events[start] >= FIRST_NOTE
    ]


def cut(events: NDArray[np.uint8], start: int, size: int) -> NDArray[np.uint8]:
    """Return `size` steps of a line that need nothing before them, with rest beyond its end.

    A note held over the start is struck again there; a note off there ends nothing and goes.
    """
    window = np.full(size, NO_EVENT, np.uint8)
    part = events[start : start + size]
    window[: len(part)] = part
    earlier = events[:start][events[:start] != NO_EVENT]
    if window[0] == NOTE_OFF:
        window[0] = NO_EVENT
    elif window[0] == NO_EVENT and len(earlier) and earlier[-1] >= FIRST_NOTE:
        window[0] = earlier[-1]
    struck = window[window != NO_EVENT]
    if len(part) < size and len(struck) and struck[-1] >= FIRST_NOTE:
        window[len(part)] = NOTE_OFF
    return window
