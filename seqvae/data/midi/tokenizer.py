"""The melody codec: one class a step of the grid, after MusicVAE (Roberts et al., 2018)."""

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pretty_midi
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqvae.data.codec import Codec, Preview, strip
from seqvae.data.midi import measures
from seqvae.data.midi.items import VELOCITY, is_int, new_song, write_midi
from seqvae.data.midi.melody import (
    FIRST_NOTE,
    HIGHEST,
    LOWEST,
    NO_EVENT,
    STEPS_A_BEAT,
    TRIPLET_STEPS,
    VOCAB_SIZE,
    Transcription,
    cut,
    phrases,
    to_events,
    to_notes,
    transcribe,
)
from seqvae.data.midi.meters import COMMON, LONGEST_BAR, METERS, Meter, meter_of
from seqvae.data.midi.notes import Song, song_of
from seqvae.data.midi.preview import documents, piano_rolls, play
from seqvae.data.midi.reading import read_midi
from seqvae.data.midi.tracks import Tracks


class Melody(NamedTuple):
    """One monophonic line in whole bars, without a silence that ends it."""

    instrument: int  # its place among the song's tracks
    events: NDArray[np.uint8]  # [step] classes
    bar: int  # steps


class Melodies(NamedTuple):
    """Every melody of a song, what its metres cost by rule (in windows), and what else was counted."""

    melodies: list[Melody]
    dropped: Counter[str]
    counted: Counter[str]


