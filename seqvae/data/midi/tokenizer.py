"""The melody codec: one class a sixteenth note, after MusicVAE (Roberts et al., 2018)."""

import math
import os
import statistics
from collections import Counter
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pretty_midi
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqvae.data.codec import Codec, Preview, strip
from seqvae.data.midi.melody import (
    BAR,
    FIRST_NOTE,
    HIGHEST,
    LOWEST,
    METERS,
    NO_EVENT,
    STEPS_A_BEAT,
    VOCAB_SIZE,
    cut,
    phrases,
    to_events,
    to_notes,
    transcribe,
)
from seqvae.data.midi.preview import documents, piano_rolls, play
from seqvae.data.midi.reading import read_midi


class Melody(NamedTuple):
    """One monophonic line in whole bars, without a silence of a bar or more."""

    instrument: int  # its place among PrettyMIDI.instruments
    events: NDArray[np.uint8]  # [step] classes


class Melodies(NamedTuple):
    """Every melody of a song, what its metres cost by rule (in windows), and what else was counted."""

    melodies: list[Melody]
    dropped: Counter[str]
    counted: Counter[str]


class MelodyTokenizer(Codec[pretty_midi.PrettyMIDI]):
    """Melodies as one class a sixteenth note, after MusicVAE (Roberts et al., 2018).

    Class 0 lets a note or a silence go on, 1 ends the note, 2 to 89 strike pitches 21 to 108. A bar is 16 steps, a
    window `bars` bars. `meter="strict"` uses music in 4/4 and 2/2, and in 2/4 by pairs of bars; "folded" ignores time
    signatures and counts bars of 16 steps from the start of the file. In every epoch a view of a window is transposed
    by up to `transpose` semitones either way, as far as its pitches stay within range.

    Windows are canonical when no 1 stands in silence. Canonical windows that hold at least one note each, the first
    of them in the first bar, come back unchanged from `windows(join(...))`.
    """

    view_options = frozenset({"transpose"})
    suffix = ".mid"
    endings = (".mid", ".midi", ".rmi", ".kar")

    def __init__(self, *, bars: int = 2, meter: str = "strict", transpose: int = 0) -> None:
        if not _is_int(bars) or bars < 1:
            raise ValueError(f"bars must be a positive int, got {bars!r}")
        if meter not in METERS:
            raise ValueError(f"meter must be one of {', '.join(METERS)}, got {meter!r}")
        if not _is_int(transpose) or not 0 <= transpose <= HIGHEST - LOWEST:
            raise ValueError(f"transpose must be an int from 0 to {HIGHEST - LOWEST} semitones, got {transpose!r}")
        self.bars, self.meter, self.transpose = bars, meter, transpose

    @property
    def options(self) -> dict[str, Any]:
        return {"bars": self.bars, "meter": self.meter, "transpose": self.transpose}

    @property
    def spec(self) -> dict[str, Any]:
        return {"vocab_size": VOCAB_SIZE, "max_length": self.bars * BAR, "end_id": None, "unk_id": None}

    def melodies(self, midi: pretty_midi.PrettyMIDI) -> Melodies:
        """Return the melodies of every instrument but drums; a silence of a bar or more ends a melody.

        The rules are those of `transcribe`. Events come in whole bars, from the bar of the first note on.
        """
        lines, dropped, counted = transcribe(midi, self.meter, self.bars)
        melodies = [Melody(line.instrument, to_events(phrase)) for line in lines for phrase in phrases(line.notes)]
        return Melodies(melodies, dropped, counted)

    def stride_windows(self, events: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        """Return every window of a melody that starts on one of its bars; one padded window of a shorter melody."""
        last = max(len(events) - self.bars * BAR, 0)
        return [cut(events, start, self.bars * BAR) for start in range(0, last + 1, BAR)]

    def windows(self, item: pretty_midi.PrettyMIDI) -> list[Tensor]:
        """Return the tune's windows one after another, from the bar of its first note, the last filled up with rest.

        The tune is the instrument with the most melody notes, the first of equals; windows without notes are left out.
        A note held over a window's start is struck again there, so every window can be heard and encoded on its own.
        """
        transcription = transcribe(item, self.meter, self.bars)
        tune = transcription.tune()
        if not tune:
            reasons = [*transcription.dropped, *transcription.counted, "no instrument but drums plays"]
            raise ValueError(f"no melody to encode: {reasons[0]}")
        size = self.bars * BAR
        lines = [to_events(line.notes) for line in tune]
        windows = [cut(events, start, size) for events in lines for start in range(0, len(events), size)]
        return [torch.from_numpy(window.astype(np.int64)) for window in windows if (window >= FIRST_NOTE).any()]

    def join(self, tensors: Sequence[Tensor], like: pretty_midi.PrettyMIDI | None = None) -> pretty_midi.PrettyMIDI:
        """Return the windows in a row, in 4/4; each begins in silence and its last note ends with it at the latest.

        Initial tempo, program and median velocity are those of the tune of `like`; 120 bpm, piano and 90 without one.
        Any classes can be joined: a 1 in silence changes nothing. Raises ValueError for a class that is none.
        """
        tempo, program, velocity = 120.0, 0, 90
        if like is not None:
            tempo = float(like.get_tempo_changes()[1][0])
            tune = transcribe(like, self.meter, self.bars).tune()
            if tune:
                instrument = like.instruments[tune[0].instrument]
                program = instrument.program
                velocity = round(statistics.median(note.velocity for note in instrument.notes))
        microseconds = min(max(round(6e7 / tempo), 1), 2**24 - 1)
        # written files hold whole microseconds a beat, cut off: a hair more, or 93 bpm would be slower every time
        midi = pretty_midi.PrettyMIDI(initial_tempo=6e7 / (microseconds + 1e-3))
        midi.time_signature_changes.append(pretty_midi.TimeSignature(4, 4, 0.0))
        line = pretty_midi.Instrument(program, name="melody")
        step = midi.tick_to_time(midi.resolution) / STEPS_A_BEAT
        for number, tensor in enumerate(tensors):
            offset = number * self.bars * BAR
            line.notes += [
                pretty_midi.Note(velocity, pitch, (offset + start) * step, (offset + end) * step)
                for start, end, pitch in to_notes(strip(tensor).numpy())
            ]
        midi.instruments.append(line)
        return midi

    def view(self, tensor: Tensor, rng: np.random.Generator, augment: bool = False) -> Tensor:
        """Return the window, when it may be augmented transposed by a fresh number of semitones, all within range."""
        struck = tensor[tensor >= FIRST_NOTE]
        if not (augment and self.transpose and len(struck)):
            return tensor
        lowest = max(-self.transpose, FIRST_NOTE - int(struck.min()))
        highest = min(self.transpose, VOCAB_SIZE - 1 - int(struck.max()))
        return torch.where(tensor >= FIRST_NOTE, tensor + int(rng.integers(lowest, highest + 1)), tensor)

    def sizes(self, tensor: Tensor) -> dict[str, int]:
        return {"step": len(tensor)}

    def score(self, truth: Sequence[Tensor], predicted: Sequence[Tensor]) -> dict[str, float]:
        """Return the share of equal steps, of exact onsets, and the F1 of notes by pitch and start, ends ignored."""
        equal = steps = hits = struck = guessed = 0
        for true, guess in zip(truth, predicted, strict=True):
            same = true == guess
            equal, steps = equal + int(same.sum()), steps + len(true)
            hits += int((same & (true >= FIRST_NOTE)).sum())
            struck += int((true >= FIRST_NOTE).sum())
            guessed += int((guess >= FIRST_NOTE).sum())
        return {
            "accuracy": equal / max(steps, 1),
            "onset_accuracy": hits / max(struck, 1),
            "note_f1": 2 * hits / max(struck + guessed, 1),
        }

    def read(self, source: str) -> list[pretty_midi.PrettyMIDI]:
        return [read_midi(Path(source))]

    def write(self, item: pretty_midi.PrettyMIDI, path: Path) -> None:
        """Write a MIDI file. Raises ValueError for a note that no MIDI file can hold."""
        for note in (note for instrument in item.instruments for note in instrument.notes):
            whole = isinstance(note.pitch, Integral) and isinstance(note.velocity, Integral)
            if not (whole and 0 <= note.pitch <= 127 and 1 <= note.velocity <= 127):
                raise ValueError(f"pitch must be an int from 0 to 127 and velocity from 1 to 127, got {note}")
            if not 0 <= note.start < note.end < math.inf:
                raise ValueError(f"a note must start at 0 or later and end after it starts, got {note}")
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            item.write(str(temporary))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def chain(self, items: Sequence[pretty_midi.PrettyMIDI]) -> pretty_midi.PrettyMIDI | None:
        """Return the items' tunes one after another, each from a window of its own on; an empty item is a rest."""
        rest = torch.full((self.bars * BAR,), NO_EVENT)
        heard = [bool(transcribe(item, self.meter, self.bars).lines) for item in items]
        rows = [self.windows(item) if sounds else [rest] for item, sounds in zip(items, heard, strict=True)]
        return self.join(
            [window for row in rows for window in row], like=items[heard.index(True)] if any(heard) else None
        )

    def preview(self, items: Sequence[pretty_midi.PrettyMIDI], columns: int | None = None) -> Preview:
        """Return piano rolls to one scale of pitch, and the items' first minutes played one after another."""
        return Preview(image=piano_rolls(items, columns), audio=play(items))

    def documents(
        self, items: Sequence[pretty_midi.PrettyMIDI], title: str, captions: Sequence[str], columns: int | None = None
    ) -> dict[str, str]:
        return documents(items, title, captions, columns)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
