"""Songs as sound: a few partials under an envelope for each note, sweeps and noise for drums; numpy alone."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pretty_midi
from numpy.typing import NDArray

from seqvae.data.midi.percussion import ROWS, drum_row
from seqvae.data.midi.sheet import Sheet, sheet_of

RATE = 22050  # samples a second
PEAK, LOUD = 0.8, 0.15  # the most, and the root of the mean square at most: a flute is as loud as a piano
PAUSE = 0.5  # seconds between songs
_MOST_SECONDS, _MOST_OF_ONE = 600.0, 45.0  # of all songs, of one
_MOST_AT_ONCE = 48  # notes; a file may pile up thousands
_FADE = 0.02  # seconds, at the end of a note and where a song is cut off

Samples = NDArray[np.float32]


class Timbre(NamedTuple):
    """How a family of instruments sounds."""

    partials: tuple[float, ...]  # amplitudes of the fundamental, its octave, ...
    attack: float  # seconds
    decay: float  # seconds until a held note has lost 63 %; 0 where it stays


_STRUCK = Timbre((1.0, 0.45, 0.25, 0.12, 0.06), 0.004, 0.7)
_BOWED = Timbre((1.0, 0.5, 0.33, 0.25, 0.15, 0.1), 0.05, 0.0)
_BLOWN = Timbre((1.0, 0.3, 0.12, 0.05), 0.03, 0.0)
_LOW = Timbre((1.0, 0.6, 0.25, 0.1), 0.006, 1.0)
FAMILIES = (  # of General MIDI's programs, eight in each
    _STRUCK,  # piano
    Timbre((1.0, 0.1, 0.0, 0.3), 0.002, 0.5),  # chromatic percussion
    Timbre((1.0, 0.6, 0.4, 0.3), 0.02, 0.0),  # organ
    Timbre((1.0, 0.5, 0.35, 0.2, 0.1), 0.003, 0.5),  # guitar
    _LOW,
    _BOWED,
    _BOWED,  # ensemble
    Timbre((1.0, 0.8, 0.6, 0.35, 0.2), 0.03, 0.0),  # brass
    Timbre((1.0, 0.2, 0.5, 0.15, 0.25), 0.03, 0.0),  # reed
    _BLOWN,  # pipe
    *[_BLOWN] * 3,  # synthesizers
    *[_STRUCK] * 3,  # the world's, percussion, noises
)


class Drum(NamedTuple):
    """How a drum sounds: a tone that falls by half, and noise."""

    tone: float  # Hz; 0 for none
    noise: float  # its share
    decay: float  # seconds until it has lost 63 %


KIT = {
    "crash": Drum(0, 0.7, 0.35),
    "ride": Drum(0, 0.5, 0.18),
    "open hi-hat": Drum(0, 0.5, 0.14),
    "closed hi-hat": Drum(0, 0.5, 0.03),
    "high tom": Drum(240, 0.1, 0.12),
    "mid tom": Drum(180, 0.1, 0.14),
    "low tom": Drum(130, 0.1, 0.16),
    "snare": Drum(220, 0.8, 0.07),
    "kick": Drum(120, 0.05, 0.13),
    "other": Drum(400, 0.4, 0.05),
}
assert KIT.keys() == {*ROWS}


def play(items: Sequence[pretty_midi.PrettyMIDI], rate: int = RATE, seconds: float = _MOST_SECONDS) -> Samples:
    """Return the songs one after another in whole bars, a pause behind each, at one loudness without clipping.

    Where they would be longer than `seconds` together, or one of them than 45 of them, only beginnings are heard.
    """
    share = min(_MOST_OF_ONE, seconds / max(len(items), 1))
    parts = [part for item in items for part in (_render(sheet_of(item), rate, share), _silence(PAUSE, rate))]
    sound = np.concatenate(parts or [_silence(0, rate)])
    peak = float(np.abs(sound).max(initial=0.0))
    if not peak:
        return sound
    loudness = float(np.sqrt(np.mean(np.square(sound, dtype=np.float64))))
    return sound * np.float32(min(PEAK / peak, LOUD / loudness))


def _silence(seconds: float, rate: int) -> Samples:
    return np.zeros(round(seconds * rate), np.float32)


def _render(sheet: Sheet, rate: int, most: float) -> Samples:
    length = min(sheet.seconds(sheet.end), most)
    song = _silence(length, rate)
    notes = sorted(((note, voice) for voice in sheet.voices for note in voice.sounds), key=lambda one: one[0].start)
    sounding: list[int] = []
    for note, voice in notes:
        start, end = (round(sheet.seconds(beat) * rate) for beat in (note.start, note.end))
        sounding = [until for until in sounding if until > start]
        if start >= len(song) or len(sounding) == _MOST_AT_ONCE:
            continue
        sounding.append(end)
        if voice.is_drum:
            sound = _stroke(drum_row(note.pitch), rate)
        else:
            sound = _tone(voice.program, note.pitch, max(min(end, len(song)) - start, 1), rate)
        sound = sound[: len(song) - start]
        song[start : start + len(sound)] += np.float32(note.velocity / 127) * sound
    fade = min(round(_FADE * rate), len(song))
    song[len(song) - fade :] *= np.linspace(1, 0, fade, dtype=np.float32)  # or it would end with a click
    return song


@lru_cache(maxsize=64)
def _tone(program: int, pitch: int, length: int, rate: int) -> Samples:
    """Return a note that is held for `length` samples, and its release."""
    timbre = FAMILIES[program // 8 % len(FAMILIES)]
    fade = round(_FADE * rate)
    time = np.arange(length + fade) / rate
    frequency = float(pretty_midi.note_number_to_hz(pitch))
    phase = 2 * np.pi * frequency * time  # in float64: a float32 would be off key after seconds
    before, partial = np.zeros(len(phase), np.float32), np.sin(phase).astype(np.float32)
    twice_cosine = 2 * np.cos(phase).astype(np.float32)
    tone = np.zeros_like(partial)
    for number, amplitude in enumerate(timbre.partials, 1):
        if number * frequency < rate / 2:  # one beyond would come back as another pitch
            tone += np.float32(amplitude) * partial
            before, partial = partial, twice_cosine * partial - before  # sin((n + 1) x) from the two before it
    time = time.astype(np.float32)
    envelope = np.minimum(time / np.float32(timbre.attack), 1)
    if timbre.decay:
        envelope *= np.exp(time / np.float32(-timbre.decay))
    envelope[length:] *= np.linspace(1, 0, fade, dtype=np.float32)
    return tone * envelope / np.float32(sum(timbre.partials))


@lru_cache(maxsize=len(ROWS))
def _stroke(row: str, rate: int) -> Samples:
    drum = KIT[row]
    time = np.arange(round(6 * drum.decay * rate)) / rate
    noise = np.diff(np.random.default_rng(0).uniform(-1, 1, len(time) + 1)) / 2  # differences: the bass goes
    sweep = drum.tone * (0.5 + 0.5 * np.exp(-time / 0.04))
    tone = np.sin(2 * np.pi * np.cumsum(sweep) / rate) if drum.tone else 0.0
    sound = (drum.noise * noise + (1 - drum.noise) * tone) * np.exp(-time / drum.decay)
    return sound.astype(np.float32)
