"""The drum codec: what is struck at each sixteenth note, of nine kinds of percussion, after MusicVAE."""

import hashlib
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pretty_midi
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor

from seqvae.data.codec import strip
from seqvae.data.midi.extracting import Extracted, with_notes
from seqvae.data.midi.items import VELOCITY, MidiCodec, is_int, new_song
from seqvae.data.midi.melody import BAR, BENT, ONSETS, STEPS_A_BEAT, on_grid, places_of, refused_windows
from seqvae.data.midi.meters import COMMON, stretches
from seqvae.data.midi.notes import PITCH, START, Song, song_of
from seqvae.data.midi.percussion import CLASSES

KEYS = tuple(keys[0] for keys in CLASSES.values())
COMBINATIONS = 2 ** len(CLASSES)
METERS = ("strict", "folded")
NO_DRUMS = "no drums play (channel 10)"
UNKNOWN = "drum notes left out: no percussion key of General MIDI"

_BITS = np.zeros(128, np.uint16)  # by key; 0 where it is none of percussion
for _number, _keys in enumerate(CLASSES.values()):
    _BITS[list(_keys)] = 1 << _number


class Beat(NamedTuple):
    """What all drums together play under one time signature."""

    bar_line: int  # the tick that its steps count from
    combinations: NDArray[np.uint16]  # [step] in whole bars from there, the last one struck in


class Beats(NamedTuple):
    """A song's beats, what its metres cost by rule (in windows), and what else was counted."""

    beats: list[Beat]
    dropped: Counter[str]
    counted: Counter[str]


