"""Labels of pictures from a table: CSV or TSV, a row a picture."""

import csv
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from seqvae.data.preparation import Rejected, printable

Find = Callable[[str], list[Path]]


def read_labels(
    table: Path, pictures: Iterable[Path], source: Path, file_column: str | None, label_column: str | None
) -> tuple[dict[Path, str], list[Rejected]]:
    """Return the label of each picture that has one, and the rows whose picture is not there.

    The columns are those of the names given, else the first two; the first row names them, but for a table without
    such a row, which begins with a picture. A picture is told by its path from `source` or, where that fits but one,
    by its own name, each with its ending or without. An empty label is none.

    Raises ValueError for a table that cannot be read, lacks a column, labels no picture, or one in two ways.
    """
    name = printable(str(table))
    find = _finder(pictures, source)
    (first, header), *rows = _rows(table)
    asked = file_column is not None or label_column is not None
    file_place, label_place = _columns(header, file_column, label_column, name)
    if not asked and find(header[file_place]):
        rows = [(first, header), *rows]
    labels: dict[Path, str] = {}
    lines: dict[Path, int] = {}
    rejected = []
    for line, row in rows:
        file, label = (row[place].strip() if place < len(row) else "" for place in (file_place, label_place))
        found = find(file)
        if len(found) != 1:
            rule = f"named in {printable(table.name)}, but {'several fit' if found else 'not there'}"
            rejected.append(Rejected(printable(file), rule, f"line {line}"))
        elif label and labels.setdefault(found[0], label) != label:
            said = f"line {line} says {label!r} of {file!r}, line {lines[found[0]]} says {labels[found[0]]!r}"
            raise ValueError(f"{name}: {printable(said)}; a picture has one label")
        elif label:
            lines.setdefault(found[0], line)
    if not labels:
        there = f"its line {rows[0][0]} names {printable(rows[0][1][file_place])!r}" if rows else "it has no rows"
        raise ValueError(f"{name} labels no picture of {source}: {there}")
    return {picture: printable(label) for picture, label in labels.items()}, rejected


def _rows(table: Path) -> list[tuple[int, list[str]]]:
    """Return the rows that are not empty, each with the number of its line."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            separator = max(",;\t", key=file.readline().count)
            file.seek(0)
            reader = csv.reader(file, delimiter=separator)
            rows = [(reader.line_num, row) for row in reader if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ValueError(f"{printable(str(table))} cannot be read: {reason}") from None
    if not rows:
        raise ValueError(f"{printable(str(table))} is empty; it must hold a picture and its label a row")
    return rows


def _columns(header: Sequence[str], file: str | None, label: str | None, name: str) -> tuple[int, int]:
    """Return the places of the two columns: by their names, the first ones left for those without."""
    for column in (file, label):
        if column is not None and column not in header:
            there = printable(", ".join(header))
            raise ValueError(f"{name} has no column {column!r}; its columns are {there}")
    if file is not None and file == label:
        raise ValueError(f"{name} must have a column of pictures and one of labels, got {file!r} for both")
    left = [place for place, column in enumerate(header) if column not in (file, label)]
    if len(left) < (file is None) + (label is None):
        raise ValueError(f"{name} must have a column of pictures and one of labels, got {printable(', '.join(header))}")
    file_place = left.pop(0) if file is None else header.index(file)
    return file_place, left.pop(0) if label is None else header.index(label)


def _finder(pictures: Iterable[Path], source: Path) -> Find:
    """Return what finds the pictures that a name can mean, by the most exact of four ways that fits any."""
    ways: list[Mapping[str, list[Path]]] = [defaultdict(list) for _ in range(4)]
    for path in pictures:
        relative = path.relative_to(source) if path != source else Path(path.name)
        names = (relative.as_posix(), relative.with_suffix("").as_posix(), path.name, path.stem)
        for way, spelled in zip(ways, names, strict=True):
            way[spelled].append(path)

    def find(name: str) -> list[Path]:
        spelled = name.strip().replace("\\", "/").removeprefix("./")
        return next((way[spelled] for way in ways if spelled in way), [])

    return find
