"""How sources become a prepared dataset: convert in shards, split by item, drop repeats, write, report."""

import hashlib
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import joblib
import numpy as np
from numpy.typing import NDArray

import seqvae
from seqvae.data.codec import Codec
from seqvae.data.dataset import FORMAT, MANIFEST, SPLITS, fingerprint, sha256

log = logging.getLogger(__name__)

SHARD_SIZE = 256  # sources; small enough that a killed preparation loses little
ENGINES = ("sequential", "loky", "dask")

Source = TypeVar("Source")


@dataclass(frozen=True)
class Record:
    """One kept item: its windows, and what decides on which side of the split it stands."""

    name: str
    group: str  # items of one group (repeats of one tune) stay in one split
    windows: Sequence[NDArray[Any]]
    split: str | None = None  # kept when the source came already split
    label: int | None = None
    dropped: dict[str, int] = field(default_factory=dict)  # windows of this item left out, by rule
    counted: dict[str, int] = field(default_factory=dict)  # what else a report should say, in a unit its name tells


@dataclass(frozen=True)
class Rejected:
    """One item left out whole: the rule is counted, the detail is for whoever looks the item up."""

    name: str
    rule: str
    detail: str = ""


Outcome = Record | Rejected


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


@dataclass(frozen=True)
class Shards(Generic[Source]):
    """Sources cut in pieces, each converted once into one file; a rerun converts only what is missing."""

    folder: Path
    sources: Sequence[Source]
    convert: Callable[[Source], Outcome]

    def run(self, engine: str = "sequential", jobs: int = -1) -> None:
        """Convert every missing shard; the bytes are the same whatever the engine and the number of jobs."""
        if engine not in ENGINES:
            raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
        self.folder.mkdir(parents=True, exist_ok=True)
        missing = [number for number in range(self.count) if not self._path(number).exists()]
        if engine == "sequential":
            for number in missing:
                _convert_shard(*self._job(number))
        else:
            with joblib.parallel_config(backend=engine):
                joblib.Parallel(n_jobs=jobs)(joblib.delayed(_convert_shard)(*self._job(number)) for number in missing)

    @property
    def count(self) -> int:
        return -(-len(self.sources) // SHARD_SIZE)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npz"

    def _job(self, number: int) -> tuple[Path, Sequence[Source], Callable[[Source], Outcome]]:
        """Return what one worker needs: the sources of its shard, not all of them."""
        sources = self.sources[number * SHARD_SIZE : (number + 1) * SHARD_SIZE]
        return self._path(number), sources, self.convert

    def __iter__(self) -> Iterator[Outcome]:
        for number in range(self.count):
            with np.load(self._path(number), allow_pickle=False) as shard:
                values, ends = shard["values"], np.cumsum(shard["lengths"])
                rows = json.loads(shard["rows"].tobytes())
            windows = iter(np.split(values, ends[:-1]) if len(ends) else [])
            for row in rows:
                if "rule" in row:
                    yield Rejected(**row)
                else:
                    yield Record(**{**row, "windows": [next(windows) for _ in range(row["windows"])]})


def _convert_shard(path: Path, sources: Sequence[Source], convert: Callable[[Source], Outcome]) -> None:
    outcomes = [convert(source) for source in sources]
    windows = [window for outcome in outcomes if isinstance(outcome, Record) for window in outcome.windows]
    rows = [
        {**asdict(outcome), "windows": len(outcome.windows)} if isinstance(outcome, Record) else asdict(outcome)
        for outcome in outcomes
    ]
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.savez(
            file,
            values=np.concatenate([window.ravel() for window in windows] or [np.empty(0, np.uint8)]),
            lengths=np.array([window.size for window in windows], np.int64),
            rows=np.frombuffer(json.dumps(rows).encode(), np.uint8),
        )
    temporary.replace(path)


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
        ValueError: when `root` already holds a dataset, or nothing was kept (the message names the rules).
    """
    refuse_existing(root)
    identity = json.dumps([kind, options, seed, codec.options, codec.spec, key, len(sources)], sort_keys=True)
    shards = Shards(root / f".shards-{hashlib.sha256(identity.encode()).hexdigest()[:16]}", sources, convert)
    shards.run(engine, jobs)
    report = _write(root, shards, codec, kind, options, seed, list(earlier), drop_repeats)
    shutil.rmtree(shards.folder)
    return report


def refuse_existing(root: Path) -> None:
    """Raise ValueError when `root` already holds a prepared dataset: nothing is ever overwritten."""
    if (root / MANIFEST).exists():
        raise ValueError(f"{root} already holds a prepared dataset; remove it or choose another --root")


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
    temporary = root / ".partial"
    if temporary.exists():
        shutil.rmtree(temporary)
    image_shape = codec.spec.get("image_shape")
    dtype = np.dtype(np.uint8 if image_shape else np.uint16 if codec.spec["vocab_size"] <= 2**16 else np.int32)
    train_windows: set[bytes] = set()
    for split in SPLITS:  # train first: the others are compared with it
        records = (record for record in outcomes if isinstance(record, Record) and splits[_group(record)] == split)
        folder = temporary / split
        folder.mkdir(parents=True)
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
    for path in temporary.iterdir():
        target = root / path.name
        if target.is_dir():
            shutil.rmtree(target)  # left by a run that was killed before it wrote the manifest
        path.replace(target)
    temporary.rmdir()
    _write_json(root / "manifest.tmp", manifest)
    (root / "manifest.tmp").replace(root / MANIFEST)  # last: a dataset without a manifest is none
    return report


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


def find_files(source: Path, suffixes: Iterable[str] | None = None) -> list[Path]:
    """Return the files under `source` (or the file itself) in order, hidden ones left out.

    Raises ValueError when `source` does not exist or holds no file with one of the endings.
    """
    if not source.exists():
        raise ValueError(f"no such file or folder: {source}")
    endings = {suffix.lower() for suffix in suffixes} if suffixes is not None else None
    paths = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    inside = [
        path for path in paths if path == source or not any(p.startswith(".") for p in path.relative_to(source).parts)
    ]
    found = [path for path in inside if endings is None or path.suffix.lower() in endings]
    if not found:
        wanted = f" ending in {', '.join(sorted(endings))}" if endings else ""
        raise ValueError(f"{source} holds no files{wanted} ({len(inside)} files in all)")
    return found


def split_of(path: Path, source: Path) -> str | None:
    """Return the split that a path's own name says: SOURCE/train/x.mid, SOURCE/valid.txt; else None."""
    parts = path.relative_to(source).parts if path != source else ()
    first = parts[0] if len(parts) > 1 else Path(parts[0]).stem if parts else ""
    names = {"train": "train", "valid": "valid", "validation": "valid", "val": "valid", "dev": "valid", "test": "test"}
    return names.get(first.lower())
