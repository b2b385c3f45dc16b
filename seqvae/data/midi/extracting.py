"""What a song gives to a dataset, and what of it is left out."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqvae.data.midi.melody import FIRST_NOTE, ONLY_DRUMS, OUT_OF_RANGE, note_columns
from seqvae.data.midi.notes import Song
from seqvae.data.midi.tokenizer import MelodyTokenizer


class Extracted(NamedTuple):
    """The windows of one song."""

    windows: list[NDArray[Any]]
    key: str  # the same for songs that are one tune, which a split keeps together
    dropped: Counter[str]  # windows left out, by rule
    counted: Counter[str]
    missing: str  # why there is nothing, where no window was left out


Extract = Callable[[Song], Extracted]


def melody_windows(
    song: Song,
    *,
    codec: MelodyTokenizer,
    min_notes: int = 3,
    gap_bars: float = 1,
    split_on_tempo: bool = False,
) -> Extracted:
    """Return the windows of every melody of a song at a stride of one bar, but those with fewer than `min_notes`."""
    melodies, dropped, counted = codec.melodies(song, gap_bars, split_on_tempo)
    windows = []
    for melody in melodies:
        cut = codec.stride_windows(melody.events, melody.bar)
        windows += with_notes(cut, np.count_nonzero(cut >= FIRST_NOTE, axis=1), min_notes, dropped)
    key = tune_key(melody.events for melody in melodies)
    return Extracted(windows, key, dropped, counted, why_no_melody(counted))


def why_no_melody(counted: Counter[str]) -> str:
    """Return the rule that leaves a song without melodies, where none was too short."""
    return OUT_OF_RANGE if counted[OUT_OF_RANGE] else ONLY_DRUMS


def with_notes(
    windows: NDArray[Any], notes: NDArray[np.int64], min_notes: int, dropped: Counter[str]
) -> list[NDArray[Any]]:
    """Return the windows with so many notes at least; count the others."""
    enough = notes >= min_notes
    if few := int((~enough).sum()):
        dropped[f"fewer than {min_notes} notes"] += few
    return list(windows[enough])


def tune_key(melodies: Iterable[NDArray[np.uint8]]) -> str:
    """Return a digest of rhythm and intervals: the same for a tune in every key."""
    digest = hashlib.sha256()
    for events in melodies:
        starts, ends, pitches = note_columns(events)
        rows = zip(starts.tolist(), ends.tolist(), (pitches - pitches[0]).tolist(), strict=True)
        digest.update(repr(list(rows)).encode())
    return digest.hexdigest()
