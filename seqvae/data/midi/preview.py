"""Melodies to look at and to listen to."""

import math
from collections.abc import Sequence

import numpy as np
import pretty_midi
from numpy.typing import NDArray

from seqvae.data.midi.melody import BAR, STEPS_A_BEAT, Note, on_grid
from seqvae.data.midi.notes import END, PITCH, START, song_of

_STEP, _SEMITONE, _GAP = 6, 4, 4  # pixels
_MAX_STEPS = 32 * BAR  # of one item shown
_LINE, _BEAT_LINE, _FRAME = (200, 200, 205), (236, 236, 240), (90, 90, 100)
_HELD, _STRUCK = (122, 170, 226), (24, 72, 150)


def piano_rolls(items: Sequence[pretty_midi.PrettyMIDI], columns: int | None = None) -> NDArray[np.uint8]:
    """Return [height width 3]: a roll an item, in reading order, side by side where they are narrow."""
    rolls: list[list[Note]] = []
    for item in items:
        song = song_of(item)
        notes = [track.notes for track in song.tracks if not track.is_drum]
        steps = [on_grid(part[:, [START, END]], song.resolution)[0].tolist() for part in notes]
        pitches = [part[:, PITCH].tolist() for part in notes]
        placed = [Note(s[0], s[1], p) for rows in zip(steps, pitches, strict=True) for s, p in zip(*rows, strict=True)]
        rolls.append([note for note in placed if note.start < _MAX_STEPS])
    struck = [note.pitch for roll in rolls for note in roll] or [60]
    low, high = min(struck) - 2, max([*struck, min(struck) + 12]) + 2
    steps_shown = min(max([BAR, *(note.end for roll in rolls for note in roll)]), _MAX_STEPS)
    steps_shown = -(-steps_shown // BAR) * BAR
    height, width = (high - low + 1) * _SEMITONE, steps_shown * _STEP
    columns = columns or min(max(round(math.sqrt(len(rolls) * height / width * 1.5)), 1), max(len(rolls), 1))
    rows = max(-(-len(rolls) // columns), 1)
    image = np.full((rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, 3), 255, np.uint8)
    for place, roll in enumerate(rolls):
        top, left = (_GAP + (place // columns) * (height + _GAP), _GAP + (place % columns) * (width + _GAP))
        image[top - 1 : top + height + 1, left - 1 : left + width + 1] = _FRAME
        panel = image[top : top + height, left : left + width]
        panel[:] = 255
        panel[:, :: STEPS_A_BEAT * _STEP] = _BEAT_LINE
        panel[:, :: BAR * _STEP] = _LINE
        for note in roll:
            y, x = (high - note.pitch) * _SEMITONE, note.start * _STEP
            panel[y : y + _SEMITONE, x : max(note.end * _STEP - 1, x + _STEP - 1)] = _HELD
            panel[y : y + _SEMITONE, x : x + _STEP - 1] = _STRUCK
    return image


def play(items: Sequence[pretty_midi.PrettyMIDI], rate: int = 22050, seconds: float = 30.0) -> NDArray[np.float32]:
    """Return the items' beginnings as sine tones, one after another, with a peak of 0.8."""
    sounds = []
    for item in items:
        short = pretty_midi.PrettyMIDI()
        for part in (part for part in item.instruments if not part.is_drum):
            line = pretty_midi.Instrument(part.program)
            heard = (note for note in part.notes if note.start < seconds)
            line.notes = [pretty_midi.Note(n.velocity, n.pitch, n.start, min(n.end, seconds)) for n in heard]
            short.instruments += [line] if line.notes else []
        if short.instruments:
            sounds.append(np.asarray(short.synthesize(rate, normalize=False), np.float32))
        sounds.append(np.zeros(rate // 2, np.float32))
    sound = np.concatenate(sounds or [np.zeros(0, np.float32)])
    peak = float(np.abs(sound).max(initial=0.0))
    return sound * np.float32(0.8 / peak) if peak else sound
