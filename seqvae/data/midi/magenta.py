"""Melodies by the rules of Magenta's MusicVAE (Roberts et al., 2018), step for step, for who must match its windows.

What differs from this library's own rules: times are quantised in seconds, each piece between two changes of tempo or
time signature on its own, with the bars counted from its beginning; metres whose bar is not 16 steps give nothing, 2/4
among them; a melody shorter than a window gives nothing, too; a window that begins within a held note loses it; of
equal windows of one file one is kept.
"""

from collections import Counter
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from seqvae.data.midi.extracting import Extracted, tune_key, why_no_melody
from seqvae.data.midi.melody import BAR, FIRST_NOTE, NO_EVENT, NOTE_OFF, in_range, phrases, skyline, to_events
from seqvae.data.midi.meters import COMMON, Meter
from seqvae.data.midi.notes import END, PITCH, START, Song
from seqvae.data.midi.tracks import Tracks

STEPS_A_QUARTER = 4
MOST_BARS = 100  # of a melody; what it goes on with is left out


def magenta_tracks(bars: int) -> str:
    """Return what its configurations choose: programs 0 to 31 for two bars, any for sixteen."""
    return "0-31" if bars < 16 else "all"


def magenta_windows(song: Song, *, bars: int = 2, tracks: str | None = None) -> Extracted:
    """Return the windows that Magenta's converter makes of a song, without its limit of five a song."""
    pieces, melodies = _pieces(song), []
    starts = np.array([piece.start for piece in pieces])
    dropped: Counter[str] = Counter()
    counted: Counter[str] = Counter()
    for _, track in Tracks.parse(magenta_tracks(bars) if tracks is None else tracks).chosen(song):
        notes = in_range(track.notes, counted)
        seconds = _seconds(song, notes[:, [START, END]])
        owners = np.searchsorted(starts, seconds[:, 0], side="right") - 1
        for owner in np.flatnonzero(np.bincount(owners)):
            piece, pitches = pieces[owner], notes[owners == owner, PITCH]
            times = np.minimum(seconds[owners == owner], piece.end) - piece.start
            steps = (times * (STEPS_A_QUARTER * piece.qpm / 60.0) + 0.5).astype(np.int64)
            if (bar := piece.meter.steps(STEPS_A_QUARTER)) != BAR:
                rule = f"time signature {piece.meter} (Magenta keeps bars of {BAR} steps)"
                dropped[rule] += max(1, int(steps[:, 0].max() // bar - steps[:, 0].min() // bar) + 2 - bars)
                continue
            line = skyline(np.column_stack([steps, pitches]), keep_first=True)
            melodies += [to_events(phrase)[: MOST_BARS * BAR] for phrase in phrases(line)]
    windows = [window for events in melodies for window in _windows(events, bars * BAR)]
    unique = {window.tobytes(): window for window in windows}
    if repeats := len(windows) - len(unique):
        dropped["repeats a window of its file"] += repeats
    return Extracted(list(unique.values()), tune_key(melodies), dropped, counted, why_no_melody(counted))


class _Piece(NamedTuple):
    """The music between two changes of tempo or time signature, in seconds."""

    start: float
    end: float
    qpm: float
    meter: Meter


def _pieces(song: Song) -> list[_Piece]:
    """Return the pieces; what changes at the end of the last note or later, or to what was there, cuts none."""
    signatures = {tick: Meter(over, under) for tick, over, under in song.time_signatures}
    tempos = dict(song.tempos)
    ticks = np.array(sorted({0, *signatures, *tempos}))
    ends = [track.notes[:, END].max() for track in song.tracks if len(track.notes)]
    total = float(_seconds(song, np.array(max(ends, default=0))))
    cuts: list[tuple[float, float, Meter]] = []
    qpm, meter = 120.0, COMMON
    for tick, seconds in zip(ticks.tolist(), _seconds(song, ticks).tolist(), strict=True):
        now = (_qpm(song, tempos[tick]) if tick in tempos else qpm, signatures.get(tick, meter))
        if not cuts or (seconds < total and now != (qpm, meter)):
            cuts.append((seconds, *now))
        qpm, meter = now
    borders = pairwise([*(seconds for seconds, _, _ in cuts), total])
    return [_Piece(start, end, *cut[1:]) for (start, end), cut in zip(borders, cuts, strict=True)]


def _qpm(song: Song, bpm: float) -> float:
    return 60.0 / (60.0 / (bpm * song.resolution) * song.resolution)  # as pretty_midi has it, to the last bit


def _seconds(song: Song, ticks: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return when ticks sound, to the last bit as pretty_midi has it: halves of a step depend on it."""
    scales = [60.0 / (bpm * song.resolution) for _, bpm in song.tempos]
    begins = [0.0]
    for ((tick, _), (following, _)), scale in zip(pairwise(song.tempos), scales, strict=False):
        begins.append(begins[-1] + scale * (following - tick))
    starts = np.array([tick for tick, _ in song.tempos])
    place = np.searchsorted(starts, ticks, side="right") - 1
    seconds: NDArray[np.float64] = np.array(begins)[place] + np.array(scales)[place] * (ticks - starts[place])
    return seconds


def _windows(events: NDArray[np.uint8], size: int) -> list[NDArray[np.uint8]]:
    """Return the windows of a melody at a stride of one bar; note offs before the first note of each are none."""
    if len(events) < size:
        return []
    windows = sliding_window_view(events, size)[::BAR].copy()
    heard = np.maximum.accumulate(windows >= FIRST_NOTE, axis=1)
    windows[(windows == NOTE_OFF) & ~heard] = NO_EVENT
    return list(windows)
