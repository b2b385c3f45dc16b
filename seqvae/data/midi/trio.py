"""The trio codec: a melody, a bass and drums side by side, three classes a sixteenth note, after MusicVAE."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pretty_midi
import torch
from torch import Tensor

from seqvae.data.codec import Codec, Preview, strip
from seqvae.data.midi.band import BASS, DRUMS, MELODY, PARTS, count_notes, cut_trio, leading_voices, sections_of
from seqvae.data.midi.drums import COMBINATIONS, DrumTokenizer, drum_kit
from seqvae.data.midi.items import VELOCITY, new_song, write_midi
from seqvae.data.midi.melody import BAR, STEPS_A_BEAT, VOCAB_SIZE, to_notes
from seqvae.data.midi.meters import COMMON
from seqvae.data.midi.preview import documents, piano_rolls, play
from seqvae.data.midi.reading import read_midi
from seqvae.data.midi.tokenizer import MelodyTokenizer

SIZES = [VOCAB_SIZE, VOCAB_SIZE, COMBINATIONS]


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

    def windows(self, item: pretty_midi.PrettyMIDI) -> list[Tensor]:
        """Return the windows one after another, from the bar of the first note; those without notes are left out.

        Each part is played by the instrument with the most notes of its kind, and is a rest where there is none.
        Raises ValueError for an item in which none of the three plays.
        """
        sections, dropped, _, _ = sections_of(item, self.meter, self.bars)
        if not sections:
            raise ValueError(f"no trio to encode: {[*dropped, 'neither melody, bass nor drums play'][0]}")
        leading, size = leading_voices(sections), self.bars * BAR
        windows = []
        for section in sections:
            trio = [
                next((voice for voice in voices if voice.instrument == leader), None)
                for voices, leader in zip(section.voices, leading, strict=True)
            ]
            heard = [voice for voice in trio if voice is not None]
            if heard:
                first = min(int(np.flatnonzero(voice.events)[0]) for voice in heard) // BAR * BAR
                part = cut_trio(trio, size, size, first)
                windows += list(part[count_notes(part) > 0])
        return [torch.from_numpy(window.astype(np.int64)) for window in windows]

    def join(self, tensors: Sequence[Tensor], like: pretty_midi.PrettyMIDI | None = None) -> pretty_midi.PrettyMIDI:
        """Return the windows in a row, in 4/4, as three instruments; each begins in silence.

        Initial tempo, programs and median velocities are those of the trio of `like`; without one 120 bpm, a piano, a
        fingered bass and 90. Any classes can be joined. Raises ValueError for a class that is none.
        """
        midi = new_song(like)
        midi.time_signature_changes.append(pretty_midi.TimeSignature(*COMMON, 0.0))
        step = midi.tick_to_time(midi.resolution) / STEPS_A_BEAT
        windows = [(number * self.bars * BAR, strip(tensor)) for number, tensor in enumerate(tensors)]
        leading = (-1, -1, -1) if like is None else leading_voices(sections_of(like, self.meter, self.bars).sections)
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

    def listed(self, tensor: Tensor) -> dict[str, Any]:
        """Return the events of melody and bass as the melody codec lists them, and the drums' strokes."""
        pitched = {PARTS[part]: self._pitched.listed(tensor[:, part])["events"] for part in (MELODY, BASS)}
        return {**pitched, **self._drums.listed(tensor[:, DRUMS])}

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

    def preview(
        self, items: Sequence[pretty_midi.PrettyMIDI], columns: int | None = None, sound: bool = True
    ) -> Preview:
        return Preview(image=piano_rolls(items, columns), audio=play(items) if sound else None)

    def documents(
        self, items: Sequence[pretty_midi.PrettyMIDI], title: str, captions: Sequence[str], columns: int | None = None
    ) -> dict[str, str]:
        return documents(items, title, captions, columns)
