"""Songs as people meet them: piano rolls, sound, a page to open, notation."""

from collections.abc import Sequence

import pretty_midi

from seqvae.data.midi.abc import tunes
from seqvae.data.midi.page import page
from seqvae.data.midi.rolls import piano_rolls
from seqvae.data.midi.sound import play

__all__ = ["documents", "piano_rolls", "play"]


def documents(
    items: Sequence[pretty_midi.PrettyMIDI], title: str, captions: Sequence[str], columns: int | None = None
) -> dict[str, str]:
    """Return a page that draws and plays the songs, and unless all are drums their tunes as ABC, by their endings."""
    found = {".html": page(title, items, captions, columns)}
    abc = tunes(items, captions)
    return found if abc is None else found | {".abc": abc}
