"""Sources cut in shards, each converted once into one file: whatever is killed, only what is missing is done again."""

import contextlib
import itertools
import json
import logging
import os
import uuid
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import joblib
import numpy as np
from numpy.typing import NDArray

SHARD_SIZE = 256  # sources; small enough that a killed preparation loses little
ENGINES = ("sequential", "loky", "dask")

DEATH = "a worker was killed while it converted; is the memory too small?"

Source = TypeVar("Source")
Made = TypeVar("Made", covariant=True)


class Sources(Protocol[Made]):
    """What is to be converted: a list, or something that fetches a part of it from where it lies."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> Iterable[Made]: ...


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


_Work = tuple[Path, Iterable[Any], Callable[[Any], Outcome]]  # one shard: where it goes, its sources, how


@dataclass(frozen=True)
class Shards(Generic[Source]):
    """The sources' outcomes, in order, kept in one folder of files."""

    folder: Path
    sources: Sources[Source]
    convert: Callable[[Source], Outcome]
    size: int = field(default_factory=lambda: SHARD_SIZE)

    def run(self, engine: str = "sequential", jobs: int = -1) -> None:
        """Convert every shard that is missing or damaged; the bytes are the same whatever the engine and the jobs.

        "sequential" works in this process, "loky" in `jobs` processes of this machine, -1 for one a core; "dask" does
        too, or on the cluster whose scheduler DASK_SCHEDULER_ADDRESS names, which must see the folder as well.

        Raises:
            ValueError: for an engine or a number of jobs that does not exist, or when dask is not installed.
            ChildProcessError: when workers were killed: with loky the first time, with dask when one shard kills four.
            OSError: when a shard cannot be written.
        """
        _check(engine, jobs)
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob("*.tmp"):
            left.unlink(missing_ok=True)  # of a worker that was killed
        missing = [number for number in range(self.count) if not _is_whole(self._path(number))]
        for number in missing:
            self._path(number).unlink(missing_ok=True)
        work = ((self._path(number), self._sources(number), self.convert) for number in missing)
        if missing and engine == "dask":
            _convert_with_dask(work, jobs)
        elif missing:
            _convert_with_joblib(work, engine, jobs)
        unseen = [number for number in missing if not self._path(number).exists()]
        if unseen:
            raise OSError(f"{len(unseen)} of {len(missing)} shards are not in {self.folder}: the workers must share it")

    @property
    def count(self) -> int:
        return -(-len(self.sources) // self.size)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npz"

    def _sources(self, number: int) -> Iterable[Source]:
        return self.sources[number * self.size : (number + 1) * self.size]

    def __iter__(self) -> Iterator[Outcome]:
        for number in range(self.count):
            with np.load(self._path(number), allow_pickle=False) as shard:
                values, ends = shard["values"], np.cumsum(shard["lengths"]).tolist()
                rows = json.loads(shard["rows"].tobytes())
            windows = map(values.__getitem__, itertools.starmap(slice, itertools.pairwise([0, *ends])))
            for row in rows:
                if "rule" in row:
                    yield Rejected(**row)
                else:
                    yield Record(**{**row, "windows": [next(windows) for _ in range(row["windows"])]})


def _is_whole(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as shard:
            return shard.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def _convert_shard(path: Path, sources: Iterable[Source], convert: Callable[[Source], Outcome]) -> None:
    if path.exists():
        return  # dask repeats what a worker had finished when it died
    outcomes = [convert(source) for source in sources]
    windows = [window for outcome in outcomes if isinstance(outcome, Record) for window in outcome.windows]
    rows = [
        {**vars(outcome), "windows": len(outcome.windows)} if isinstance(outcome, Record) else vars(outcome)
        for outcome in outcomes
    ]
    temporary = path.with_suffix(f".{uuid.uuid4().hex}.tmp")  # a worker given up for dead may still be writing its own
    try:
        with temporary.open("wb") as file:
            np.savez(
                file,
                values=np.concatenate([window.ravel() for window in windows] or [np.empty(0, np.uint8)]),
                lengths=np.array([window.size for window in windows], np.int64),
                rows=np.frombuffer(json.dumps(rows).encode(), np.uint8),
            )
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


# Who converts


def _check(engine: str, jobs: int) -> None:
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs == 0 or jobs < -1:
        raise ValueError(f"jobs must be a positive int, or -1 for one a core, got {jobs!r}")
    if engine == "sequential" and jobs > 1:
        raise ValueError(f"the sequential engine is one process; {jobs} jobs need the engine loky or dask")


def _convert_with_joblib(work: Iterable[_Work], engine: str, jobs: int) -> None:
    try:
        with joblib.parallel_config(engine, n_jobs=jobs):
            joblib.Parallel(batch_size=1)(joblib.delayed(_convert_shard)(*shard) for shard in work)
    except BrokenExecutor:
        raise ChildProcessError(DEATH) from None


def _convert_with_dask(work: Iterable[_Work], jobs: int) -> None:
    """Convert on a dask cluster, without joblib, whose own bridge to dask waits for ever when a shard is deadly."""
    with _client(distributed := _dask(), jobs) as client:
        shards = iter(work)
        running = distributed.as_completed(loop=client.loop)

        def submit(count: int) -> None:
            for shard in itertools.islice(shards, count):
                running.add(client.submit(_convert_shard, *shard, pure=False))

        submit(max(64, 2 * sum(client.ncores().values())))  # not all at once: they hold the sources
        for done in running:
            try:
                done.result()
            except distributed.KilledWorker:
                raise ChildProcessError(DEATH) from None
            submit(1)


def _dask() -> Any:
    try:
        import distributed
    except ImportError:
        raise ValueError('the engine dask is not installed; get it with: pip install "seqvae[dask]"') from None
    return distributed


@contextlib.contextmanager
def _client(distributed: Any, jobs: int) -> Iterator[Any]:
    """Yield a client of the scheduler that dask's own settings name, else of a cluster on this machine for now."""
    import dask

    address = dask.config.get("scheduler-address", None)
    if address and jobs != -1:
        raise ValueError(f"the cluster at {address} has the workers it has; leave the number of jobs ({jobs}) out")
    told = logging.getLogger("distributed")  # how its cluster fares; what matters comes back as an exception
    with contextlib.ExitStack() as stack:
        stack.callback(told.setLevel, told.level)
        told.setLevel(logging.CRITICAL)
        if not address:
            address = stack.enter_context(
                distributed.LocalCluster(
                    n_workers=joblib.effective_n_jobs(jobs),
                    threads_per_worker=1,
                    dashboard_address=":0",  # any free port: the default one may be taken
                )
            )
        yield stack.enter_context(distributed.Client(address, set_as_default=False))