class MelodyTokenizer(Codec[pretty_midi.PrettyMIDI]):
    """Melodies as one class a step, a sixteenth note by default, after MusicVAE (Roberts et al., 2018).

    Class 0 lets a note or a silence go on, 1 ends the note, 2 to 89 strike pitches 21 to 108. A quarter note is
    `steps_per_quarter` steps, 12 where triplets shall have their own, and a window `bars` bars. `meter="strict"` uses
    music in 4/4 and 2/2, and in 2/4 by pairs of bars; "folded" ignores time signatures and counts bars of 4/4 from the
    start of the file; "any" takes each metre's own bars, so a window of 3/4 is shorter than one of 4/4. `tracks` says
    among which tracks of a song its tune is looked for (see `Tracks.parse`). In every epoch a view of a window is
    transposed by up to `transpose` semitones either way, as far as its pitches stay within range.

    Windows are canonical when no 1 stands in silence. Canonical windows that hold at least one note each, the first
    of them in the first bar, come back unchanged from `windows(join(...))`.
    """

    view_options = frozenset({"transpose"})
    suffix = ".mid"
    endings = (".mid", ".midi", ".rmi", ".kar")
    joins = True

    def __init__(
        self,
        *,
        bars: int = 2,
        meter: str = "strict",
        transpose: int = 0,
        steps_per_quarter: int = STEPS_A_BEAT,
        tracks: str = "all",
    ) -> None:
        if not is_int(bars) or bars < 1:
            raise ValueError(f"bars must be a positive int, got {bars!r}")
        if meter not in METERS:
            raise ValueError(f"meter must be one of {', '.join(METERS)}, got {meter!r}")
        if not is_int(transpose) or not 0 <= transpose <= HIGHEST - LOWEST:
            raise ValueError(f"transpose must be an int from 0 to {HIGHEST - LOWEST} semitones, got {transpose!r}")
        if not is_int(steps_per_quarter) or steps_per_quarter not in (STEPS_A_BEAT, TRIPLET_STEPS):
            wanted = f"{STEPS_A_BEAT} or {TRIPLET_STEPS}"
            raise ValueError(f"steps_per_quarter must be {wanted}, got {steps_per_quarter!r}")
        self.bars, self.meter, self.transpose, self.steps_per_quarter = bars, meter, transpose, steps_per_quarter
        self.tracks, self.chosen = tracks, Tracks.parse(tracks)

    @property
    def options(self) -> dict[str, Any]:
        return {
            "bars": self.bars,
            "meter": self.meter,
            "transpose": self.transpose,
            "steps_per_quarter": self.steps_per_quarter,
            "tracks": self.tracks,
        }

    @property
    def spec(self) -> dict[str, Any]:
        longest = self.bars * self._bar
        if self.meter == "any":  # and one more: what a network draws is always that long, so `join` can tell it
            longest = self.bars * self.steps_per_quarter * LONGEST_BAR + 1
        return {"vocab_size": VOCAB_SIZE, "max_length": longest, "end_id": None, "unk_id": None}

    @property
    def _bar(self) -> int:
        return 4 * self.steps_per_quarter

    def transcribe(
        self, midi: pretty_midi.PrettyMIDI | Song, tracks: Tracks | None = None, split_on_tempo: bool = False
    ) -> Transcription:
        """Return a song's lines on this codec's grid."""
        return transcribe(
            midi,
            self.meter,
            self.bars,
            steps_per_quarter=self.steps_per_quarter,
            tracks=self.chosen if tracks is None else tracks,
            split_on_tempo=split_on_tempo,
        )

    def melodies(
        self, midi: pretty_midi.PrettyMIDI | Song, gap_bars: float = 1, split_on_tempo: bool = False
    ) -> Melodies:
        """Return the melodies of the chosen tracks; a silence of `gap_bars` bars or more ends a melody.

        The rules are those of `transcribe`. Events come in whole bars, from the bar of the first note on. With
        `split_on_tempo` no melody goes on over a change of tempo.
        """
        lines, dropped, counted = self.transcribe(midi, split_on_tempo=split_on_tempo)
        melodies = [
            Melody(line.instrument, to_events(phrase, line.bar), line.bar)
            for line in lines
            for phrase in phrases(line.notes, gap_bars * line.bar)
        ]
        return Melodies(melodies, dropped, counted)

    def stride_windows(self, events: NDArray[np.uint8], bar: int | None = None) -> NDArray[np.uint8]:
        """Return [window step]: every window of a melody that starts on one of its bars, of 4/4 unless `bar` is said.

        A melody shorter than a window gives one, filled up with rest.
        """
        bar = bar or self._bar
        return cut(events, self.bars * bar, bar)

    def windows(self, item: pretty_midi.PrettyMIDI) -> list[Tensor]:
        """Return the tune's windows one after another, from the bar of its first note, the last filled up with rest.

        The tune is the instrument with the most melody notes, the first of equals; windows without notes are left out.
        Where no track is of those that `tracks` asks for, all are.
        A note held over a window's start is struck again there, so every window can be heard and encoded on its own.
        """
        transcription = self._heard(item)
        if not transcription.lines:
            reasons = [*transcription.dropped, *(name for name, count in transcription.counted.items() if count)]
            raise ValueError(f"no melody to encode: {[*reasons, 'no instrument but drums plays'][0]}")
        return [window for window, _ in self._metered(transcription)]

    def _heard(self, item: pretty_midi.PrettyMIDI) -> Transcription:
        song = song_of(item)
        fits = any(self.chosen.fits(track) for track in song.tracks)
        return self.transcribe(song, self.chosen if fits else Tracks(skyline=self.chosen.skyline))

    def _metered(self, transcription: Transcription) -> list[tuple[Tensor, Meter]]:
        """Return the tune's windows, each with its metre."""
        result = []
        for line in transcription.tune():
            size = self.bars * line.bar
            for window in cut(to_events(line.notes, line.bar), size, size):
                if (window >= FIRST_NOTE).any():
                    result.append((torch.from_numpy(window.astype(np.int64)), line.meter))
        return result

    def join(self, tensors: Sequence[Tensor], like: pretty_midi.PrettyMIDI | None = None) -> pretty_midi.PrettyMIDI:
        """Return the windows in a row; each begins in silence and its last note ends with it at the latest.

        Initial tempo, program and median velocity are those of the tune of `like`; 120 bpm, piano and 90 without one.
        The metre is 4/4. With `meter="any"` it is that of the same window of `like`, of its last one beyond that, and
        without `like` the metre that a window's length spells, 4/4 for what is longer than any window can be.
        Any classes can be joined: a 1 in silence changes nothing. Raises ValueError for a class that is none.
        """
        meters = [COMMON] * len(tensors)
        if self.meter == "any":
            meters = [self._meter_of(len(strip(tensor))) for tensor in tensors]
            if like is not None and (known := [meter for _, meter in self._metered(self._heard(like))]):
                meters = [known[min(number, len(known) - 1)] for number in range(len(tensors))]
        return self._join(list(zip(tensors, meters, strict=True)), like)

    def _meter_of(self, length: int) -> Meter:
        bar = Fraction(length, self.bars)
        longest = LONGEST_BAR * self.steps_per_quarter
        return (meter_of(bar, self.steps_per_quarter) if bar <= longest else None) or COMMON

    def _join(
        self, windows: Sequence[tuple[Tensor, Meter]], like: pretty_midi.PrettyMIDI | None
    ) -> pretty_midi.PrettyMIDI:
        program, velocity = 0, VELOCITY
        if like is not None and (tune := self._heard(like).tune()):
            instrument = like.instruments[tune[0].instrument]
            program = instrument.program
            velocity = round(statistics.median(note.velocity for note in instrument.notes))
        midi = new_song(like, self.steps_per_quarter)
        line = pretty_midi.Instrument(program, name="melody")
        step = midi.tick_to_time(midi.resolution) / self.steps_per_quarter
        offset, signatures = 0, midi.time_signature_changes
        for tensor, meter in windows:
            if not signatures or meter != (signatures[-1].numerator, signatures[-1].denominator):
                signatures.append(pretty_midi.TimeSignature(*meter, offset * step))
            size = self.bars * int(meter.steps(self.steps_per_quarter))
            line.notes += [
                pretty_midi.Note(velocity, pitch, (offset + start) * step, (offset + end) * step)
                for start, end, pitch in to_notes(strip(tensor)[:size].numpy())
            ]
            offset += size
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

    def listed(self, tensor: Tensor) -> dict[str, Any]:
        """Return a window's events, as Magenta writes them: -2 nothing new, -1 the note ends, else a pitch."""
        first = FIRST_NOTE - LOWEST
        return {"events": [event - first if event >= FIRST_NOTE else event - 2 for event in tensor.tolist()]}

    def sizes(self, tensor: Tensor) -> dict[str, int]:
        return {"step": len(tensor)}

    def score(self, truth: Sequence[Tensor], predicted: Sequence[Tensor]) -> dict[str, float]:
        """Return the scores of steps and notes of `note_scores`; what goes on beyond a true window is ignored."""
        heard = [guess[: len(true)] for true, guess in zip(truth, predicted, strict=True)]
        return measures.note_scores(*([window.numpy() for window in windows] for windows in (truth, heard)))

    def attributes(self, window: Tensor) -> dict[str, float]:
        """Return MusicVAE's five attributes of a window; see `measures.attributes`."""
        return measures.attributes(window.numpy(), self.steps_per_quarter)

    def sample_score(
        self, windows: Sequence[Tensor], test: Sequence[Tensor], known: Iterable[Tensor] | None
    ) -> dict[str, float]:
        """Return the overlap of pitch classes and of intervals with the test split's, and the share of near-copies."""
        own, real = ([window.numpy() for window in part] for part in (windows, test))
        found = {
            "pitch_class_overlap": measures.overlap(measures.pitch_classes(own), measures.pitch_classes(real)),
            "interval_overlap": measures.overlap(measures.intervals(own), measures.intervals(real)),
        }
        if known is not None:
            found["near_copies"] = float(measures.near_copies(own, (window.numpy() for window in known)).mean())
        return found

    def read(self, source: str) -> list[pretty_midi.PrettyMIDI]:
        return [read_midi(Path(source))]

    def write(self, item: pretty_midi.PrettyMIDI, path: Path) -> None:
        write_midi(item, path)

    def chain(self, items: Sequence[pretty_midi.PrettyMIDI]) -> pretty_midi.PrettyMIDI | None:
        """Return the items' tunes one after another, each from a window of its own on; an empty item is a rest."""
        rest = torch.full((self.bars * self._bar,), NO_EVENT)
        heard = [self._heard(item) for item in items]
        rows = [self._metered(one) if one.lines else [(rest, COMMON)] for one in heard]
        first = next((item for item, one in zip(items, heard, strict=True) if one.lines), None)
        return self._join([window for row in rows for window in row], first)

    def magenta_converter(self) -> dict[str, Any]:
        """Return Magenta's MelodyConverter, which has the same classes."""
        pitches = {"minPitch": LOWEST, "maxPitch": HIGHEST}
        return {"type": "MelodyConverter", "args": {"numSteps": self.spec["max_length"], **pitches}}

    def preview(
        self, items: Sequence[pretty_midi.PrettyMIDI], columns: int | None = None, sound: bool = True
    ) -> Preview:
        """Return piano rolls to one scale of pitch, and the items' first minutes played one after another."""
        return Preview(image=piano_rolls(items, columns), audio=play(items) if sound else None)

    def documents(
        self, items: Sequence[pretty_midi.PrettyMIDI], title: str, captions: Sequence[str], columns: int | None = None
    ) -> dict[str, str]:
        return documents(items, title, captions, columns)
