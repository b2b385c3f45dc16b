"""A folder of MIDI files to a prepared dataset of windows: of melodies, of drums or of trios."""

import logging
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from seqvae.data.midi.advice import FOR_TRIPLETS, NO_TRACK, fixes, need_triplets
from seqvae.data.midi.band import trio_windows
from seqvae.data.midi.drums import DrumTokenizer, drum_windows
from seqvae.data.midi.extracting import Extract, melody_windows
from seqvae.data.midi.magenta import magenta_tracks, magenta_windows
from seqvae.data.midi.melody import BENT, ONSETS, TRIPLETS
from seqvae.data.midi.notes import check_reader, read_song
from seqvae.data.midi.reading import MidiError
from seqvae.data.midi.tokenizer import MelodyTokenizer
from seqvae.data.midi.tracks import Tracks
from seqvae.data.midi.trio import TrioTokenizer
from seqvae.data.preparation import (
    Outcome,
    Record,
    Rejected,
    Report,
    digest_of,
    find_files,
    name_of,
    other_kinds,
    prepare,
    printable,
    split_of,
)

log = logging.getLogger(__name__)

SUFFIXES = MelodyTokenizer.endings
COMPATIBLE = ("magenta",)
KINDS = ("melody", "drums", "trio")

_DEFAULTS = {
    "meter": "strict",
    "steps_per_quarter": 4,
    "gap_bars": 1,
    "split_on_tempo": False,
    "min_notes": None,
    "tracks": None,
    "compat": None,
}


def prepare_midi(
    source: Path,
    root: Path,
    *,
    part: str = "melody",
    bars: int = 2,
    meter: str = "strict",
    min_notes: int | None = None,
    steps_per_quarter: int = 4,
    tracks: str | None = None,
    gap_bars: float = 1,
    split_on_tempo: bool = False,
    compat: str | None = None,
    max_bent: float = 0.1,
    reader: str = "pretty_midi",
    seed: int = 0,
    engine: str = "sequential",
    jobs: int = -1,
    earlier: Iterable[Rejected] = (),
) -> Report:
    """Prepare a part of every MIDI file under `source` as windows at a stride of one bar; return the report.

    The part is "melody", "drums", or "trio": melody, bass and drums, where all three play. Bars, metres, steps and
    tracks are those of MelodyTokenizer. A silence of `gap_bars` bars ends a melody, with `split_on_tempo` a change of
    tempo does, too; windows with fewer than `min_notes` notes (3 by default) are left out. `compat="magenta"` cuts
    melodies by the rules of Magenta's MusicVAE instead, which of all these have but bars and tracks to choose; drums
    and trios have bars, notes and the metres "strict" and "folded". Files whose music is the same in whatever key stay
    on one side of the split. A warning says when the grid moves more than a share `max_bent` of the onsets by more than
    a quarter of a step. `earlier` are tunes that a recipe had to leave out before they became files.

    Raises ValueError for a source without MIDI files, a bad option, or when no file has that part.
    """
    _check(min_notes, gap_bars, max_bent)
    check_reader(reader)
    asked = {"meter": meter, "steps_per_quarter": steps_per_quarter, "gap_bars": gap_bars}
    asked |= {"split_on_tempo": split_on_tempo, "min_notes": min_notes, "tracks": tracks, "compat": compat}
    kind = _kind(part, bars, asked)
    paths = [path.absolute() for path in find_files(source, SUFFIXES)]
    source = source.absolute()  # the workers of a cluster stand in folders of their own
    report = prepare(
        root,
        paths,
        partial(_convert, source=source, reader=reader, extract=kind.extract, chosen=kind.chosen),
        kind.codec,
        kind="midi",
        options={"part": part, "bars": bars, **kind.options, "reader": reader},
        seed=seed,
        engine=engine,
        jobs=jobs,
        key=digest_of(paths, source),
        earlier=earlier,
        counted=other_kinds(source, paths),
        advise=partial(fixes, part=part),
    )
    _warn_of_bent(report, part, max_bent, steps_per_quarter)
    return report


class _Kind(NamedTuple):
    """What one kind of MIDI dataset is made by."""

    codec: MelodyTokenizer | DrumTokenizer | TrioTokenizer
    extract: Extract
    options: dict[str, Any]  # for the manifest
    chosen: Tracks = Tracks()


