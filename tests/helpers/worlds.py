"""Tiny worlds of each modality: a prepared dataset, and a run trained on it a few steps through the configuration."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pretty_midi

from seqvae.data.image import prepare_arrays, write_png
from seqvae.data.midi import prepare_midi
from seqvae.data.text import prepare_text
from seqvae.harness.run import configuration, train

__all__ = ["MODEL", "WORLDS", "Run", "World", "configuration", "train_tiny", "write_tune"]

SUBJECTS = ("the cat", "a dog", "my horse", "the old king", "a small bird", "her son")
VERBS = ("saw", "ate", "took", "found", "hid")
OBJECTS = ("the bread", "a stone", "the red house", "some water", "a ring")

MODEL = {
    "melody": ("latent_dim=4", "embedding_dim=8", "encoder_hidden_dim=8", "hidden_dim=8", "num_layers=1"),
    "text": ("latent_dim=4", "embedding_dim=8", "encoder_hidden_dim=8", "hidden_dim=8", "tie_embeddings=false"),
    "fashion": ("latent_dim=4", "width=4", "stages=2", "features=8"),
}
MODEL |= {"drums": MODEL["melody"], "trio": MODEL["melody"]}
"""Overrides below `model.` that make an experiment's network tiny."""


@dataclass(frozen=True)
class World:
    """A prepared dataset and what it was made from."""

    experiment: str  # the shipped experiment of this modality
    root: Path
    inputs: tuple[str, str]  # two INPUTs for the command
    broken: str  # an INPUT that cannot be read

    @property
    def overrides(self) -> list[str]:
        """What turns the shipped experiment into one on this dataset with a tiny network."""
        model = [f"model.{size}" for size in MODEL[self.experiment]]
        return [f"experiment={self.experiment}", f"data.root={self.root}", *model]


@dataclass(frozen=True)
class Run:
    """A trained tiny run."""

    world: World
    path: Path


def train_tiny(world: World, run_dir: Path, *overrides: str) -> Run:
    """Train four steps of the world's experiment."""
    train(configuration([*world.overrides, "debug=smoke", f"run_dir={run_dir}", *overrides]))
    return Run(world, run_dir)


def write_tune(path: Path, seed: int, bars: int = 4) -> None:
    """Write a tune of quarter and eighth notes in 4/4 at 120 bpm."""
    chance = random.Random(seed)
    midi = pretty_midi.PrettyMIDI(initial_tempo=120)
    midi.time_signature_changes.append(pretty_midi.TimeSignature(4, 4, 0))
    instrument = pretty_midi.Instrument(program=0)
    time, pitch = 0.0, chance.randint(58, 70)
    while time < 2 * bars:
        length = chance.choice((0.25, 0.5))
        instrument.notes.append(pretty_midi.Note(90, pitch, time, min(time + length, 2.0 * bars)))
        time += length
        pitch = min(max(pitch + chance.choice((-4, -2, -1, 1, 2, 4)), 48), 84)
    midi.instruments.append(instrument)
    midi.write(str(path))


def melody_world(folder: Path) -> World:
    """Make a dataset of 40 generated tunes."""
    source = folder / "tunes"
    source.mkdir(parents=True)
    for number in range(40):
        write_tune(source / f"{number:02d}.mid", number)
    prepare_midi(source, folder / "data")
    ends = [folder / "a.mid", folder / "b.mid"]
    for number, path in enumerate(ends):
        write_tune(path, 100 + number, bars=2)
    broken = folder / "broken.mid"
    broken.write_bytes(b"<html>404</html>")
    return World("melody", folder / "data", (str(ends[0]), str(ends[1])), str(broken))


def write_band(path: Path, seed: int, bars: int = 4) -> None:
    """Write a tune as `write_tune` does, with a bass an octave and a half below and drums."""
    write_tune(path, seed, bars)
    midi, chance = pretty_midi.PrettyMIDI(str(path)), random.Random(seed)
    bass = pretty_midi.Instrument(33)
    drums = pretty_midi.Instrument(0, is_drum=True)
    for beat in range(4 * bars):
        start = beat / 2
        bass.notes.append(pretty_midi.Note(90, chance.choice((36, 41, 43)), start, start + 0.5))
        for key in chance.choice(((36, 42), (38, 42), (42,), (36, 46))):
            drums.notes.append(pretty_midi.Note(90, key, start, start + 0.125))
    midi.instruments += [bass, drums]
    midi.write(str(path))


def band_world(folder: Path, part: str) -> World:
    """Make a dataset of what one part plays in 40 generated songs."""
    source = folder / "songs"
    source.mkdir(parents=True)
    for number in range(40):
        write_band(source / f"{number:02d}.mid", number)
    prepare_midi(source, folder / "data", part=part)
    ends = [folder / "a.mid", folder / "b.mid"]
    for number, path in enumerate(ends):
        write_band(path, 100 + number, bars=2)
    broken = folder / "broken.mid"
    broken.write_bytes(b"<html>404</html>")
    return World(part, folder / "data", (str(ends[0]), str(ends[1])), str(broken))


def text_world(folder: Path) -> World:
    """Make a dataset of 60 generated sentences."""
    folder.mkdir(parents=True, exist_ok=True)
    sentences = [f"{subject} {verb} {thing}" for subject in SUBJECTS for verb in VERBS for thing in OBJECTS]
    random.Random(0).shuffle(sentences)
    source = folder / "sentences.txt"
    source.write_text("\n".join(sentences[:60]) + "\n", encoding="utf-8")
    prepare_text(source, folder / "data", vocab_size=60, max_length=24)
    return World("text", folder / "data", (sentences[60], sentences[61]), f"@{folder / 'nowhere.txt'}")


def image_world(folder: Path) -> World:
    """Make a dataset of 40 grey pictures of 8x8 pixels: bright bars on dark ground, lying or standing."""
    chance = np.random.default_rng(0)
    pictures = chance.integers(0, 20, (42, 8, 8, 1), dtype=np.uint8)
    for number, picture in enumerate(pictures):
        place = int(chance.integers(0, 6))
        bar = picture[place : place + 2] if number % 2 else picture[:, place : place + 2]
        bar += 230
    splits = ["train"] * 28 + ["valid"] * 6 + ["test"] * 6
    labels, names = [number % 2 for number in range(40)], ("standing", "lying")
    prepare_arrays(pictures[:40], splits, folder / "data", labels=labels, label_names=names)
    ends = [folder / "a.png", folder / "b.png"]
    for path, picture in zip(ends, pictures[40:], strict=True):
        write_png(path, picture)
    broken = folder / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    return World("fashion", folder / "data", (str(ends[0]), str(ends[1])), str(broken))


WORLDS: dict[str, Callable[[Path], World]] = {
    "melody": melody_world,
    "text": text_world,
    "fashion": image_world,
    "drums": partial(band_world, part="drums"),
    "trio": partial(band_world, part="trio"),
}
