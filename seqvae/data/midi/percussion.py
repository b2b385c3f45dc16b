"""The nine kinds of percussion: what drums are heard as, drawn and played."""

# Every percussion key of General MIDI 1 and 2, and the hi-hat edges of electronic kits (22, 26), by what it sounds
# like. A combination's number has bit i for class i, and a class is written as its first key: both as in Magenta.
CLASSES: dict[str, tuple[int, ...]] = {
    "kick": (36, 35),
    "snare": (38, 27, 28, 31, 32, 33, 34, 37, 39, 40, 56, 65, 66, 75, 85),
    "closed hi-hat": (42, 22, 44, 54, 68, 69, 70, 71, 73, 78, 80),
    "open hi-hat": (46, 26, 67, 72, 74, 79, 81),
    "low tom": (45, 29, 41, 43, 61, 64, 84),
    "mid tom": (48, 47, 60, 63, 77, 86, 87),
    "high tom": (50, 30, 62, 76, 83),
    "crash": (49, 52, 55, 57, 58),
    "ride": (51, 53, 59, 82),
}
OTHER = "other"
ROWS = (*reversed(CLASSES), OTHER)  # as they are drawn, from the top

_CLASS_OF = {key: name for name, keys in CLASSES.items() for key in keys}


def drum_row(key: int) -> str:
    """Return the row of `ROWS` that a drum's key belongs to."""
    return _CLASS_OF.get(key, OTHER)
