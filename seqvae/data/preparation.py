"""How sources become a prepared dataset: convert in shards, split by item, drop repeats, write, report."""

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

import seqvae
from seqvae.data import shards
from seqvae.data.codec import Codec
from seqvae.data.dataset import FORMAT, MANIFEST, SPLITS, fingerprint, sha256
from seqvae.data.shards import Outcome, Record, Rejected, Shards, Source
from seqvae.data.sources import digest_of, find_files, name_of, printable, split_of

__all__ = [  # all that a modality and a recipe need, in one place
    "Outcome",
    "Record",
    "Rejected",
    "Report",
    "assign_splits",
    "complete_splits",
    "digest_of",
    "find_files",
    "hold",
    "name_of",
    "prepare",
    "printable",
    "refuse_existing",
    "split_of",
]

log = logging.getLogger(__name__)

PARTS = (*SPLITS, "codec", "report.json", "rejected.jsonl")  # what a dataset is beside its manifest
LOCK, PARTIAL, SHARDS = ".lock", ".partial", ".shards-"  # what stands in a root while it is made


@dataclass
class Report:
    """What was kept and why the rest went."""

    kept: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    counted: Counter[str] = field(default_factory=Counter)
    items: dict[str, int] = field(default_factory=dict)
    windows: dict[str, int] = field(default_factory=dict)
    seen_in_train: dict[str, int] = field(default_factory=dict)

    def table(self) -> str:
        """Return the report as lines of text."""
        total = self.kept + self.rejected.total()
        rows = [f"kept {self.kept:,} of {total:,} items"]
        rows += [f"  rejected {count:>9,}  {rule}" for rule, count in self.rejected.most_common()]
        rows += [f"  windows  {count:>9,}  left out: {rule}" for rule, count in self.dropped.most_common()]
        rows += [f"  counted  {count:>9,}  {name}" for name, count in self.counted.most_common() if count]
        for split in SPLITS:
            row = f"{split:<6}{self.items[split]:>9,} items {self.windows[split]:>10,} windows"
            if self.seen_in_train.get(split):
                row += f"  ({self.seen_in_train[split]:,} of them also stand in train)"
            rows.append(row)
        return "\n".join(rows)


def prepare(
    root: Path,
    sources: Sequence[Source],
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
    drop_repeats: bool = True,
) -> Report:
    """Convert the sources and write a dataset at `root`; return what was kept.

    `options` go into the manifest; together with `key` (a digest of the sources' content, where names do
    not tell) they decide whether shards of an earlier, interrupted run fit. `earlier` are items that were
    rejected before conversion. With `drop_repeats` a window that repeats within its split is kept once; a window
    of valid or test that also stands in train is kept and flagged in the column `seen_in_train`.

    Raises:
        ValueError: when `root` holds a dataset or something that would be overwritten, another process prepares it,
            or nothing was kept (the message names the rules).
        OSError: when something cannot be written or a worker was killed; what is finished then is kept.
    """
    try:
        with hold(root):
            refuse_existing(root)
            facts = [seqvae.__version__, shards.SHARD_SIZE, kind, options, seed, codec.options, codec.spec, key]
            identity = json.dumps([*facts, len(sources)], sort_keys=True)
            folder = root.resolve() / f"{SHARDS}{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
            if {path.name for path in root.glob(f"{SHARDS}*")} - {folder.name}:
                log.info("%s holds unfinished work of other options or sources, which is of no use here", root)
            work = Shards(folder, sources, convert)
            work.run(engine, jobs)
            report = _write(root, work, codec, kind, options, seed, list(earlier), drop_repeats)
            _sweep(root)
            return report
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


