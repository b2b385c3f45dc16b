"""Which tracks of a song are heard: all, some of them by name or program, or all of them as one line."""

import re
from fnmatch import fnmatchcase
from typing import NamedTuple, Self

import numpy as np

from seqvae.data.midi.notes import Song, Track, ordered

_PROGRAMS = re.compile(r"(\d{1,3})(?:-(\d{1,3}))?")


class Tracks(NamedTuple):
    """A choice of tracks; drums are never among them."""

    names: tuple[str, ...] = ()  # in small letters, with * and ? as in file names
    programs: tuple[tuple[int, int], ...] = ()  # first and last of each range
    skyline: bool = False  # all that are chosen become one

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the choice that is spelled as words between commas: `all`, `skyline`, names, programs as 0-31.

        A track fits when one of its names or programs does; without any, all tracks do.
        Raises ValueError for a range that is none, or for a text without words.
        """
        if not isinstance(text, str) or not all(words := [word.strip() for word in text.split(",")]):
            raise ValueError(f"tracks must be all, skyline, names or programs such as 0-31, got {text!r}")
        names, programs = [], []
        for word in words:
            if found := _PROGRAMS.fullmatch(word):
                first, last = int(found[1]), int(found[2] or found[1])
                if not first <= last <= 127:
                    raise ValueError(f"tracks: programs must be from 0 to 127 in order, got {word!r}")
                programs.append((first, last))
            elif word.lower() not in ("all", "skyline"):
                names.append(word.lower())
        return cls(tuple(names), tuple(programs), "skyline" in [word.lower() for word in words])

    def fits(self, track: Track) -> bool:
        """Return whether the track is one of those that are asked for."""
        if track.is_drum:
            return False
        name = track.name.strip().lower()
        named = any(fnmatchcase(name, pattern) for pattern in self.names)
        numbered = any(first <= track.program <= last for first, last in self.programs)
        return named or numbered or not (self.names or self.programs)

    def chosen(self, song: Song) -> list[tuple[int, Track]]:
        """Return the tracks that fit with their places in the song; as a skyline one, in the place of the largest."""
        fitting = [(place, track) for place, track in enumerate(song.tracks) if self.fits(track)]
        if not self.skyline or not fitting:
            return fitting
        place, largest = max(fitting, key=lambda pair: (len(pair[1].notes), -pair[0]))
        return [(place, largest._replace(notes=ordered(np.concatenate([track.notes for _, track in fitting]))))]
