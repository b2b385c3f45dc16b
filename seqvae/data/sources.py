"""What a person's folder holds: which files, under which printable names, on which side of the split."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

SPLIT_NAMES = {
    "train": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
    "t10k": "test",  # MNIST's
}

KINDS = 10  # of files that a report tells apart by their endings


def find_files(source: Path, suffixes: Iterable[str] | None = None) -> list[Path]:
    """Return the files under `source` (or the file itself) in order, hidden ones left out.

    Links are followed; a folder that can be reached in several ways, or within itself, is entered once. What cannot
    be opened (a broken link, a pipe) is among them, for whoever reads them to say so.

    Raises:
        ValueError: when `source` does not exist or holds no file with one of the endings.
        OSError: when a folder in it cannot be listed: what it holds would be missing without a word.
    """
    if not source.exists():
        raise ValueError(f"no such file or folder: {source}")
    endings = tuple(suffix.lower() for suffix in suffixes) if suffixes is not None else None
    inside = [source] if source.is_file() else sorted(_walk(source))
    found = [path for path in inside if endings is None or path.name.lower().endswith(endings)]
    if not found:
        wanted = f" ending in {', '.join(sorted(endings))}" if endings else ""
        raise ValueError(f"{source} holds no files{wanted} ({len(inside)} files in all)")
    return found


def other_kinds(source: Path, known: Iterable[Path]) -> dict[str, int]:
    """Return what a report counts of the files under `source` that are none of these: how many there are by ending.

    Hidden files are left out, as in `find_files`; beyond the commonest endings the others are counted together.
    """
    known = set(known)
    others = sorted(path for path in _walk(source) if path not in known) if source.is_dir() else []
    endings = Counter(printable(path.suffix.lower()) or "no ending" for path in others)
    told = {f"files of other kinds: {ending}": count for ending, count in endings.most_common(KINDS)}
    rest = len(others) - sum(told.values())
    return told | ({f"files of other kinds: {len(endings) - KINDS} more endings": rest} if rest else {})


def _walk(source: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise error

    entered: set[tuple[int, int]] = set()
    for folder, inner, files in os.walk(source, followlinks=True, onerror=fail):
        facts = Path(folder).stat()
        if (facts.st_dev, facts.st_ino) in entered:
            inner.clear()
            continue
        entered.add((facts.st_dev, facts.st_ino))
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        yield from (Path(folder, name) for name in files if not name.startswith("."))


def split_of(path: Path, source: Path) -> str | None:
    """Return the split that a path's own name says, else None.

    SOURCE/train/x.mid, SOURCE/valid.txt.gz and SOURCE/ptb.test.txt say one; a file in a deeper folder and a name that
    says two say none.
    """
    parts = path.relative_to(source).parts if path != source else ()
    return split_said(parts[:1] if len(parts) > 1 else parts[0].split(".") if parts else ())


def split_said(words: Iterable[str]) -> str | None:
    """Return the split that one of the words says, None when none does or two say different ones."""
    said = {SPLIT_NAMES[word.lower()] for word in words if word.lower() in SPLIT_NAMES}
    return said.pop() if len(said) == 1 else None


def name_of(path: Path, source: Path) -> str:
    """Return what a report calls a file: its way from `source`, printable."""
    return printable(path.relative_to(source).as_posix() if path != source else path.name)


def printable(text: str) -> str:
    """Return one line in which a file's own names can neither break the terminal nor the report."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def digest_of(paths: Iterable[Path], source: Path) -> str:
    """Return a digest of the files' names, sizes and times of change: another one tells that the work is another."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            facts = path.stat()
            stamp = (facts.st_size, facts.st_mtime_ns)
        except OSError:  # a broken link
            stamp = (0, 0)
        digest.update(f"{name_of(path, source)}\n{stamp}\n".encode())
    return digest.hexdigest()