def assign_splits(groups: Iterable[str], seed: int = 0, share: float = 0.05) -> dict[str, str]:
    """Return the split of each group: a `share` each to test and valid (at least one group), the rest to train.

    The order is that of a hash of seed and group, so neither the order of files nor the machine matters.
    Raises ValueError for fewer than three different groups.
    """
    order = sorted(set(groups), key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).digest())
    if len(order) < 3:
        raise ValueError(f"a dataset needs at least 3 different items to be split, got {len(order)}")
    held_out = max(1, round(share * len(order)))
    return {
        group: "test" if place < held_out else "valid" if place < 2 * held_out else "train"
        for place, group in enumerate(order)
    }


def complete_splits(groups: dict[str, str | None], seed: int = 0) -> dict[str, str]:
    """Return the split of every group, keeping those the source gave; what it lacks is cut out of its train."""
    missing = {"valid", "test"} - set(groups.values())
    drawn = (
        assign_splits([group for group, split in groups.items() if split in (None, "train")], seed) if missing else {}
    )
    return {
        group: split if split in ("valid", "test") else drawn[group] if drawn.get(group) in missing else "train"
        for group, split in groups.items()
    }


def _write(
    root: Path,
    outcomes: Iterable[Outcome],
    codec: Codec[Any],
    kind: str,
    options: dict[str, Any],
    seed: int,
    earlier: Sequence[Rejected],
    drop_repeats: bool,
) -> Report:
    report = Report()
    rejected = [*earlier, *(outcome for outcome in outcomes if isinstance(outcome, Rejected))]
    report.rejected.update(item.rule for item in rejected)
    groups = {_group(record): record.split for record in outcomes if isinstance(record, Record)}
    if not groups:
        reasons = "; ".join(f"{count} x {rule}" for rule, count in report.rejected.most_common(3)) or "no items found"
        raise ValueError(f"nothing to prepare for {root}: every item was rejected ({reasons})")
    splits = complete_splits(groups, seed)
    temporary = _fresh_partial(root)
    image_shape = codec.spec.get("image_shape")
    dtype = np.dtype(np.uint8 if image_shape else np.uint16 if codec.spec["vocab_size"] <= 2**16 else np.int32)
    train_windows: set[bytes] = set()
    for split in SPLITS:  # train first: the others are compared with it
        records = (record for record in outcomes if isinstance(record, Record) and splits[_group(record)] == split)
        folder = temporary / split
        folder.mkdir()
        _write_split(folder, split, records, dtype, report, train_windows, drop_repeats)
    (temporary / "codec").mkdir()
    codec.save(temporary / "codec")
    _write_json(temporary / "report.json", vars(report))  # asdict would make pairs of a Counter's counts
    with (temporary / "rejected.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in rejected)
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
    return report


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


def _write_split(
    folder: Path,
    split: str,
    records: Iterable[Record],
    dtype: np.dtype[Any],
    report: Report,
    train_windows: set[bytes],
    drop_repeats: bool,
) -> None:
    names: list[str] = []
    items: list[int] = []
    lengths: list[int] = []
    labels: list[int] = []
    in_train: list[int] = []
    written: set[bytes] = set()
    with (folder / "values.bin").open("wb") as file:
        for record in records:
            report.kept += 1
            report.dropped.update(record.dropped)
            report.counted.update(record.counted)
            for window in record.windows:
                content = window.astype(dtype).tobytes()
                digest = hashlib.blake2b(content, digest_size=16).digest()
                if drop_repeats and digest in written:
                    report.dropped["repeats a window of its split"] += 1
                    continue
                written.add(digest)
                file.write(content)
                items.append(len(names))
                lengths.append(window.size)
                labels.append(-1 if record.label is None else record.label)
                in_train.append(digest in train_windows)
            names.append(record.name)
    if split == "train":
        train_windows |= written
    np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    np.save(folder / "items.npy", np.array(items, np.int64))
    if any(label >= 0 for label in labels):
        np.save(folder / "label.column.npy", np.array(labels, np.int64))
    if split != "train":
        np.save(folder / "seen_in_train.column.npy", np.array(in_train, np.int64))
    _write_json(folder / "names.json", names)
    report.items[split] = len(names)
    report.windows[split] = len(lengths)
    report.seen_in_train[split] = sum(in_train)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
