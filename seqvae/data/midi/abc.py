"""Songs as ABC, the notation of folk tunes as plain text (abcnotation.com, standard 2.1), one tune an item."""

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import groupby, pairwise
from typing import NamedTuple

import pretty_midi

from seqvae.data.midi.melody import STEPS_A_BEAT
from seqvae.data.midi.sheet import Sheet, Voice, sheet_of

_BARS_A_LINE = 4
_SEXTUPLETS = 6  # parts of a quarter note; with sixteenths they share a grid of twelve
_EXACT, _MOSTLY = 0.02, 0.9  # how near to a grid is on it, and the share of a tune's times there that means it
_LENGTHS = (16, 12, 8, 6, 4, 3, 2, 1)  # sixteenths that one sign can say; a bar's other lengths are tied together

_MAJOR = (0, 2, 4, 5, 7, 9, 11)
_PITCHES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}  # of letters, in semitones
_SHARPS = "FCGDAEB"  # the order in which signatures take them; flats come from the other end
_SIGN = {-1: "_", 0: "=", 1: "^"}


class _Key(NamedTuple):
    """A major key; `sharps` are flats where they are negative."""

    name: str
    sharps: int

    @property
    def scale(self) -> set[int]:
        return {(7 * self.sharps + step) % 12 for step in _MAJOR}

    @property
    def signature(self) -> dict[str, int]:
        """What the signature makes of each letter, in semitones."""
        place = {letter: number for number, letter in enumerate(_SHARPS)}
        return {letter: (place[letter] < self.sharps) - (6 - place[letter] < -self.sharps) for letter in _PITCHES}


_KEYS = tuple(  # those with the fewest accidentals first
    _Key(name, sharps)
    for name, sharps in zip(
        ("C", "G", "F", "D", "Bb", "A", "Eb", "E", "Ab", "B", "Db", "F#"),
        (0, 1, -1, 2, -2, 3, -3, 4, -4, 5, -5, 6),
        strict=True,
    )
)


class _Piece(NamedTuple):
    """One sign: what sounds from one change to the next."""

    length: int  # steps
    pitches: dict[int, bool]  # whether it goes on in the next piece


def tunes(items: Sequence[pretty_midi.PrettyMIDI], titles: Sequence[str]) -> str | None:
    """Return a book of tunes, one an item: every voice but the drums, its first bars where it is long; None for drums.

    Each tune has its own metre and tempo, and the major key's signature that holds most of its notes. Rhythms are
    rounded to sixteenths, or to twelfths of a quarter note where nearly all times are exact and some are triplets'.
    """
    sheets = [sheet_of(item) for item in items]
    if not any(not voice.is_drum for sheet in sheets for voice in sheet.voices):
        return None
    return "\n".join(_tune(n, sheet, title) for n, (sheet, title) in enumerate(zip(sheets, titles, strict=True), 1))


def _tune(number: int, sheet: Sheet, title: str) -> str:
    voices = [voice for voice in sheet.voices if not voice.is_drum]
    sounds = [sound for voice in voices for sound in voice.sounds]
    times = [time for sound in sounds for time in (sound.start, sound.end)]
    plain = sum(_is_on(STEPS_A_BEAT, time) for time in times)
    exact = sum(_is_on(STEPS_A_BEAT, time) or _is_on(_SEXTUPLETS, time) for time in times)
    grid = 2 * _SEXTUPLETS if exact > max(plain, _MOSTLY * len(times)) else STEPS_A_BEAT
    key, first = _key([sound.pitch for sound in sounds]), sheet.bars[0]
    tempo = 60 * (sheet.clock[1][0] - sheet.clock[0][0]) / (sheet.clock[1][1] - sheet.clock[0][1])
    lines = [
        f"X:{number}",
        f"T:{_text(title)}",
        f"M:{first.over}/{first.under}",
        "L:1/16",
        f"Q:1/4={max(round(tempo), 1)}",
        f"K:{key.name}",
    ]
    for place, voice in enumerate(voices, 1):
        if len(voices) > 1:
            lines.append(f'V:{place} name="{_text(voice.name)}"')
        lines += [f"%%MIDI program {voice.program}", *_body(voice, sheet, key, grid)]
    if sheet.goes_on:
        lines.append(f"% the first {len(sheet.bars)} bars")
    return "\n".join(lines) + "\n"


def _nearest(place: float) -> int:
    return math.floor(place + 0.5)


def _is_on(grid: int, beat: float) -> bool:
    return abs(grid * beat - _nearest(grid * beat)) < _EXACT


def _text(text: str) -> str:
    """Return a text as one line in which no sign means anything to a reader of ABC."""
    return "".join(" " if c in '%\\"&[]' or not c.isprintable() else c for c in text).strip() or "-"


def _key(pitches: Sequence[int]) -> _Key:
    """Return the major key whose scale holds most of the pitches, of equals the one with the fewest accidentals."""
    held = [sum(pitch % 12 in key.scale for pitch in pitches) for key in _KEYS]
    return _KEYS[held.index(max(held))]