def _kind(part: str, bars: int, asked: dict[str, Any]) -> _Kind:
    if part not in KINDS:
        raise ValueError(f"part must be one of {', '.join(KINDS)}, got {part!r}")
    if asked["compat"] not in (None, *COMPATIBLE):
        raise ValueError(f"compat must be one of {', '.join(COMPATIBLE)}, got {asked['compat']!r}")
    if part == "melody" and asked["compat"] is not None:
        _refuse(asked, f"compat {asked['compat']!r}", but=("tracks", "compat"))
        codec = MelodyTokenizer(bars=bars, tracks=magenta_tracks(bars) if asked["tracks"] is None else asked["tracks"])
        extract: Extract = partial(magenta_windows, bars=bars, tracks=codec.tracks)
        return _Kind(codec, extract, {**asked, "tracks": codec.tracks}, codec.chosen)
    meter, min_notes = asked["meter"], 3 if asked["min_notes"] is None else asked["min_notes"]
    asked = {**asked, "min_notes": min_notes}
    if part == "melody":
        steps = asked["steps_per_quarter"]
        codec = MelodyTokenizer(
            bars=bars,
            meter=meter,
            steps_per_quarter=steps,
            tracks="all" if asked["tracks"] is None else asked["tracks"],
        )
        choices = {name: asked[name] for name in ("min_notes", "gap_bars", "split_on_tempo")}
        return _Kind(
            codec, partial(melody_windows, codec=codec, **choices), {**asked, "tracks": codec.tracks}, codec.chosen
        )
    _refuse(asked, f"kind {part!r}", but=("meter", "min_notes"))
    options = {"meter": meter, "min_notes": min_notes}
    if part == "drums":
        drums = DrumTokenizer(bars=bars, meter=meter)
        return _Kind(drums, partial(drum_windows, bars=bars, **options), options)
    return _Kind(TrioTokenizer(bars=bars, meter=meter), partial(trio_windows, bars=bars, **options), options)


def _refuse(asked: dict[str, Any], who: str, but: tuple[str, ...]) -> None:
    """Raise ValueError for an option other than `but` these that somebody chose."""
    for name, value in asked.items():
        if name not in but and value != _DEFAULTS[name]:
            raise ValueError(f"{who} has rules of its own; leave out {name} {value!r}")


def _check(min_notes: int | None, gap_bars: float, max_bent: float) -> None:
    if min_notes is not None and (isinstance(min_notes, bool) or not isinstance(min_notes, int) or min_notes < 1):
        raise ValueError(f"min_notes must be a positive int, got {min_notes!r}")
    for name, value, most in (("gap_bars", gap_bars, float("inf")), ("max_bent", max_bent, 1)):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not (0 < value <= most if name == "gap_bars" else 0 <= value <= most):
            wanted = "a positive number" if name == "gap_bars" else "a share from 0 to 1"
            raise ValueError(f"{name} must be {wanted}, got {value!r}")


def _warn_of_bent(report: Report, part: str, most: float, steps_per_quarter: int) -> None:
    onsets, bent = (report.counted[name] for name in (ONSETS, BENT))
    if bent > most * onsets:
        help = f"; {report.counted[TRIPLETS]:,} of them are near triplets: use {FOR_TRIPLETS}"
        log.warning(
            "%s of %s onsets (%.0f %%) lie more than a quarter of a step off the grid of %d steps a quarter note and "
            "are bent to it%s",
            *(f"{bent:,}", f"{onsets:,}", 100 * bent / onsets, steps_per_quarter),
            help if need_triplets(report, part) else "",
        )


def _convert(path: Path, *, source: Path, reader: str, extract: Extract, chosen: Tracks) -> Outcome:
    """Return what one file gives; all that the kinds of MIDI datasets differ in is `extract`."""
    name = name_of(path, source)
    try:
        song = read_song(path, reader)
    except MidiError as error:
        return Rejected(name, error.rule, str(error))
    windows, key, dropped, counted, missing = extract(song)
    if not windows:
        pitched = [track for track in song.tracks if not track.is_drum]
        if pitched and not any(map(chosen.fits, pitched)):
            there = ", ".join(f"{printable(track.name)!r} (program {track.program})" for track in pitched)
            return Rejected(name, NO_TRACK, f"there are {there}")
        return Rejected(name, next((rule for rule, _ in dropped.most_common()), missing))
    split = split_of(path, source)
    # with a split of the user's own a repeat stays where it was put, and is flagged instead
    return Record(name, f"{split or ''}:{key}", windows, split, dropped=dict(dropped), counted=dict(counted))
