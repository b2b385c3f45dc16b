"""How sources become a prepared dataset: convert in shards, split by item, drop repeats, write, report."""

import contextlib
import hashlib
import itertools
import json
import logging
import os
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TextIO

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

import seqvae
from seqvae.data import shards
from seqvae.data.codec import Codec
from seqvae.data.dataset import FORMAT, MANIFEST, SPLITS, fingerprint, sha256
from seqvae.data.shards import Outcome, Record, Rejected, Shards, Source, Sources
from seqvae.data.sources import (
    SPLIT_NAMES,
    digest_of,
    find_files,
    name_of,
    other_kinds,
    printable,
    split_of,
    split_said,
)

__all__ = [  # all that a modality and a recipe need, in one place
    "SPLIT_NAMES",
    "Outcome",
    "Record",
    "Rejected",
    "Report",
    "complete_splits",
    "digest_of",
    "find_files",
    "first_places",
    "hold",
    "key_of",
    "name_of",
    "other_kinds",
    "prepare",
    "printable",
    "refuse_existing",
    "split_of",
    "split_said",
    "told",
]

log = logging.getLogger(__name__)

PARTS = (*SPLITS, "codec", "report.json", "rejected.jsonl", "dropped.jsonl")  # what a dataset is beside its manifest
UNSPLIT = -1  # the place in SPLITS of what its source put on no side
FOLDERS = 10  # of the source that a table lists
LOCK, PARTIAL, SHARDS = ".lock", ".partial", ".shards-"  # what stands in a root while it is made


@dataclass
class Report:
    """What was kept and why the rest went."""

    kept: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)  # windows
    touched: Counter[str] = field(default_factory=Counter)  # kept items of which the rule left windows out
    counted: Counter[str] = field(default_factory=Counter)
    items: dict[str, int] = field(default_factory=dict)
    windows: dict[str, int] = field(default_factory=dict)
    seen_in_train: dict[str, int] = field(default_factory=dict)
    folders: dict[str, list[int]] = field(default_factory=dict)  # items and windows by the source's folders
    fixes: list[str] = field(default_factory=list)  # what would keep more, the commonest first

    def table(self) -> str:
        """Return the report as lines of text."""
        total = self.kept + self.rejected.total()
        rows = [f"kept {self.kept:,} of {total:,} items"]
        rows += [f"  rejected {count:>9,}  {rule}" for rule, count in self.rejected.most_common()]
        for rule, count in self.dropped.most_common():
            where = f" (in {self.touched[rule]:,} items)" if self.touched[rule] else ""
            rows.append(f"  windows  {count:>9,}  left out: {rule}{where}")
        rows += [f"  counted  {count:>9,}  {name}" for name, count in self.counted.most_common() if count]
        for split in SPLITS:
            row = f"{split:<6}{self.items[split]:>9,} items {self.windows[split]:>10,} windows"
            if self.seen_in_train.get(split):
                row += f"  ({self.seen_in_train[split]:,} of them also stand in train)"
            rows.append(row)
        if len(self.folders) > 1:
            largest = sorted(self.folders.items(), key=lambda pair: (-pair[1][1], pair[0]))
            rows += [
                f"{items:>15,} items {count:>10,} windows  of {name}" for name, (items, count) in largest[:FOLDERS]
            ]
            rows += [f"{'':>15} and those of {len(largest) - FOLDERS:,} more folders"] * (len(largest) > FOLDERS)
        rows += [f"to keep more: {fix}" for fix in self.fixes]
        return "\n".join(rows)


