"""Who plays melody, bass and drums in a song, and windows of all three side by side."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import islice, pairwise, product
from typing import Any, NamedTuple

import numpy as np
import pretty_midi
from numpy.typing import NDArray

from seqvae.data.midi.drums import NO_DRUMS, beat_key, beats_of, count_strokes
from seqvae.data.midi.drums import cut as cut_beat
from seqvae.data.midi.extracting import Extracted, tune_key, with_notes
from seqvae.data.midi.melody import BAR, FIRST_NOTE, NOTE_OFF, Line, cut, to_events, transcribe
from seqvae.data.midi.notes import Song, song_of
from seqvae.data.midi.tracks import Tracks

MELODY, BASS, DRUMS = range(3)  # the parts of a step
PARTS = ("melody", "bass", "drums")
PROGRAMS = (range(32), range(32, 40))  # of melody and bass, counted from 0 as General MIDI's bytes are
MOST_TRIOS = 64  # of one stretch of a song; a hundred melodies by a hundred basses would be thousands
MOST_SILENT_BARS = 2  # between bars that a part plays in, which then count as played in

_MISSING = ("no melody plays (programs 0 to 31)", "no bass plays (programs 32 to 39)", NO_DRUMS)
TOO_MANY = f"trios left out: beyond the first {MOST_TRIOS} of a stretch of a song"
_NEVER_TOGETHER = "melody, bass and drums never play together"


class Voice(NamedTuple):
    """One part as one instrument plays it under one time signature."""

    instrument: int  # its place among the song's tracks; of drums, which are one kit, -1
    events: NDArray[Any]  # [step] its classes in whole bars, of all voices of a section as many
    played: NDArray[np.bool_]  # [bar]


class Section(NamedTuple):
    """Who plays each part under one time signature."""

    voices: tuple[list[Voice], list[Voice], list[Voice]]


class Sections(NamedTuple):
    """A song's sections, what its metres cost by rule (in windows), what else was counted, and the key of its music."""

    sections: list[Section]
    dropped: Counter[str]
    counted: Counter[str]
    key: str


def sections_of(midi: pretty_midi.PrettyMIDI | Song, meter: str = "strict", bars: int = 2) -> Sections:
    """Return who plays melody, bass and drums in each stretch of a song; other programs are left out."""
    song = song_of(midi)
    pitched = Tracks(programs=tuple((programs.start, programs.stop - 1) for programs in PROGRAMS))
    lines, dropped, counted = transcribe(song, meter, bars, tracks=pitched)
    beats, of_drums, drums_counted = beats_of(song, meter, bars)
    found: defaultdict[int, tuple[list[Voice], list[Voice], list[Voice]]] = defaultdict(lambda: ([], [], []))
    for line in lines:
        role = _role(song.tracks[line.instrument].program)
        assert role is not None
        found[line.bar_line][role].append(_voice(line))
    for bar_line, combinations in beats:
        struck = np.bitwise_or.reduce(combinations.reshape(-1, BAR), axis=1) > 0
        found[bar_line][DRUMS].append(Voice(-1, combinations, _fill(struck)))
    key = f"{tune_key(to_events(line.notes) for line in lines)}:{beat_key(beat.combinations for beat in beats)}"
    sections = [_section(found[bar_line]) for bar_line in sorted(found)]
    return Sections(sections, dropped + of_drums, counted + drums_counted, key)


