"""A folder of MIDI files to a prepared dataset of melody windows."""

import logging
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from seqvae.data.midi.advice import NO_TRACK, fixes
from seqvae.data.midi.extracting import Extract, melody_windows
from seqvae.data.midi.magenta import magenta_tracks, magenta_windows
from seqvae.data.midi.melody import BENT, ONSETS, OUT_OF_RANGE, TRIPLETS
from seqvae.data.midi.notes import check_reader, read_song
from seqvae.data.midi.reading import MidiError
from seqvae.data.midi.tokenizer import MelodyTokenizer
from seqvae.data.midi.tracks import Tracks
from seqvae.data.preparation import (
    Outcome,
    Record,
    Rejected,
    Report,
    digest_of,
    find_files,
    name_of,
    prepare,
    printable,
    split_of,
)

log = logging.getLogger(__name__)

SUFFIXES = MelodyTokenizer.endings
COMPATIBLE = ("magenta",)


def prepare_midi(
    source: Path,
    root: Path,
    *,
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
    """Prepare the melodies of every MIDI file under `source` as windows at a stride of one bar; return the report.

    Bars, metres, steps and tracks are those of MelodyTokenizer. A silence of `gap_bars` bars ends a melody, with
    `split_on_tempo` a change of tempo does, too; windows with fewer than `min_notes` notes (3 by default) are left out.
    `compat="magenta"` cuts windows by the rules of Magenta's MusicVAE instead, which of all these have but bars and
    tracks to choose. Files whose music is the same in whatever key stay on one side of the split. A warning says when
    the grid moves more than a share `max_bent` of the onsets by more than a quarter of a step. `earlier` are tunes
    that a recipe had to leave out before they became files.

    Raises ValueError for a source without MIDI files, a bad option, or when no file has a usable melody.
    """
    _check(min_notes, gap_bars, max_bent)
    check_reader(reader)
    rules = {"meter": meter, "steps_per_quarter": steps_per_quarter, "gap_bars": gap_bars}
    rules |= {"split_on_tempo": split_on_tempo, "min_notes": min_notes}
    codec = MelodyTokenizer(bars=bars, meter=meter, steps_per_quarter=steps_per_quarter, tracks=tracks or "all")
    extract: Extract
    if compat is None:
        rules["min_notes"] = min_notes = 3 if min_notes is None else min_notes
        extract = partial(
            melody_windows, codec=codec, min_notes=min_notes, gap_bars=gap_bars, split_on_tempo=split_on_tempo
        )
    else:
        _check_compatible(compat, rules)
        codec = MelodyTokenizer(bars=bars, tracks=tracks or magenta_tracks(bars))
        extract = partial(magenta_windows, bars=bars, tracks=codec.tracks)
    source = source.absolute()  # the workers of a cluster stand in folders of their own
    paths = find_files(source, SUFFIXES)
    report = prepare(
        root,
        paths,
        partial(_convert, source=source, reader=reader, extract=extract, chosen=codec.chosen),
        codec,
        kind="midi",
        options={"bars": bars, **rules, "tracks": codec.tracks, "compat": compat, "reader": reader},
        seed=seed,
        engine=engine,
        jobs=jobs,
        key=digest_of(paths, source),
        earlier=earlier,
        advise=fixes,
    )
    _warn_of_bent(report, max_bent, steps_per_quarter)
    return report


def _check(min_notes: int | None, gap_bars: float, max_bent: float) -> None:
    if min_notes is not None and (isinstance(min_notes, bool) or not isinstance(min_notes, int) or min_notes < 1):
        raise ValueError(f"min_notes must be a positive int, got {min_notes!r}")
    for name, value, most in (("gap_bars", gap_bars, float("inf")), ("max_bent", max_bent, 1)):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not (0 < value <= most if name == "gap_bars" else 0 <= value <= most):
            wanted = "a positive number" if name == "gap_bars" else "a share from 0 to 1"
            raise ValueError(f"{name} must be {wanted}, got {value!r}")


def _check_compatible(compat: str, rules: dict[str, object]) -> None:
    if compat not in COMPATIBLE:
        raise ValueError(f"compat must be one of {', '.join(COMPATIBLE)}, got {compat!r}")
    defaults = {"meter": "strict", "steps_per_quarter": 4, "gap_bars": 1, "split_on_tempo": False, "min_notes": None}
    for name, value in rules.items():
        if value != defaults[name]:
            raise ValueError(f"compat {compat!r} has rules of its own; leave out {name} {value!r}")


def _warn_of_bent(report: Report, most: float, steps_per_quarter: int) -> None:
    onsets, bent, triplets = (report.counted[name] for name in (ONSETS, BENT, TRIPLETS))
    if bent > most * onsets:
        log.warning(
            "%s of %s onsets (%.0f %%) lie more than a quarter of a step off the grid of %d steps a quarter note and "
            "are bent to it%s",
            *(f"{bent:,}", f"{onsets:,}", 100 * bent / onsets, steps_per_quarter),
            f"; {triplets:,} of them are near triplets: use --steps-per-quarter 12" if 2 * triplets > bent else "",
        )


def _convert(path: Path, *, source: Path, reader: str, extract: Extract, chosen: Tracks) -> Outcome:
    """Return what one file gives; all that the kinds of MIDI datasets differ in is `extract`."""
    name = name_of(path, source)
    try:
        song = read_song(path, reader)
    except MidiError as error:
        return Rejected(name, error.rule, str(error))
    windows, key, dropped, counted = extract(song)
    if not windows:
        pitched = [track for track in song.tracks if not track.is_drum]
        if pitched and not any(map(chosen.fits, pitched)):
            there = ", ".join(f"{printable(track.name)!r} (program {track.program})" for track in pitched)
            return Rejected(name, NO_TRACK, f"there are {there}")
        rules = [rule for rule, _ in dropped.most_common()] + [OUT_OF_RANGE] * (counted[OUT_OF_RANGE] > 0)
        return Rejected(name, [*rules, "no instrument but drums plays"][0])
    split = split_of(path, source)
    # with a split of the user's own a repeat stays where it was put, and is flagged instead
    return Record(name, f"{split or ''}:{key}", windows, split, dropped=dict(dropped), counted=dict(counted))
