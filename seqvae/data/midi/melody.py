"""From a song to monophonic lines on a grid of sixteenths, from lines to classes, and back."""

import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pretty_midi
from numpy.typing import NDArray

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

    instrument: int  # its place among PrettyMIDI.instruments
    notes: list[Note]


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


def transcribe(midi: pretty_midi.PrettyMIDI, meter: str = "strict", bars: int = 2) -> Transcription:
    """Return the lines of every instrument but drums, after the rules of MusicVAE (Roberts et al., 2018).

    Times are counted in the song's own beats, so tempo changes move nothing. Of several notes on one step the highest
    stays; a later onset ends the note before it. With `meter="strict"` bars begin where time signatures say, and music
    in other metres than 4/4, 2/2 and 2/4 is left out, counted in windows of `bars` bars.
    """
    stretches = [_Stretch(0.0, math.inf, "4/4")] if meter == "folded" else _stretches(midi)
    starts = [stretch.start for stretch in stretches]
    result = Transcription([], Counter(), Counter())
    for number, instrument in enumerate(midi.instruments):
        parts: defaultdict[int, list[_Timed]] = defaultdict(list)
        for note in instrument.notes if not instrument.is_drum else []:
            if not LOWEST <= note.pitch <= HIGHEST:
                result.counted[OUT_OF_RANGE] += 1
                continue
            start, end = in_beats(midi, note.start), in_beats(midi, note.end)
            # a note up to half a step early belongs to the bar line that it rounds to
            place = bisect_right(starts, start + 0.5 / STEPS_A_BEAT) - 1
            start, end = (STEPS_A_BEAT * (min(beat, stretches[place].end) - starts[place]) for beat in (start, end))
            parts[place].append(_Timed(start, end, note.pitch))
        for place, part in sorted(parts.items()):
            if stretches[place].meter in STRICT_METERS:
                result.lines.append(Line(number, _skyline(part)))
                result.counted[ONSETS] += len(part)
                result.counted[BENT] += sum(abs(note.start - nearest(note.start)) > 0.25 for note in part)
            else:
                rule = f"time signature {stretches[place].meter} (strict keeps {', '.join(STRICT_METERS)})"
                result.dropped[rule] += _count_windows(part, stretches[place].meter, bars)
    return result


def in_beats(midi: pretty_midi.PrettyMIDI, seconds: float) -> float:
    """Return a time in quarter notes from the start of the song, by its own map of tempos."""
    return int(midi.time_to_tick(seconds)) / int(midi.resolution)


def nearest(steps: float) -> int:
    """Return the nearest step; halves go up, everywhere, where round() would send every other one down."""
    return math.floor(steps + 0.5)


class _Timed(NamedTuple):
    """One note before it is put on the grid; start and end in steps."""

    start: float
    end: float
    pitch: int


class _Stretch(NamedTuple):
    """The music under one time signature, which also sets where bars begin."""

    start: float  # beats
    end: float
    meter: str


def _stretches(midi: pretty_midi.PrettyMIDI) -> list[_Stretch]:
    """Return the song's stretches; a signature that changes neither bars nor bar lines begins no new one."""
    meters = {0: "4/4"}
    for change in sorted(midi.time_signature_changes, key=lambda change: float(change.time)):
        meters[int(midi.time_to_tick(change.time))] = f"{change.numerator}/{change.denominator}"
    kept: list[tuple[int, str]] = []
    for tick, meter in meters.items():
        if kept and meter in STRICT_METERS and kept[-1][1] in STRICT_METERS:
            if (tick - kept[-1][0]) % (BAR // STEPS_A_BEAT * midi.resolution) == 0:
                continue
        elif kept and meter == kept[-1][1]:
            continue
        kept.append((tick, meter))
    beats = [tick / midi.resolution for tick, _ in kept] + [math.inf]
    return [_Stretch(beats[place], beats[place + 1], meter) for place, (_, meter) in enumerate(kept)]


def _count_windows(part: Sequence[_Timed], meter: str, bars: int) -> int:
    """Return how many windows of `bars` bars of its own metre the notes span, at a stride of one bar."""
    numerator, denominator = map(int, meter.split("/"))
    bar = 4 * STEPS_A_BEAT * numerator / denominator
    first, last = min(note.start for note in part), max(note.start for note in part)
    return max(1, int(last // bar - first // bar) + 2 - bars)


def _skyline(part: Iterable[_Timed]) -> list[Note]:
    """Return one note a step at most, the highest, each ending at the latest where the next begins."""
    highest: dict[int, Note] = {}
    for start, end, pitch in part:
        note = Note(nearest(start), max(nearest(end), nearest(start) + 1), pitch)
        rival = highest.get(note.start, note)
        highest[note.start] = max(note, rival, key=lambda one: (one.pitch, one.end))
    notes = [highest[step] for step in sorted(highest)]
    for place in range(len(notes) - 1):
        notes[place] = notes[place]._replace(end=min(notes[place].end, notes[place + 1].start))
    return notes


def phrases(notes: Sequence[Note]) -> Iterator[Sequence[Note]]:
    """Cut a line wherever it is silent for a bar or longer."""
    cuts = [place for place in range(1, len(notes)) if notes[place].start - notes[place - 1].end >= BAR]
    for first, last in zip([0, *cuts], [*cuts, len(notes)], strict=True):
        yield notes[first:last]


def to_events(notes: Sequence[Note]) -> NDArray[np.uint8]:
    """Return a line's classes in whole bars, from the bar of its first note on."""
    first = notes[0].start // BAR * BAR
    bars = -(-(notes[-1].end - first) // BAR)
    events = np.full(bars * BAR + 1, NO_EVENT, np.uint8)
    events[[note.end - first for note in notes]] = NOTE_OFF
    for note in notes:  # after the ends: an onset needs no note off before it
        events[note.start - first] = FIRST_NOTE + note.pitch - LOWEST
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