def _voice(line: Line) -> Voice:
    """Return a line's classes from the first bar line on, and in which bars one of its notes sounds."""
    starts, ends, _ = line.notes.T
    events = np.concatenate([np.zeros(starts[0] // BAR * BAR, np.uint8), to_events(line.notes)])
    played = np.zeros(len(events) // BAR, np.bool_)
    for start, end in zip(starts // BAR, (ends - 1) // BAR, strict=True):
        played[start : end + 1] = True
    return Voice(line.instrument, events, _fill(played))


def _section(voices: tuple[list[Voice], list[Voice], list[Voice]]) -> Section:
    """Return the voices with rests up to where the longest of them ends."""
    length = max(len(voice.events) for part in voices for voice in part)
    melodies, basses, drums = ([_extended(voice, length, role) for voice in part] for role, part in enumerate(voices))
    return Section((melodies, basses, drums))


def _extended(voice: Voice, length: int, role: int) -> Voice:
    events = np.zeros(length, voice.events.dtype)
    events[: len(voice.events)] = voice.events
    struck = np.flatnonzero(voice.events)
    if role != DRUMS and len(voice.events) < length and voice.events[struck[-1]] >= FIRST_NOTE:
        events[len(voice.events)] = NOTE_OFF
    return voice._replace(events=events, played=np.pad(voice.played, (0, length // BAR - len(voice.played))))


def _role(program: int) -> int | None:
    """Return the pitched part that a program plays, if any."""
    return next((role for role, programs in enumerate(PROGRAMS) if program in programs), None)


def _fill(played: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the bars with short silences between played ones filled."""
    places = np.flatnonzero(played)
    filled = played.copy()
    for before, after in pairwise(places):
        if after - before - 1 <= MOST_SILENT_BARS:
            filled[before:after] = True
    return filled


def cut_trio(trio: Sequence[Voice | None], size: int, stride: int, first: int = 0) -> NDArray[np.uint16]:
    """Return [window step part] from a step on: windows at every `stride` steps; a part that nobody plays is a rest."""
    columns = {
        part: (cut_beat if part == DRUMS else cut)(voice.events[first:], size, stride)
        for part, voice in enumerate(trio)
        if voice is not None
    }
    windows = np.zeros((len(next(iter(columns.values()))), size, len(PARTS)), np.uint16)
    for part, column in columns.items():
        windows[:, :, part] = column
    return windows


def count_notes(windows: NDArray[np.uint16]) -> NDArray[np.int64]:
    """Return how many notes and strokes each window [window step part] holds."""
    pitched: NDArray[np.int64] = np.count_nonzero(windows[:, :, :DRUMS] >= FIRST_NOTE, axis=(1, 2))
    return pitched + count_strokes(windows[:, :, DRUMS])


def trio_windows(song: Song, *, bars: int = 2, meter: str = "strict", min_notes: int = 3) -> Extracted:
    """Return every window that starts on a bar and in all bars of which all three parts play.

    A part plays on in a silence of up to two bars. Where several instruments can play a part, each of them does, in the
    first 64 trios that they make. Windows with fewer than `min_notes` notes and strokes are left out.
    """
    sections, dropped, counted, key = sections_of(song, meter, bars)
    windows = []
    for section in sections:
        counted[TOO_MANY] += max(0, math.prod(map(len, section.voices)) - MOST_TRIOS)
        for trio in islice(product(*section.voices), MOST_TRIOS):
            together = np.logical_and.reduce([voice.played for voice in trio])
            chosen = [bar for bar in range(len(together) - bars + 1) if together[bar : bar + bars].all()]
            if chosen:
                part = cut_trio(trio, bars * BAR, BAR)[chosen]
                windows += with_notes(part, count_notes(part), min_notes, dropped)
    silent = [missing for part, missing in enumerate(_MISSING) if not any(one.voices[part] for one in sections)]
    return Extracted(windows, key, dropped, counted, [*silent, _NEVER_TOGETHER][0])


def leading_voices(sections: Sequence[Section]) -> tuple[int, ...]:
    """Return the instrument with the most notes of each part, the first of equals; -1 where nobody plays it."""
    leading = []
    for part in range(len(PARTS)):
        notes: Counter[int] = Counter()
        for voice in (voice for section in sections for voice in section.voices[part]):
            notes[voice.instrument] += int((voice.events >= FIRST_NOTE).sum())
        leading.append(max(notes, key=lambda number: (notes[number], -number), default=-1))
    return tuple(leading)
