"""A folder of MIDI files to a prepared dataset of windows: of melodies, of drums or of trios."""

import hashlib
import logging
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from seqvae.data.midi.drums import DrumTokenizer
from seqvae.data.midi.melody import BENT, ONSETS
from seqvae.data.midi.notes import read_song
from seqvae.data.midi.reading import MidiError
from seqvae.data.midi.tokenizer import MelodyTokenizer
from seqvae.data.midi.trio import TrioTokenizer
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

CODECS: dict[str, type[MelodyTokenizer | DrumTokenizer | TrioTokenizer]] = {
    "melody": MelodyTokenizer,
    "drums": DrumTokenizer,
    "trio": TrioTokenizer,
}
SUFFIXES = MelodyTokenizer.endings


def prepare_midi(
    source: Path,
    root: Path,
    *,
    part: str = "melody",
    bars: int = 2,
    meter: str = "strict",
    min_notes: int = 3,
    seed: int = 0,
    engine: str = "sequential",
    jobs: int = -1,
    earlier: Iterable[Rejected] = (),
) -> Report:
    """Prepare one part of every MIDI file under `source` as windows at a stride of one bar; return the report.

    The part is "melody", "drums", or "trio": melody, bass and drums, where all three play. Windows with fewer than
    `min_notes` notes (strokes of drums) are left out. Files whose music is the same in whatever key stay on one
    side of the split. `earlier` are tunes that a recipe had to leave out before they became files.
    Raises ValueError for a source without MIDI files, a bad option, or when no file has that part.
    """
    if part not in CODECS:
        raise ValueError(f"part must be one of {', '.join(CODECS)}, got {part!r}")
    if not isinstance(min_notes, int) or min_notes < 1:
        raise ValueError(f"min_notes must be a positive int, got {min_notes!r}")
    codec = CODECS[part](bars=bars, meter=meter)
    source = source.absolute()  # the workers of a cluster stand in folders of their own
    paths = find_files(source, SUFFIXES)
    report = prepare(
        root,
        paths,
        partial(_convert, source=source, codec=codec, min_notes=min_notes),
        codec,
        kind="midi",
        options={"part": part, "bars": bars, "meter": meter, "min_notes": min_notes},
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


def _convert(
    path: Path, *, source: Path, codec: MelodyTokenizer | DrumTokenizer | TrioTokenizer, min_notes: int
) -> Outcome:
    name = name_of(path, source)
    try:
        song = read_song(path)
    except MidiError as error:
        return Rejected(name, error.rule, str(error))
    extracted, tune, dropped, counted, missing = codec.extract(song)
    windows = []
    for window in extracted:
        if codec.count_notes(window) >= min_notes:
            windows.append(window)
        else:
            dropped[f"fewer than {min_notes} notes"] += 1
    if not windows:
        return Rejected(name, next((rule for rule, _ in dropped.most_common()), missing))
    split = split_of(path, source)
    # with a split of the user's own a repeat stays where it was put, and is flagged instead
    group = f"{split or ''}:{hashlib.sha256(tune.encode()).hexdigest()}"
    return Record(name, group, windows, split, dropped=dict(dropped), counted=dict(counted))
