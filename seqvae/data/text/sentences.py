"""Running text cut into sentences by a few rules, for any script that ends its sentences with a mark.

A sentence ends at one or more of . ! ? ... (and the marks of other scripts), with the quotes and brackets that close
after them, where white space follows; after the marks of Chinese and Japanese none has to. It does not end

- before a word in small letters ("Go!" he said. Wait ... what?),
- after a title or an abbreviation that something always follows (Mr. Dr. e.g. vs.),
- before a digit after an abbreviation that goes with numbers (No. 5, p. 12, Jan. 3),
- after an initial or several (J. R. R. Tolkien, the U.S. Army) but the word I,
- after a number or a letter that is all there is (1. Introduction).

In doubt the text stays together. An empty line always ends a sentence; any other line break is a space.
"""

import re
from collections.abc import Iterator

_ABBREVIATION = re.compile(  # that something always follows
    r"(?i:mr|mrs|ms|messrs|dr|prof|st|sr|jr|gen|col|capt|lt|sgt|rev|hon|gov|pres|sen|rep|mt|ft|mme|mlle|m|sra|srta"
    r"|e\.g|i\.e|cf|viz|vs|v|al|ca|approx|resp|bzw|z\.b|d\.h|u\.a)"
)
_BEFORE_NUMBERS = re.compile(
    r"(?i:no|nos|nr|figs?|vols?|pp?|ch|sec|art|eqs?|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec)"
)
_INITIALS = re.compile(r"(?!I$)[^\W\d_](?:\.[^\W\d_])*")  # any letters; whether capital ones is asked apart
OPENING, CLOSING = (
    "([{\"'\u2018\u201c\u201e\u00ab\u2039\u00bf\u00a1\u300c\u300e\u3008\u300a",
    ")]}\"'\u2019\u201d\u00bb\u203a",
)
WIDE_CLOSING = "\u300d\u300f\u3009\u300b\uff09\u201d\u2019"

_PARAGRAPH = re.compile(r"\n[^\S\n]*(?:\n\s*)+")
# . ! ? and the ellipsis; Greek, Armenian, Arabic, Urdu, Devanagari, Tibetan, Burmese, Ethiopic, Khmer; doubled
_MARKS = ".!?\u2026\u037e\u0589\u061f\u06d4\u0964\u0965\u0f0d\u104b\u1362\u17d4\u203c\u2047-\u2049"
_WIDE_MARKS = "\u3002\uff01\uff1f\uff61"
_END = re.compile(  # marks are taken from their first to their last: a part of many would be tried again and again
    rf"(?<![{_MARKS}])[{_MARKS}]++[{re.escape(CLOSING)}]*\s+"
    rf"|(?<![{_WIDE_MARKS}])[{_WIDE_MARKS}]++(?:(?![{WIDE_CLOSING}])\s*|[{WIDE_CLOSING}]+(?:\s+|(?=[{OPENING}])))"
)


def split_sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a text, each on one line; nothing but white space is lost."""
    for paragraph in _PARAGRAPH.split(text):
        line = " ".join(paragraph.split())
        start = 0
        for match in _END.finditer(line):
            if match.end() < len(line) and _ends(line, start, match):
                yield line[start : match.end()].strip()
                start = match.end()
        if line[start:]:
            yield line[start:]


def _ends(line: str, start: int, match: re.Match[str]) -> bool:
    """Return whether the marks of a match end the sentence that begins at `start`; looks at two words, no more."""
    if line[match.end() : match.end() + 2].lstrip(OPENING)[:1].islower():
        return False
    marks = match[0].rstrip()
    if not marks.startswith(".") or marks.startswith(".."):
        return True
    first = max(start, line.rfind(" ", start, match.start()) + 1)
    word = line[first : match.start()].lstrip(OPENING)
    if _ABBREVIATION.fullmatch(word) or (_BEFORE_NUMBERS.fullmatch(word) and line[match.end()].isdigit()):
        return False
    if _INITIALS.fullmatch(word) and word[0].isupper():
        return False
    return not (first == start and (word.isdigit() or len(word) == 1))
