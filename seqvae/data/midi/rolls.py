"""Songs as a picture: piano rolls with bar lines, darker where a note is struck, drums on rows of their own below."""

import math
from collections.abc import Sequence

import numpy as np
import pretty_midi
from numpy.typing import NDArray

from seqvae.data.midi.percussion import ROWS, drum_row
from seqvae.data.midi.sheet import Sheet, Sound, sheet_of

_SEMITONE, _DRUM, _GAP = 4, 7, 4  # pixels
_QUARTER, _NARROW_QUARTER, _MOST_WIDE = 24, 12, 64  # pixels a quarter note, where more than 64 of them are shown, too
_LINE, _BEAT_LINE, _FRAME, _BLACK_KEY = (200, 200, 205), (236, 236, 240), (90, 90, 100), (248, 248, 251)

COLOURS = (  # held, struck: of the first voice, the second, ...; told apart by those who see few colours, too
    ((122, 170, 226), (24, 72, 150)),
    ((245, 183, 120), (186, 88, 0)),
    ((140, 205, 170), (0, 110, 75)),
    ((222, 160, 205), (140, 40, 110)),
    ((205, 200, 110), (120, 110, 0)),
    ((150, 205, 225), (0, 105, 140)),
)
DRUM_COLOUR = (70, 70, 80)

Pixels = NDArray[np.uint8]


def piano_rolls(items: Sequence[pretty_midi.PrettyMIDI], columns: int | None = None) -> Pixels:
    """Return [height width 3]: a roll an item, in reading order, side by side where they are narrow.

    All have one scale of pitch and of time. Drums stand below, a row for each kind that any item strikes.
    """
    sheets = [sheet_of(item) for item in items]
    keys = {sound.pitch for sheet in sheets for sound in sounds_of(sheet, drums=False)}
    struck = {drum_row(sound.pitch) for sheet in sheets for sound in sounds_of(sheet, drums=True)}
    drums = [row for row in ROWS if row in struck]
    low, high = (min(keys) - 2, max(max(keys), min(keys) + 12) + 2) if keys else (58, 74)
    keyboard = (high - low + 1) * _SEMITONE if keys or not drums else 0
    beats = max((sheet.end for sheet in sheets), default=4.0)
    quarter = _QUARTER if beats <= _MOST_WIDE else _NARROW_QUARTER
    height, width = keyboard + len(drums) * _DRUM, math.ceil(beats * quarter)
    columns = columns or min(max(round(math.sqrt(len(sheets) * height / width * 1.5)), 1), max(len(sheets), 1))
    rows = max(-(-len(sheets) // columns), 1)
    image = np.full((rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, 3), 255, np.uint8)
    for place, sheet in enumerate(sheets):
        top, left = (_GAP + (place // columns) * (height + _GAP), _GAP + (place % columns) * (width + _GAP))
        image[top - 1 : top + height + 1, left - 1 : left + width + 1] = _FRAME
        panel = image[top : top + height, left : left + width]
        _ground(panel[:keyboard], high)
        panel[keyboard:] = 255
        _lines(panel, sheet, quarter)
        _notes(panel[:keyboard], sheet, quarter, high)
        _strokes(panel[keyboard:], sheet, quarter, drums)
    return image


def sounds_of(sheet: Sheet, *, drums: bool) -> list[Sound]:
    """Return what the drums, or all other voices, play."""
    return [sound for voice in sheet.voices if voice.is_drum == drums for sound in voice.sounds]


def _ground(panel: Pixels, high: int) -> None:
    for row in range(panel.shape[0] // _SEMITONE):
        black = (high - row) % 12 in (1, 3, 6, 8, 10)
        panel[row * _SEMITONE : (row + 1) * _SEMITONE] = _BLACK_KEY if black else (255, 255, 255)


def _lines(panel: Pixels, sheet: Sheet, quarter: int) -> None:
    """Draw beats, then bars over them; the ground beyond the song's last bar is the frame's, as if it were cut off."""
    panel[:, math.ceil(sheet.end * quarter) :] = _LINE
    ends = [*(bar.start for bar in sheet.bars[1:]), sheet.end]
    for bar, end in zip(sheet.bars, ends, strict=True):
        for beat in np.arange(bar.start, end - 1e-6, bar.beat):
            panel[:, round(beat * quarter)] = _BEAT_LINE
    for bar in sheet.bars:
        panel[:, round(bar.start * quarter)] = _LINE


def _notes(panel: Pixels, sheet: Sheet, quarter: int, high: int) -> None:
    pitched = [voice for voice in sheet.voices if not voice.is_drum]
    for place, voice in reversed(list(enumerate(pitched))):  # the first voice lies on top
        held, struck = COLOURS[place % len(COLOURS)]
        for sound in voice.sounds:
            top, left, right = (high - sound.pitch) * _SEMITONE, round(sound.start * quarter), sound.end * quarter
            row = panel[top : top + _SEMITONE]
            row[:, left : max(round(right) - 1, left + 1)] = held
            row[:, left : max(min(round(right) - 1, left + quarter // 4 - 1), left + 1)] = struck


def _strokes(panel: Pixels, sheet: Sheet, quarter: int, drums: Sequence[str]) -> None:
    for row in range(1, len(drums)):
        panel[row * _DRUM] = np.minimum(panel[row * _DRUM], np.uint8(236))
    for sound in sounds_of(sheet, drums=True):
        top, left = drums.index(drum_row(sound.pitch)) * _DRUM, round(sound.start * quarter)
        faint = 1 - min(sound.velocity, 127) / 127
        shade = [round(value + 0.6 * faint * (255 - value)) for value in DRUM_COLOUR]
        panel[top + 1 : top + _DRUM, left : left + quarter // 4 - 1] = shade