def prepare(
    root: Path,
    sources: Sources[Source],
    convert: Callable[[Source], Outcome],
    codec: Codec[Any],
    *,
    kind: str,
    options: dict[str, Any],
    seed: int = 0,
    engine: str = "sequential",
    jobs: int = -1,
    key: str = "",
    earlier: Iterable[Rejected] = (),
    counted: Mapping[str, int] | None = None,
    drop_repeats: bool = True,
    shard_size: int | None = None,
    advise: Callable[[Report], list[str]] | None = None,
) -> Report:
    """Convert the sources and write a dataset at `root`; return what was kept.

    `options` go into the manifest; together with `key` (a digest of the sources' content, where names do
    not tell) they decide whether shards of an earlier, interrupted run fit. `earlier` are items that were
    rejected before conversion, `counted` what the report says beside what records say. With `drop_repeats` a
    window that repeats within its split is kept once; a window of valid or test that also stands in train is
    kept and flagged in the column `seen_in_train`. A shard holds `shard_size` sources, which is worth choosing
    where a source takes microseconds. `advise` says what would keep more. Memory grows by tens of bytes an item,
    whatever the items hold.

    Raises:
        ValueError: when `root` holds a dataset or something that would be overwritten, another process prepares it,
            or nothing was kept (the message names the rules).
        OSError: when something cannot be written or a worker was killed; what is finished then is kept.
    """
    with told(root), hold(root):
        refuse_existing(root)
        size = shard_size or shards.SHARD_SIZE
        facts = [seqvae.__version__, size, kind, options, seed, codec.options, codec.spec, key]
        identity = json.dumps([*facts, len(sources)], sort_keys=True)
        folder = root.resolve() / f"{SHARDS}{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
        if {path.name for path in root.glob(f"{SHARDS}*")} - {folder.name}:
            log.info("%s holds unfinished work of other options or sources, which is of no use here", root)
        work = Shards(folder, sources, convert, size)
        work.run(engine, jobs)
        report = Report(counted=Counter(counted))
        _write(root, work, codec, kind, options, seed, earlier, drop_repeats, report, advise)
        _sweep(root)
        return report


@contextlib.contextmanager
def told(root: Path) -> Iterator[None]:
    """Say of an OSError, in one line, that it is `root` that cannot be prepared."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise type(error)(f"{root} cannot be prepared: {reason} (what is finished is kept for another run)") from error


@contextlib.contextmanager
def hold(root: Path) -> Iterator[None]:
    """Make `root` if need be and keep other processes from preparing it; ValueError when one is at it already."""
    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root.resolve() / LOCK, is_singleton=True)  # of one process, so a recipe can hold it around prepare
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"{root} is being prepared by another process; wait for it or choose another --root") from None
    try:
        yield
    finally:
        if lock.lock_counter == 1:
            (root / LOCK).unlink(missing_ok=True)  # while it is held: whoever waits for this file will see it gone
        lock.release()


def refuse_existing(root: Path) -> None:
    """Raise ValueError when `root` holds a prepared dataset, or files of one's own where its parts would stand.

    Nothing is ever overwritten, but what an interrupted preparation has moved to its place already.
    """
    if (root / MANIFEST).exists():
        _sweep(root)  # all there is to do when the preparation was killed after its last step
        raise ValueError(f"{root} already holds a prepared dataset; remove it or choose another --root")
    for name in PARTS:
        if (root / name).exists() and name not in _moved(root):
            raise ValueError(f"{root} holds {name!r}, which a dataset there would overwrite; choose another --root")


def _moved(root: Path) -> list[str]:
    """Return the parts that a preparation had moved to their places when it was killed before it wrote the manifest."""
    if not (root / PARTIAL / MANIFEST).exists():  # written last: until then nothing is moved
        return []
    return [name for name in PARTS if not (root / PARTIAL / name).exists()]


def _sweep(root: Path) -> None:
    """Remove what only the making of a dataset needs, unfinished work with other options included."""
    for folder in (root / PARTIAL, *root.glob(f"{SHARDS}*")):
        shutil.rmtree(folder, ignore_errors=True)


def key_of(group: str, seed: int) -> int:
    """Return 64 bits of a hash: what decides, with the seed, on which side of the split a group is drawn."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{group}".encode()).digest()[:8])


def complete_splits(keys: NDArray[np.uint64], given: NDArray[np.int8], share: float = 0.05) -> NDArray[np.int8]:
    """Return the split of every item as its place in SPLITS, keeping those that its source gave (-1: none).

    What the source lacks of valid and test is cut out of its train: a `share` each of the different keys, at least
    one, in the order of the keys. Items of one key go together; neither the order of items nor the machine matters.

    Raises:
        ValueError: when fewer than three different keys are left to be split.
    """
    train, valid, test = range(len(SPLITS))
    splits = np.where(given == UNSPLIT, np.int8(train), given)
    free = splits == train
    lacking = [split for split in (test, valid) if not (given == split).any()]
    if not lacking:
        return splits
    order = np.unique(keys[free])
    if len(order) < 3:
        raise ValueError(f"a dataset needs at least 3 different items to be split, got {len(order)}")
    held_out = max(1, round(share * len(order)))
    for place, split in enumerate((test, valid)):
        if split in lacking:
            first, last = order[place * held_out], order[(place + 1) * held_out - 1]
            splits[free & (first <= keys) & (keys <= last)] = split
    return splits


