"""What a corpus holds, item by item: plain lines, a column of a table, a field of JSON lines; packed or not.

Everything comes as a stream. What cannot be an item is a Rejected with its place and the rule; the rest goes on.
"""

import csv
import gzip
import json
import re
import sys
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from seqvae.data.preparation import Rejected, find_files, printable
from seqvae.data.text.sentences import split_sentences
from seqvae.data.text.tokenizer import one_line, short

STDIN = Path("-")
PLAIN, TABLES, OBJECTS = (".txt",), (".csv", ".tsv"), (".jsonl", ".ndjson")
MOST_ROW = 2**24  # bytes of a row, an object, or a line that is to be cut into sentences
MOST_PARAGRAPH = 2**16  # characters that are joined before they are cut into sentences


class Refused(NamedTuple):
    """Why something is no item: the rule is counted, the detail is for whoever looks it up."""

    rule: str
    detail: str = ""


Found = tuple[str, str | Refused]  # the place within its file (a line's number, 17, or a sentence of it, 17.2)
Texts = Iterator[tuple[int, str | Refused]]  # by number of the line


@dataclass(frozen=True)
class Form:
    """How items lie in files: one a line, in one column of tables, or in one field of an object a line."""

    column: str | None = None
    field: str | None = None
    split_sentences: bool = False

    def __post_init__(self) -> None:
        if self.column is not None and self.field is not None:
            raise ValueError(f"text is in a column ({self.column!r}) or in a field ({self.field!r}), not in both")

    def find(self, source: Path) -> list[Path]:
        """Return the files under `source` that are of this form, or `source` itself; "-" is standard input.

        Raises:
            ValueError: when there are none, or for a table or JSON lines without the name of its column or field.
        """
        if source == STDIN:
            return [source]
        endings = TABLES if self.column is not None else OBJECTS if self.field is not None else PLAIN
        paths = find_files(source, None if source.is_file() else (*endings, *(f"{ending}.gz" for ending in endings)))
        if endings == PLAIN and source.is_file():
            self._refuse_structure(source)
        return paths

    def _refuse_structure(self, source: Path) -> None:
        name = source.name.lower().removesuffix(".gz")
        for endings, option in ((TABLES, "column"), (OBJECTS, "field")):
            if name.endswith(endings):
                raise ValueError(
                    f"{source} ends in {Path(name).suffix}: say which {option} holds the text (--{option})"
                )

    def read(self, path: Path, name: str, digest: Any, most: int) -> Iterator[tuple[str, str] | Rejected]:
        """Yield every item's name and text, of at most `most` characters and in one line; feed the digest all bytes."""
        try:
            with ExitStack() as stack:
                file = _open(path, stack)
                plain = self.column is None and self.field is None and not self.split_sentences
                lines = _decode(_lines(file, 4 * most if plain else MOST_ROW, digest), most if plain else MOST_ROW // 4)
                for place, found in self._items(lines, path):
                    checked = _check(found, most)
                    if isinstance(checked, Refused):
                        yield Rejected(f"{name}:{place}", *checked)
                    else:
                        yield f"{name}:{place}", checked
        except (OSError, EOFError, zlib.error) as error:
            yield Rejected(name, "cannot be read", getattr(error, "strerror", None) or str(error))

    def _items(self, lines: Texts, path: Path) -> Iterator[Found]:
        if self.column is not None:
            is_tabbed = path.name.lower().removesuffix(".gz").endswith(".tsv")
            texts = _cells(lines, self.column, {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if is_tabbed else {})
        elif self.field is not None:
            texts = _fields(lines, self.field)
        elif self.split_sentences:
            return _sentences(_paragraphs(lines))
        else:
            return ((str(number), _unended(text)) for number, text in lines)
        return _sentences(texts) if self.split_sentences else ((str(number), text) for number, text in texts)


def _open(path: Path, stack: ExitStack) -> BinaryIO:
    if path == STDIN:
        return sys.stdin.buffer
    if not path.is_file():  # opening a pipe would wait for ever
        raise FileNotFoundError(None, "no such file")
    file: BinaryIO = stack.enter_context(path.open("rb"))
    if path.name.lower().endswith(".gz"):
        return stack.enter_context(gzip.GzipFile(fileobj=file))  # type: ignore[return-value]  # it reads as one
    return file


def _lines(file: BinaryIO, most: int, digest: Any) -> Iterator[tuple[bytes, int]]:
    """Yield every line with its length in bytes; of one beyond `most` bytes only its beginning is kept."""
    while part := file.readline(most):
        line, length = part, len(part)
        digest.update(part)
        while not part.endswith(b"\n") and (part := file.readline(most)):
            length += len(part)
            digest.update(part)
        yield line, length


def _decode(lines: Iterator[tuple[bytes, int]], most: int) -> Texts:
    """Yield every line's text with its line end, but those of more than four bytes for each of `most` characters."""
    for number, (line, length) in enumerate(lines, 1):
        if length > 4 * most:  # before anything that takes time
            yield number, Refused(_too_long(most), f"{length:,} bytes")
            continue
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            yield number, Refused("not UTF-8", str(error))


def _unended(text: str | Refused) -> str | Refused:
    return text if isinstance(text, Refused) else text.removesuffix("\n").removesuffix("\r")


def _cells(lines: Texts, column: str, dialect: dict[str, Any]) -> Texts:
    """Yield the cells of one column, or one refusal where there is no such column."""
    rows = _rows(lines, dialect)
    number, header = next(rows, (1, []))
    names = header if isinstance(header, Refused) else [name.strip() for name in header]
    if column.strip() not in names:
        told = names.rule if isinstance(names, Refused) else f"it has {_names(names)}"
        yield number, Refused(f"no column {column!r}", told)
        return
    place = names.index(column.strip())
    for number, cells in rows:
        if isinstance(cells, Refused):
            yield number, cells
        elif cells:
            yield number, cells[place] if place < len(cells) else Refused("a row without that column")
        else:
            yield number, ""


def _rows(lines: Texts, dialect: dict[str, Any]) -> Iterator[tuple[int, list[str] | Refused]]:
    """Yield the cells of every row; of a row that is damaged only the first line is lost, the next begins a new one."""
    again: deque[tuple[int, str | Refused]] = deque()
    while line := (again.popleft() if again else next(lines, None)):
        number, first = line
        if isinstance(first, Refused):
            yield number, first
            continue
        taken: list[tuple[int, str | Refused]] = []
        try:
            row = next(csv.reader(_row_lines(first, again, lines, taken), strict=True, **dialect), [])
        except csv.Error as error:
            again.extendleft(reversed(taken))
            yield number, Refused("a damaged row", f"{error} (is a quote never closed?)")
        else:
            yield number, row


def _row_lines(first: str, again: deque[Any], lines: Texts, taken: list[tuple[int, str | Refused]]) -> Iterator[str]:
    """Yield a row's first line, and as many of those after it as a quote that stands open asks for."""
    yield first
    size = len(first)
    while line := (again.popleft() if again else next(lines, None)):
        taken.append(line)
        if isinstance(line[1], Refused):
            raise csv.Error(line[1].rule)
        size += len(line[1])
        if size > MOST_ROW:
            raise csv.Error(f"more than {MOST_ROW:,} characters")
        yield line[1]


def _fields(lines: Texts, field: str) -> Texts:
    """Yield one field of each line's object."""
    for number, line in lines:
        yield number, line if isinstance(line, Refused) or not line.strip() else _field(line, field)


def _field(line: str, field: str) -> str | Refused:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Refused("no JSON", str(error))
    if not isinstance(value, dict) or field not in value:
        has = f"it has {_names(value)}" if isinstance(value, dict) else f"it is no object but {short(str(value))}"
        return Refused(f"no field {field!r}", has)
    text = value[field]
    if not isinstance(text, str):
        return Refused(f"the field {field!r} is no string", short(json.dumps(text)))
    return Refused("no Unicode text", "half of a surrogate pair") if re.search("[\ud800-\udfff]", text) else text


def _names(names: Any) -> str:
    return short(printable(", ".join(names)), 200) or "none"


def _paragraphs(lines: Texts) -> Texts:
    """Yield lines joined up to an empty one, with the number of the first; very long paragraphs in several parts."""
    part: list[str] = []
    start, size = 0, 0
    for number, line in lines:
        if part and (isinstance(line, Refused) or not line.strip()):
            yield start, "".join(part)
            part, size = [], 0
        if isinstance(line, Refused):
            yield number, line
        elif line.strip():
            start = start if part else number
            part.append(line)
            size += len(line)
            if size > MOST_PARAGRAPH:
                *whole, last = split_sentences("".join(part))
                if whole:
                    yield start, "\n\n".join(whole)
                    start, part, size = number, [f"{last}\n"], len(last)
                else:
                    yield start, last
                    part, size = [], 0
    if part:
        yield start, "".join(part)


def _sentences(texts: Texts) -> Iterator[Found]:
    for number, text in texts:
        if isinstance(text, Refused):
            yield str(number), text
        else:
            for place, sentence in enumerate(split_sentences(text), 1):
                yield f"{number}.{place}", sentence


def _check(found: str | Refused, most: int) -> str | Refused:
    if isinstance(found, Refused):
        return found
    if len(found) > most:
        return Refused(_too_long(most), f"{len(found):,} characters")
    if "\0" in found:
        return Refused("holds a NUL character", "UTF-16, or no text at all")
    return one_line(found) if found.strip() else Refused("empty line")


def _too_long(most: int) -> str:
    return f"longer than {most:,} characters"
