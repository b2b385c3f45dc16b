"""A song as it is drawn, played and written down: voices in quarter notes, bars of its own metre, a clock."""

import math
from bisect import bisect_right
from typing import NamedTuple

import pretty_midi

from seqvae.data.midi.notes import Song, song_of

MOST_BEATS = 128  # quarter notes of one song shown: 32 bars of 4/4
_LONGEST_NAME = 40
_SAME = 1e-6  # quarter notes; sums of bars may miss a note's end by rounding


class Sound(NamedTuple):
    """One note; start and end in quarter notes."""

    start: float
    end: float
    pitch: int
    velocity: int


class Voice(NamedTuple):
    """What one instrument plays, in order."""

    name: str
    program: int
    is_drum: bool
    sounds: list[Sound]


class Bar(NamedTuple):
    """Where a bar begins, in quarter notes, and its time signature."""

    start: float
    over: int
    under: int

    @property
    def beat(self) -> float:
        """The length of a beat in quarter notes; three eighths are one beat of 6/8, 9/8 and 12/8."""
        compound = self.under >= 8 and self.over > 3 and self.over % 3 == 0
        return (12 if compound else 4) / self.under


class Sheet(NamedTuple):
    """The beginning of a song in whole bars."""

    voices: list[Voice]
    bars: list[Bar]
    end: float  # where the last bar ends, in quarter notes
    goes_on: bool  # whether there is more music than this
    clock: list[tuple[float, float]]  # (quarter note, second) pairs, straight lines between them, the last one at `end`

    def seconds(self, beat: float) -> float:
        """Return when a quarter note comes."""
        place = min(max(bisect_right(self.clock, (beat, math.inf)), 1), len(self.clock) - 1)
        (before, since), (after, until) = self.clock[place - 1 : place + 1]
        return since + (until - since) * (beat - before) / (after - before)


def sheet_of(midi: pretty_midi.PrettyMIDI, most: float = MOST_BEATS) -> Sheet:
    """Return a song's first bars, about `most` quarter notes at the most; its metre is 4/4 until it says another."""
    song, voices = song_of(midi), []
    for part in song.tracks:
        name = "".join(c if c.isprintable() else " " for c in part.name[:_LONGEST_NAME]).strip()
        if not name:
            name = "drums" if part.is_drum else pretty_midi.program_to_instrument_name(part.program).lower()
        timed = ((start / song.resolution, end / song.resolution, *rest) for start, end, *rest in part.notes.tolist())
        voices.append(Voice(name, part.program, part.is_drum, sorted(Sound(*one) for one in timed)))
    last = max((sound.end for voice in voices for sound in voice.sounds), default=0.0)
    bars, end = _bars(song, min(last, most))
    shown = [
        voice._replace(sounds=[s._replace(end=min(s.end, end)) for s in voice.sounds if s.start < end - _SAME])
        for voice in voices
    ]
    return Sheet(shown, bars, end, last > end + _SAME, _clock(song, end))


def _bars(song: Song, last: float) -> tuple[list[Bar], float]:
    """Return the bars that reach `last`, one at least, and where they end; a signature always begins a bar."""
    meters = {0.0: (4, 4)} | {tick / song.resolution: (over, under) for tick, over, under in song.time_signatures}
    changes = sorted(meters)
    bars: list[Bar] = []
    start = 0.0
    for place, change in enumerate(changes):
        over, under = meters[change]
        following = changes[place + 1] if place + 1 < len(changes) else math.inf
        start = change
        while start < following - _SAME and (start < last - _SAME or not bars):
            bars.append(Bar(start, over, under))
            start = min(start + 4 * over / under, following)
        if start >= last - _SAME:
            break
    return bars, start


def _clock(song: Song, end: float) -> list[tuple[float, float]]:
    clock, tempo = [(0.0, 0.0)], song.tempos[0][1]
    for tick, following in [*song.tempos[1:], (math.inf, tempo)]:
        (before, since), beat = clock[-1], min(tick / song.resolution, end)
        clock.append((beat, since + (beat - before) * 60 / tempo))
        if beat == end:
            break
        tempo = following
    return clock