def first_places(keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return which keys stand where they stand for the first time."""
    first = np.zeros(len(keys), np.bool_)
    low = keys.view(np.uint8)[:: keys.itemsize]
    for part in range(16):  # sorting all of them at once would take three times the memory
        places = np.flatnonzero(low % 16 == part)
        first[places[np.unique(keys[places], return_index=True)[1]]] = True
    return first


def _write(
    root: Path,
    outcomes: Iterable[Outcome],
    codec: Codec[Any],
    kind: str,
    options: dict[str, Any],
    seed: int,
    earlier: Iterable[Rejected],
    drop_repeats: bool,
    report: Report,
    advise: Callable[[Report], list[str]] | None,
) -> None:
    temporary = _fresh_partial(root)
    image_shape = codec.spec.get("image_shape")
    sizes = codec.spec.get("vocab_size", 0)  # of images none, of tokens in several parts one for each
    dtype = np.dtype(np.uint8 if image_shape else np.uint16 if np.max(sizes) <= 2**16 else np.int32)
    with (temporary / "rejected.jsonl").open("w", encoding="utf-8") as file:
        survey = _Survey.of(_kept(itertools.chain(earlier, outcomes), file, report), seed, dtype)
    if not survey.given:
        reasons = "; ".join(f"{count} x {rule}" for rule, count in report.rejected.most_common(3)) or "no items found"
        help = "".join(f"; {fix}" for fix in (advise(report) if advise else []))
        raise ValueError(f"nothing to prepare for {root}: every item was rejected ({reasons}){help}")
    records = (outcome for outcome in outcomes if isinstance(outcome, Record))
    _write_splits(temporary, records, survey, dtype, drop_repeats, report)
    (temporary / "codec").mkdir()
    codec.save(temporary / "codec")
    report.fixes = advise(report) if advise else []
    _write_json(temporary / "report.json", vars(report))  # asdict would make pairs of a Counter's counts
    data_files = sorted(path for folder in (*SPLITS, "codec") for path in (temporary / folder).iterdir())
    files = {path.relative_to(temporary).as_posix(): sha256(path) for path in data_files}
    manifest = {
        "format": FORMAT,
        "kind": kind,
        "codec": type(codec).__name__,
        "options": options,
        "seed": seed,
        "splits": report.windows,
        "stored_dtype": dtype.name,
        "window_shape": image_shape,
        "parts": np.size(sizes),
        "versions": {"seqvae": seqvae.__version__, "numpy": np.__version__},
        "files": files,
        "fingerprint": fingerprint(files),
    }
    _write_json(temporary / MANIFEST, manifest)
    for path in (path for path in temporary.rglob("*") if path.is_file()):
        with path.open("rb") as written:
            os.fsync(written.fileno())  # or the manifest could outlive a power cut, and the rest not
    for name in (*PARTS, MANIFEST):  # the manifest last: a dataset without one is none
        (temporary / name).rename(root / name)


def _fresh_partial(root: Path) -> Path:
    """Return an empty folder to write the parts into, having undone what a killed preparation had moved out of it."""
    for name in _moved(root):
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    partial = root / PARTIAL
    (partial / MANIFEST).unlink(missing_ok=True)  # first: from here on nothing counts as moved
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()
    return partial


def _group(record: Record) -> str:
    """Return what is drawn as one; an item that stands in two splits of its source stays in both."""
    return record.group if record.split is None else f"{record.split}:{record.group}"


def _kept(outcomes: Iterable[Outcome], file: TextIO, report: Report) -> Iterator[Record]:
    """Yield the records; count the others and write them to the file."""
    for outcome in outcomes:
        if isinstance(outcome, Record):
            yield outcome
        else:
            report.rejected[outcome.rule] += 1
            file.write(json.dumps(vars(outcome), ensure_ascii=False) + "\n")


@dataclass
class _Survey:
    """What decides where records and their windows go, in a few bytes each."""

    keys: "array[int]"  # of each record's group
    given: "array[int]"  # the place in SPLITS where its source put it
    counts: "array[int]"  # of its windows
    windows: "array[int]"  # a hash of the content of each window

    @classmethod
    def of(cls, records: Iterable[Record], seed: int, dtype: np.dtype[Any]) -> Self:
        survey = cls(array("Q"), array("b"), array("I"), array("Q"))
        for record in records:
            survey.keys.append(key_of(_group(record), seed))
            survey.given.append(UNSPLIT if record.split is None else SPLITS.index(record.split))
            survey.counts.append(len(record.windows))
            survey.windows.extend(_hash(window.astype(dtype)) for window in record.windows)
        return survey

    def splits(self) -> NDArray[np.int8]:
        """Return where each record goes."""
        return complete_splits(np.frombuffer(self.keys, np.uint64), np.frombuffer(self.given, np.int8))


def _hash(window: NDArray[Any]) -> int:
    return int.from_bytes(hashlib.blake2b(window.tobytes(), digest_size=8).digest())


def _write_splits(
    folder: Path,
    records: Iterable[Record],
    survey: _Survey,
    dtype: np.dtype[Any],
    drop_repeats: bool,
    report: Report,
) -> None:
    """Write the records' windows, names and columns into one folder a split."""
    splits = survey.splits()
    windows = np.frombuffer(survey.windows, np.uint64)
    sides = np.repeat(splits, np.frombuffer(survey.counts, np.uint32))
    kept = np.ones(len(windows), np.bool_)
    if drop_repeats:
        for side in range(len(SPLITS)):
            kept[sides == side] = first_places(windows[sides == side])
        if repeats := int((~kept).sum()):
            report.dropped["repeats a window of its split"] += repeats
    with contextlib.ExitStack() as stack:
        parts = [stack.enter_context(_Part(folder / split)) for split in SPLITS]
        file = stack.enter_context((folder / "dropped.jsonl").open("w", encoding="utf-8"))
        following = 0
        for record, split in zip(records, splits.tolist(), strict=True):
            report.kept += 1
            report.dropped.update(record.dropped)
            report.counted.update(record.counted)
            if record.dropped:
                report.touched.update(record.dropped.keys())
                file.write(json.dumps({"name": record.name, "dropped": record.dropped}, ensure_ascii=False) + "\n")
            part = parts[split]
            before = len(part.lengths)
            for window in record.windows:
                if kept[following]:
                    part.add(window.astype(dtype), record.label)
                following += 1
            part.end(record.name)
            folder_of = report.folders.setdefault(record.name.rpartition("/")[0] or ".", [0, 0])
            folder_of[0] += 1
            folder_of[1] += len(part.lengths) - before
    in_train = np.sort(windows[sides == 0])
    for side, (split, part) in enumerate(zip(SPLITS, parts, strict=True)):
        chosen = windows[kept & (sides == side)] if side else windows[:0]
        places = np.minimum(np.searchsorted(in_train, chosen), max(len(in_train) - 1, 0))
        seen = in_train[places] == chosen if len(in_train) else np.zeros(len(chosen), np.bool_)
        part.save(seen if side else None)
        report.items[split] = part.items
        report.windows[split] = len(part.lengths)
        report.seen_in_train[split] = int(seen.sum())


class _Part:
    """One split while it is written: values and names go to disk as they come."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.items = 0
        self.lengths, self.owners, self.labels = array("I"), array("I"), array("i")

    def __enter__(self) -> Self:
        self._values = (self.folder / "values.bin").open("wb")
        self._names = (self.folder / "names.json").open("w", encoding="utf-8")
        self._names.write("[")
        return self

    def add(self, window: NDArray[Any], label: int | None) -> None:
        """Append a window of the present item."""
        self._values.write(window.tobytes())
        self.owners.append(self.items)
        self.lengths.append(window.size)
        self.labels.append(-1 if label is None else label)

    def end(self, name: str) -> None:
        """Name the present item and begin the next one."""
        self._names.write(f"{',' if self.items else ''}\n {json.dumps(name, ensure_ascii=False)}")
        self.items += 1

    def __exit__(self, *_: object) -> None:
        with self._values, self._names:
            self._names.write("\n]\n" if self.items else "]\n")

    def save(self, seen_in_train: NDArray[np.bool_] | None) -> None:
        """Write what was kept in memory: a few bytes a window."""
        offsets = np.zeros(len(self.lengths) + 1, np.int64)
        np.cumsum(np.frombuffer(self.lengths, np.uint32) if self.lengths else [], out=offsets[1:])
        np.save(self.folder / "offsets.npy", offsets)
        np.save(self.folder / "items.npy", np.array(self.owners, np.int64))
        if any(label >= 0 for label in self.labels):
            np.save(self.folder / "label.column.npy", np.array(self.labels, np.int64))
        if seen_in_train is not None:
            np.save(self.folder / "seen_in_train.column.npy", seen_in_train.astype(np.int64))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
