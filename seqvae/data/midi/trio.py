"""The trio codec: a melody, a bass and drums side by side, three classes a sixteenth note, after MusicVAE."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pretty_midi
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqvae.data.codec import Codec, Preview, strip
from seqvae.data.midi.drums import COMBINATIONS, NO_DRUMS, DrumTokenizer, beats_of, drum_kit
from seqvae.data.midi.drums import cut as cut_beat
from seqvae.data.midi.items import VELOCITY, Extraction, in_any_key, new_song, write_midi
from seqvae.data.midi.melody import (
    BAR,
    FIRST_NOTE,
    NOTE_OFF,
    STEPS_A_BEAT,
    VOCAB_SIZE,
    Line,
    cut,
    to_events,
    to_notes,
    transcribe,
)
from seqvae.data.midi.meters import COMMON
from seqvae.data.midi.notes import Song, Track, song_of
from seqvae.data.midi.preview import piano_rolls, play
from seqvae.data.midi.reading import read_midi
from seqvae.data.midi.tokenizer import MelodyTokenizer

MELODY, BASS, DRUMS = range(3)  # the parts of a step
PARTS = ("melody", "bass", "drums")
SIZES = [VOCAB_SIZE, VOCAB_SIZE, COMBINATIONS]
PROGRAMS = (range(32), range(32, 40))  # of melody and bass, counted from 0 as General MIDI's bytes are
MOST_SILENT_BARS = 2  # between bars that a part plays in, which then count as played in

_MISSING = ("no melody plays (programs 0 to 31)", "no bass plays (programs 32 to 39)", NO_DRUMS)
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
    """A song's sections, what its metres cost by rule (in windows), what else was counted, and its music as text."""

    sections: list[Section]
    dropped: Counter[str]
    counted: Counter[str]
    tune: str


def sections_of(midi: pretty_midi.PrettyMIDI | Song, meter: str = "strict", bars: int = 2) -> Sections:
    """Return who plays melody, bass and drums in each stretch of a song; other programs are left out."""
    song = song_of(midi)
    lines, dropped, counted = transcribe(song._replace(tracks=[*map(_if_it_has_a_role, song.tracks)]), meter, bars)
    beats, of_drums, drums_counted = beats_of(song, meter, bars)
    found: defaultdict[int, tuple[list[Voice], list[Voice], list[Voice]]] = defaultdict(lambda: ([], [], []))
    for line in lines:
        role = _role(song.tracks[line.instrument].program)
        assert role is not None
        found[line.bar_line][role].append(_voice(line))
    for bar_line, combinations in beats:
        struck = np.bitwise_or.reduce(combinations.reshape(-1, BAR), axis=1) > 0
        found[bar_line][DRUMS].append(Voice(-1, combinations, _fill(struck)))
    tune = [in_any_key(line.notes) for line in lines] + [repr(beat.combinations.tolist()) for beat in beats]
    sections = [_section(found[bar_line]) for bar_line in sorted(found)]
    return Sections(sections, dropped + of_drums, counted + drums_counted, "".join(tune))


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


def _if_it_has_a_role(track: Track) -> Track:
    """Return the track, without its notes where it plays neither melody nor bass."""
    return track._replace(notes=track.notes[: None if _role(track.program) is not None else 0])