def beats_of(midi: pretty_midi.PrettyMIDI | Song, meter: str = "strict", bars: int = 2) -> Beats:
    """Return what all drum tracks of a song play together, on the grid and under the metres of `transcribe`."""
    song = song_of(midi)
    result = Beats([], Counter(), Counter())
    tracks = [track.notes for track in song.tracks if track.is_drum]
    notes = np.concatenate(tracks) if tracks else np.zeros((0, 4), np.int64)
    known = _BITS[notes[:, PITCH]] > 0
    result.counted[UNKNOWN] += int((~known).sum())
    notes, parts = notes[known], stretches(song, meter)
    places = places_of(notes[:, START], np.array([part.start for part in parts]), song.resolution)
    for place in np.flatnonzero(np.bincount(places)):
        stretch, part = parts[place], notes[places == place]
        times = part[:, START] - stretch.bar_line
        if stretch.refusal:
            result.dropped[stretch.refusal] += refused_windows(stretch, times, song.resolution, bars)
            continue
        steps, moved = on_grid(times, song.resolution)
        combinations = np.zeros((int(steps.max()) // BAR + 1) * BAR, np.uint16)
        np.bitwise_or.at(combinations, steps, _BITS[part[:, PITCH]])
        result.beats.append(Beat(stretch.bar_line, combinations))
        result.counted[ONSETS] += len(part)
        result.counted[BENT] += int((4 * moved > song.resolution).sum())
    return result


class DrumTokenizer(MidiCodec):
    """Drums as one of 512 combinations a sixteenth note, after MusicVAE (Roberts et al., 2018).

    A combination's number has bit i set where class i of CLASSES is struck. All drum tracks of a song are one kit;
    lengths and velocities are no part of it. Bars and windows are the melody codec's; so is `meter`, but for "any".

    Windows that hold at least one stroke each, the first of them in the first bar, come back unchanged from
    `windows(join(...))`.
    """

    document_endings = (".html",)

    def __init__(self, *, bars: int = 2, meter: str = "strict") -> None:
        if not is_int(bars) or bars < 1:
            raise ValueError(f"bars must be a positive int, got {bars!r}")
        if meter not in METERS:
            raise ValueError(f"meter must be one of {', '.join(METERS)}, got {meter!r}")
        self.bars, self.meter = bars, meter

    @property
    def options(self) -> dict[str, Any]:
        return {"bars": self.bars, "meter": self.meter}

    @property
    def spec(self) -> dict[str, Any]:
        return {"vocab_size": COMBINATIONS, "max_length": self.bars * BAR, "end_id": None, "unk_id": None}

    def windows(self, item: pretty_midi.PrettyMIDI) -> list[Tensor]:
        """Return the windows one after another, from the bar of the first stroke; those without strokes are left out.

        Raises ValueError for an item in which no drums play.
        """
        beats, dropped, counted = beats_of(item, self.meter, self.bars)
        if not beats:
            raise ValueError(f"no drums to encode: {[*dropped, UNKNOWN if counted[UNKNOWN] else NO_DRUMS][0]}")
        size, windows = self.bars * BAR, []
        for _, combinations in beats:
            first = int(np.flatnonzero(combinations)[0]) // BAR * BAR
            windows += [*cut(combinations[first:], size, size)]
        return [torch.from_numpy(window.astype(np.int64)) for window in windows if window.any()]

    def join(self, tensors: Sequence[Tensor], like: pretty_midi.PrettyMIDI | None = None) -> pretty_midi.PrettyMIDI:
        """Return the windows in a row, in 4/4, every stroke a sixteenth note on the drum channel.

        Initial tempo and median velocity are those of the drums of `like`; 120 bpm and 90 without one. Raises
        ValueError for a combination that is none.
        """
        midi = new_song(like)
        midi.time_signature_changes.append(pretty_midi.TimeSignature(*COMMON, 0.0))
        offsets = [self.bars * BAR * number for number in range(len(tensors))]
        midi.instruments.append(drum_kit(midi, zip(offsets, tensors, strict=True), like))
        return midi

    def listed(self, tensor: Tensor) -> dict[str, Any]:
        """Return which classes are struck at each step, by name."""
        names = np.array([*CLASSES])
        return {"strokes": [names[struck.bool().numpy()].tolist() for struck in _struck(tensor)]}

    def score(self, truth: Sequence[Tensor], predicted: Sequence[Tensor]) -> dict[str, float]:
        """Return the share of equal steps, and precision, recall and F1 of strokes by class and step."""
        equal = steps = hits = struck = guessed = 0
        for true, guess in zip(truth, predicted, strict=True):
            equal, steps = equal + int((true == guess).sum()), steps + len(true)
            hits += int(_struck(true & guess).sum())
            struck, guessed = struck + int(_struck(true).sum()), guessed + int(_struck(guess).sum())
        return {
            "accuracy": equal / max(steps, 1),
            "note_precision": hits / max(guessed, 1),
            "note_recall": hits / max(struck, 1),
            "note_f1": 2 * hits / max(struck + guessed, 1),
        }

    def magenta_converter(self) -> dict[str, Any]:
        """Return Magenta's DrumsOneHotConverter, which has the same classes."""
        return {"type": "DrumsOneHotConverter", "args": {"numSteps": self.bars * BAR}}


def drum_windows(song: Song, *, bars: int = 2, meter: str = "strict", min_notes: int = 3) -> Extracted:
    """Return every window that starts on a bar, but those with fewer than `min_notes` strokes.

    A silence of a bar or more ends a beat, as it does a melody.
    """
    beats, dropped, counted = beats_of(song, meter, bars)
    phrases = [phrase for beat in beats for phrase in _phrases(beat.combinations)]
    windows = []
    for phrase in phrases:
        part = cut(phrase, bars * BAR, BAR)
        windows += with_notes(part, count_strokes(part), min_notes, dropped)
    return Extracted(windows, beat_key(phrases), dropped, counted, UNKNOWN if counted[UNKNOWN] else NO_DRUMS)


def count_strokes(windows: NDArray[np.uint16]) -> NDArray[np.int64]:
    """Return how many strokes each window [window step] holds."""
    bits: NDArray[np.int64] = windows[:, :, None] >> np.arange(len(CLASSES)) & 1
    strokes: NDArray[np.int64] = np.count_nonzero(bits, axis=(1, 2))
    return strokes


def beat_key(beats: Iterable[NDArray[np.uint16]]) -> str:
    """Return a digest of what is struck when."""
    return hashlib.sha256(repr([beat.tolist() for beat in beats]).encode()).hexdigest()


def cut(combinations: NDArray[np.uint16], size: int, stride: int) -> NDArray[np.uint16]:
    """Return [window size]: windows at every `stride` steps that hold all of a beat, with rest beyond its end."""
    count = max(0, -((size - len(combinations)) // stride)) + 1
    filled = np.zeros((count - 1) * stride + size, np.uint16)
    filled[: len(combinations)] = combinations
    return sliding_window_view(filled, size)[::stride]


def drum_kit(
    midi: pretty_midi.PrettyMIDI,
    placed: Iterator[tuple[int, Tensor]],
    like: pretty_midi.PrettyMIDI | None = None,
) -> pretty_midi.Instrument:
    """Return combinations as an instrument, each window from the step that it is placed at."""
    velocities = [note.velocity for part in (like.instruments if like else []) if part.is_drum for note in part.notes]
    velocity = round(statistics.median(velocities)) if velocities else VELOCITY
    kit = pretty_midi.Instrument(0, is_drum=True, name="drums")
    step = midi.tick_to_time(midi.resolution) / STEPS_A_BEAT
    for offset, tensor in placed:
        window = strip(tensor)
        if len(window) and int(window.max()) >= COMBINATIONS:
            raise ValueError(f"combinations must be from 0 to {COMBINATIONS - 1}, got {int(window.max())}")
        for place, number in _struck(window).nonzero().tolist():
            start = offset + place
            kit.notes.append(pretty_midi.Note(velocity, KEYS[number], start * step, (start + 1) * step))
    return kit


def _struck(combinations: Tensor) -> Tensor:
    """Return [step class]: 1 where a class is struck."""
    return combinations.unsqueeze(-1) >> torch.arange(len(CLASSES)) & 1


def _phrases(combinations: NDArray[np.uint16]) -> Iterator[NDArray[np.uint16]]:
    """Cut a beat wherever nothing is struck for a bar or longer; yield whole bars."""
    struck = np.flatnonzero(combinations)
    for part in np.split(struck, np.flatnonzero(np.diff(struck) > BAR) + 1):
        yield combinations[part[0] // BAR * BAR : (part[-1] // BAR + 1) * BAR]