def _body(voice: Voice, sheet: Sheet, key: _Key, grid: int) -> Iterator[str]:
    """Yield a voice's lines of music."""
    end = max(_nearest(sheet.end * grid), 1)
    bars = {
        _nearest(bar.start * grid): bar for bar in sheet.bars if _nearest(bar.start * grid) < end
    }  # none without room
    written, meter = [], sheet.bars[0][1:]
    for bar, pieces in zip(bars.values(), _pieces(voice, [*bars, end], grid), strict=True):
        change = f"[M:{bar.over}/{bar.under}]" if bar[1:] != meter else ""
        meter = bar[1:]
        written.append(change + _bar(pieces, key, grid))
    for start in range(0, len(written), _BARS_A_LINE):
        ending = "|" if start + _BARS_A_LINE < len(written) else "|]"
        yield "|".join(written[start : start + _BARS_A_LINE]) + ending


def _pieces(voice: Voice, edges: Sequence[int], grid: int) -> Iterator[list[_Piece]]:
    """Yield each bar's pieces: a new one wherever a note begins or ends, and at the bar line."""
    notes = [(_nearest(s.start * grid), _nearest(s.end * grid), s.pitch) for s in voice.sounds]
    notes = [(start, max(end, start + 1), pitch) for start, end, pitch in notes]
    changes = sorted({time for start, end, _ in notes for time in (start, end)} | set(edges))
    changes = [time for time in changes if time <= edges[-1]]
    struck: dict[int, set[int]] = {}
    for start, _, pitch in notes:
        struck.setdefault(start, set()).add(pitch)
    sounding: dict[int, int] = {}  # pitch: its end
    following, bar, inside = 0, [], set(edges)
    for start, end in pairwise(changes):
        while following < len(notes) and notes[following][0] <= start:
            _, until, pitch = notes[following]
            sounding[pitch] = max(until, sounding.get(pitch, 0))
            following += 1
        sounding = {pitch: until for pitch, until in sounding.items() if until > start}
        again = struck.get(end, set())
        bar.append(_Piece(end - start, {p: until > end and p not in again for p, until in sorted(sounding.items())}))
        if end in inside:
            yield bar
            bar = []


def _bar(pieces: Sequence[_Piece], key: _Key, grid: int) -> str:
    accidentals: set[str] = set()  # letters that carry one in this bar; readers differ on the octaves it holds for
    signature, signs = key.signature, []
    for piece in pieces:
        names = {pitch: _name(pitch, key, signature, accidentals) for pitch in piece.pitches}
        lengths = list(_lengths(Fraction(4 * piece.length, grid)))
        for place, length in enumerate(lengths):
            tied = {p: on or place < len(lengths) - 1 for p, on in piece.pitches.items()}
            signs.append((length, _sign(names, tied, length)))
            names = {pitch: _name(pitch, key, signature, accidentals) for pitch in names}
    written = []
    for in_thirds, run in groupby(signs, key=lambda sign: sign[0].denominator % 3 == 0):
        texts = [text for _, text in run]
        written += [f"(3:2:{len(texts)}" if in_thirds else "", *texts]
    return "".join(f"{text} " for text in written if text).strip()


def _lengths(length: Fraction) -> Iterator[Fraction]:
    """Cut a length in sixteenths into those that one sign can say."""
    while length.denominator == 1 and length > 0:
        part = next(part for part in _LENGTHS if part <= length)
        yield Fraction(part)
        length -= part
    if length:
        yield length


def _sign(names: dict[int, str], tied: dict[int, bool], length: Fraction) -> str:
    if length.denominator % 3 == 0:
        length *= Fraction(3, 2)  # in a triplet three are played in the time of two
    size = "" if length == 1 else str(length)
    if not names:
        return f"z{size}"
    if len(names) == 1:
        ((pitch, name),) = names.items()
        return f"{name}{size}{'-' if tied[pitch] else ''}"
    chord = "".join(f"{name}{'-' if tied[pitch] else ''}" for pitch, name in names.items())
    return f"[{chord}]{size}"


def _name(pitch: int, key: _Key, signature: dict[str, int], accidentals: set[str]) -> str:
    """Return a pitch with the accidental it needs in this bar, and remember that it has one."""
    spelled = [(letter, shift) for shift in (0, -1 if key.sharps < 0 else 1) for letter in _PITCHES
               if (_PITCHES[letter] + shift) % 12 == pitch % 12]  # fmt: skip
    # as the signature has it (E sharp in F sharp, never F natural), else as a white key, else with an accidental
    letter, shift = next((one for one in spelled if signature[one[0]] == one[1]), spelled[0])
    needed = shift != signature[letter] or letter in accidentals
    if shift != signature[letter]:
        accidentals.add(letter)
    octave = (pitch - shift) // 12 - 5
    text = letter if octave <= 0 else letter.lower()
    text += "," * -octave if octave < 0 else "'" * (octave - 1)
    return (_SIGN[shift] if needed else "") + text