def _fill(played: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the bars with short silences between played ones filled."""
    places = np.flatnonzero(played)
    filled = played.copy()
    for before, after in pairwise(places):
        if after - before - 1 <= MOST_SILENT_BARS:
            filled[before:after] = True
    return filled


class TrioTokenizer(Codec[pretty_midi.PrettyMIDI]):
    """A melody, a bass and drums as three classes a sixteenth note, after MusicVAE (Roberts et al., 2018).

    A step is [melody, bass, drums]: the melody codec's classes twice, and the drum codec's combinations. Melodies are
    played by programs 0 to 31 and basses by 32 to 39; several of a kind make a trio each with every other part. Bars,
    windows and `meter` are the drum codec's. In every epoch a view of a window is transposed by up to `transpose`
    semitones, melody and bass alike and the drums not at all.

    Windows are canonical when no 1 stands in silence. Canonical windows with something to hear in each, of the first
    in its first bar, come back unchanged from `windows(join(...))`.
    """

    view_options = frozenset({"transpose"})
    suffix = ".mid"
    endings = (".mid", ".midi", ".rmi", ".kar")

    def __init__(self, *, bars: int = 2, meter: str = "strict", transpose: int = 0) -> None:
        self._pitched = MelodyTokenizer(bars=bars, meter=meter, transpose=transpose)
        self._drums = DrumTokenizer(bars=bars, meter=meter)
        self.bars, self.meter, self.transpose = bars, meter, transpose

    @property
    def options(self) -> dict[str, Any]:
        return {"bars": self.bars, "meter": self.meter, "transpose": self.transpose}

    @property
    def spec(self) -> dict[str, Any]:
        return {"vocab_size": SIZES, "max_length": self.bars * BAR, "end_id": None, "unk_id": None}

    def extract(self, song: pretty_midi.PrettyMIDI | Song) -> Extraction:
        """Return every window that starts on a bar and in all bars of which all three parts play.

        A part plays on in a silence of up to two bars. Where several instruments can play a part, each of them does.
        """
        sections, dropped, counted, tune = sections_of(song, self.meter, self.bars)
        windows = []
        for section in sections:
            for trio in product(*section.voices):
                together = np.logical_and.reduce([voice.played for voice in trio])
                bars = [bar for bar in range(len(together) - self.bars + 1) if together[bar : bar + self.bars].all()]
                windows += [*self._cut(trio, BAR)[bars]] if bars else []
        silent = [missing for part, missing in enumerate(_MISSING) if not any(one.voices[part] for one in sections)]
        return Extraction(windows, tune, dropped, counted, (silent or [_NEVER_TOGETHER])[0])

    def _cut(self, trio: Sequence[Voice | None], stride: int, first: int = 0) -> NDArray[np.uint16]:
        """Return [window step part]: windows at every `stride` steps; a part that nobody plays is a rest."""
        size = self.bars * BAR
        columns: list[NDArray[Any]] = []
        for part, voice in enumerate(trio):
            if voice is not None:
                columns.append((cut_beat if part == DRUMS else cut)(voice.events[first:], size, stride))
        windows = np.zeros((len(columns[0]), size, len(PARTS)), np.uint16)
        places = [part for part, voice in enumerate(trio) if voice is not None]
        windows[:, :, places] = np.stack(columns, -1)
        return windows

    def count_notes(self, window: NDArray[Any]) -> int:
        """Return how many notes and strokes a window holds."""
        return int((window[:, :DRUMS] >= FIRST_NOTE).sum()) + self._drums.count_notes(window[:, DRUMS])

    def windows(self, item: pretty_midi.PrettyMIDI) -> list[Tensor]:
        """Return the windows one after another, from the bar of the first note; those without notes are left out.

        Each part is played by the instrument with the most notes of its kind, and is a rest where there is none.
        Raises ValueError for an item in which none of the three plays.
        """
        sections, dropped, _, _ = sections_of(item, self.meter, self.bars)
        if not sections:
            raise ValueError(f"no trio to encode: {[*dropped, 'neither melody, bass nor drums play'][0]}")
        leading = _leading(sections)
        windows = []
        for section in sections:
            trio = [
                next((voice for voice in voices if voice.instrument == leader), None)
                for voices, leader in zip(section.voices, leading, strict=True)
            ]
            heard = [voice for voice in trio if voice is not None]
            if heard:
                first = min(int(np.flatnonzero(voice.events)[0]) for voice in heard) // BAR * BAR
                windows += [*self._cut(trio, self.bars * BAR, first)]
        return [torch.from_numpy(window.astype(np.int64)) for window in windows if self.count_notes(window)]

    def join(self, tensors: Sequence[Tensor], like: pretty_midi.PrettyMIDI | None = None) -> pretty_midi.PrettyMIDI:
        """Return the windows in a row, in 4/4, as three instruments; each begins in silence.

        Initial tempo, programs and median velocities are those of the trio of `like`; without one 120 bpm, a piano, a
        fingered bass and 90. Any classes can be joined. Raises ValueError for a class that is none.
        """
        midi = new_song(like)
        midi.time_signature_changes.append(pretty_midi.TimeSignature(*COMMON, 0.0))
        step = midi.tick_to_time(midi.resolution) / STEPS_A_BEAT
        windows = [(number * self.bars * BAR, strip(tensor)) for number, tensor in enumerate(tensors)]
        leading = (-1, -1, -1) if like is None else _leading(sections_of(like, self.meter, self.bars).sections)
        for part, program in ((MELODY, 0), (BASS, 33)):
            velocity = VELOCITY
            if like is not None and leading[part] >= 0:
                model = like.instruments[leading[part]]
                program, velocity = model.program, round(statistics.median(note.velocity for note in model.notes))
            line = pretty_midi.Instrument(program, name=PARTS[part])
            line.notes = [
                pretty_midi.Note(velocity, pitch, (offset + start) * step, (offset + end) * step)
                for offset, window in windows
                for start, end, pitch in to_notes(window[:, part].numpy())
            ]
            midi.instruments.append(line)
        midi.instruments.append(drum_kit(midi, ((offset, window[:, DRUMS]) for offset, window in windows), like))
        return midi

    def view(self, tensor: Tensor, rng: np.random.Generator, augment: bool = False) -> Tensor:
        """Return the window, when it may be augmented with melody and bass transposed together, within range."""
        pitched = self._pitched.view(tensor[:, :DRUMS], rng, augment)
        return torch.cat([pitched, tensor[:, DRUMS:]], dim=1)

    def sizes(self, tensor: Tensor) -> dict[str, int]:
        return {"step": len(tensor)}

    def score(self, truth: Sequence[Tensor], predicted: Sequence[Tensor]) -> dict[str, float]:
        """Return the scores of each part's own codec, under the part's name."""
        scores: dict[str, float] = {}
        for part, codec in enumerate((self._pitched, self._pitched, self._drums)):
            columns = [[window[:, part] for window in windows] for windows in (truth, predicted)]
            scores |= {f"{PARTS[part]}_{name}": value for name, value in codec.score(*columns).items()}
        return scores

    def read(self, source: str) -> list[pretty_midi.PrettyMIDI]:
        return [read_midi(Path(source))]

    def write(self, item: pretty_midi.PrettyMIDI, path: Path) -> None:
        write_midi(item, path)

    def chain(self, items: Sequence[pretty_midi.PrettyMIDI]) -> pretty_midi.PrettyMIDI | None:
        """Return the items' trios one after another, each from a window of its own on; an empty item is a rest."""
        rest = torch.zeros(self.bars * BAR, len(PARTS), dtype=torch.int64)
        heard = [bool(sections_of(item, self.meter, self.bars).sections) for item in items]
        rows = [self.windows(item) if sounds else [rest] for item, sounds in zip(items, heard, strict=True)]
        like = items[heard.index(True)] if any(heard) else None
        return self.join([window for row in rows for window in row], like=like)

    def preview(self, items: Sequence[pretty_midi.PrettyMIDI], columns: int | None = None) -> Preview:
        return Preview(image=piano_rolls(items, columns), audio=play(items))


def _leading(sections: Sequence[Section]) -> tuple[int, ...]:
    """Return the instrument with the most notes of each part, the first of equals; -1 where nobody plays it."""
    leading = []
    for part in range(len(PARTS)):
        notes: Counter[int] = Counter()
        for voice in (voice for section in sections for voice in section.voices[part]):
            notes[voice.instrument] += int((voice.events >= FIRST_NOTE).sum())
        leading.append(max(notes, key=lambda number: (notes[number], -number), default=-1))
    return tuple(leading)
