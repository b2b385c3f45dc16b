"""Songs as one HTML page that draws and plays them: a file of its own, which asks nothing of any network."""

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import pretty_midi

from seqvae.data.midi.percussion import ROWS, drum_row
from seqvae.data.midi.rolls import COLOURS, DRUM_COLOUR
from seqvae.data.midi.sheet import Sheet, Voice, sheet_of
from seqvae.data.midi.sound import FAMILIES, KIT


def page(title: str, items: Sequence[pretty_midi.PrettyMIDI], titles: Sequence[str], columns: int | None = None) -> str:
    """Return the text of a page with a piano roll and a button an item, in so many columns where it is said.

    Titles may hold anything: they are never read as HTML. No script but the page's own may run in it.
    """
    sheets = [sheet_of(item) for item in items]
    struck = {drum_row(s.pitch) for sheet in sheets for voice in sheet.voices if voice.is_drum for s in voice.sounds}
    rows = [row for row in ROWS if row in struck]
    music = {
        "columns": columns,
        "drums": [{"name": row, **KIT[row]._asdict()} for row in rows],
        "items": [_item(sheet, name, rows) for sheet, name in zip(sheets, titles, strict=True)],
    }
    # < could end the element that holds them
    data = json.dumps(music, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    parts = {"PAGE_TITLE": html.escape(title), "SCRIPT_HASH": _script_hash(), "MUSIC": data}
    return re.sub("|".join(parts), lambda match: parts[match[0]], _template())


@cache
def _template() -> str:
    return files("seqvae.data.midi").joinpath("page.html").read_text(encoding="utf-8")


def _script_hash() -> str:
    """Return what a browser knows the page's script by (Content Security Policy, level 3)."""
    script = _template().rpartition("<script>")[2].partition("</script>")[0]
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _item(sheet: Sheet, title: str, rows: Sequence[str]) -> dict[str, Any]:
    ends = [*(bar.start for bar in sheet.bars[1:]), sheet.end]
    lines = [beat for bar, end in zip(sheet.bars, ends, strict=True) for beat in np.arange(bar.start, end, bar.beat)]
    pitched = [voice for voice in sheet.voices if not voice.is_drum]
    return {
        "title": "".join(c if c.isprintable() else "\ufffd" for c in title),
        "beats": _short(sheet.end),
        "bars": [_short(bar.start) for bar in sheet.bars],
        "lines": [_short(beat) for beat in lines],
        "clock": [[_short(beat), _short(second)] for beat, second in sheet.clock],
        "more": f"the first {len(sheet.bars)} bars" if sheet.goes_on else "",
        "voices": [
            *(_pitched(voice, place) for place, voice in enumerate(pitched)),
            *(_drums(voice, rows) for voice in sheet.voices if voice.is_drum),
        ],
    }


def _pitched(voice: Voice, place: int) -> dict[str, Any]:
    held, struck = (_colour(rgb) for rgb in COLOURS[place % len(COLOURS)])
    timbre = FAMILIES[voice.program // 8 % len(FAMILIES)]._asdict()
    notes = [[_short(s.start), _short(s.end), s.pitch, s.velocity] for s in voice.sounds]
    return {"name": voice.name, "drums": False, "timbre": timbre, "held": held, "struck": struck, "notes": notes}


def _drums(voice: Voice, rows: Sequence[str]) -> dict[str, Any]:
    """Return drums with the number of their row where others have a pitch."""
    colour = _colour(DRUM_COLOUR)
    notes = [[_short(s.start), _short(s.end), rows.index(drum_row(s.pitch)), s.velocity] for s in voice.sounds]
    return {"name": voice.name, "drums": True, "struck": colour, "notes": notes}


def _colour(rgb: Sequence[int]) -> str:
    return "#" + "".join(f"{value:02x}" for value in rgb)


def _short(value: float) -> float:
    """Return a number without digits that nobody hears."""
    rounded = round(value, 5)
    return int(rounded) if math.isclose(rounded, int(rounded), abs_tol=1e-9) else rounded
