"""A folder of MIDI files to a prepared dataset of melody windows."""

import hashlib
import logging
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seqvae.data.midi.melody import BENT, FIRST_NOTE, ONSETS, OUT_OF_RANGE, to_notes
from seqvae.data.midi.notes import read_song
from seqvae.data.midi.reading import MidiError
from seqvae.data.midi.tokenizer import MelodyTokenizer
from seqvae.data.preparation import (
    Outcome,
    Record,
    Rejected,
    Report,
    digest_of,
    find_files,
    name_of,
    prepare,
    split_of,
)

log = logging.getLogger(__name__)

SUFFIXES = MelodyTokenizer.endings


def prepare_midi(
    source: Path,
    root: Path,
    *,
    bars: int = 2,
    meter: str = "strict",
    min_notes: int = 3,
    seed: int = 0,
    engine: str = "sequential",
    jobs: int = -1,
    earlier: Iterable[Rejected] = (),
) -> Report:
    """Prepare the melodies of every MIDI file under `source` as windows at a stride of one bar; return the report.

    Windows with fewer than `min_notes` notes are left out. Files whose music is the same in whatever key stay on one
    side of the split. `earlier` are tunes that a recipe had to leave out before they became files.
    Raises ValueError for a source without MIDI files, a bad option, or when no file has a usable melody.
    """
    if not isinstance(min_notes, int) or min_notes < 1:
        raise ValueError(f"min_notes must be a positive int, got {min_notes!r}")
    codec = MelodyTokenizer(bars=bars, meter=meter)
    source = source.absolute()  # the workers of a cluster stand in folders of their own
    paths = find_files(source, SUFFIXES)
    report = prepare(
        root,
        paths,
        partial(_convert, source=source, codec=codec, min_notes=min_notes),
        codec,
        kind="midi",
        options={"bars": bars, "meter": meter, "min_notes": min_notes},
        seed=seed,
        engine=engine,
        jobs=jobs,
        key=digest_of(paths, source),
        earlier=earlier,
    )
    onsets, bent = report.counted[ONSETS], report.counted[BENT]
    if bent > 0.1 * onsets:
        share = bent / onsets
        log.warning("%.0f %% of onsets lie off the 16-step grid; triplets or human timing are bent to it", 100 * share)
    return report


def _convert(path: Path, *, source: Path, codec: MelodyTokenizer, min_notes: int) -> Outcome:
    name = name_of(path, source)
    try:
        midi = read_song(path)
    except MidiError as error:
        return Rejected(name, error.rule, str(error))
    melodies, dropped, counted = codec.melodies(midi)
    windows = []
    for window in (window for melody in melodies for window in codec.stride_windows(melody.events, melody.bar)):
        if np.count_nonzero(window >= FIRST_NOTE) >= min_notes:
            windows.append(window)
        else:
            dropped[f"fewer than {min_notes} notes"] += 1
    if not windows:
        rules = [rule for rule, _ in dropped.most_common()] + [
            rule for rule in counted if rule == OUT_OF_RANGE and counted[rule]
        ]
        return Rejected(name, (rules or ["no instrument but drums plays"])[0])
    split = split_of(path, source)
    # with a split of the user's own a repeat stays where it was put, and is flagged instead
    group = f"{split or ''}:{_digest([melody.events for melody in melodies])}"
    return Record(name, group, windows, split, dropped=dict(dropped), counted=dict(counted))


def _digest(melodies: Iterable[NDArray[np.uint8]]) -> str:
    """Return a digest of rhythm and intervals: the same for a tune in every key."""
    digest = hashlib.sha256()
    for events in melodies:
        notes = to_notes(events)
        digest.update(repr([(note.start, note.end, note.pitch - notes[0].pitch) for note in notes]).encode())
    return digest.hexdigest()
