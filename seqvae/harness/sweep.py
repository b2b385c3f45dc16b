"""A sweep: where each job of `seqvae train -m` trains, what became of it, and all of them in one table."""

import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from seqvae.harness.comparison import compare


class Outcome(NamedTuple):
    """What became of one job."""

    number: int
    run_dir: str
    error: str | None  # one line


class Outcomes:
    """What became of the jobs: files in a folder, because a launcher may run a job in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, outcome: Outcome) -> None:
        """Keep one."""
        (self.folder / f"{outcome.number}.json").write_text(json.dumps(outcome), encoding="utf-8")

    def read(self) -> list[Outcome]:
        """Return those that there are, in the order of the jobs."""
        return sorted(Outcome(*json.loads(path.read_text(encoding="utf-8"))) for path in self.folder.glob("*.json"))


def job_dir(run_dir: str, overrides: Sequence[str], constant: Collection[str]) -> str:
    """Return a job's run directory: below that of the command, named by its overrides but those that all jobs share.

    So a second sweep finds the jobs of the first one, whatever their numbers: what is there is refused, or goes on
    with resume=auto, and new values are added.
    """
    varied = [override for override in overrides if override not in constant]
    name = re.sub(r"[^\w.=+~,-]+", "_", ",".join(varied))
    return f"{run_dir}/{name}" if name else run_dir


def table(outcomes: Sequence[Outcome]) -> str:
    """Return what the jobs that were trained reached, beside what they differ in; empty where none was."""
    trained = [outcome.run_dir for outcome in outcomes if outcome.error is None]
    return compare(trained)._replace(paired={}, unpaired={}).table() if trained else ""
