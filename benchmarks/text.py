"""What keeps a text VAE from collapsing, and what it costs: the table of docs/text-results.md.

    python -m benchmarks.text --root data/bible_bbe

Every row of benchmarks/text.yaml is one training with the same decoder on the same data. A bench that was killed goes
on where it stood: a finished row is not trained again, an unfinished one resumes, and what was measured is kept
beside the run for as long as its weights are the same.
"""

import argparse
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from hydra.errors import HydraException
from numpy.typing import NDArray
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from benchmarks import cli
from seqvae.data.batching import VALID_SEED, loader, valid_loader
from seqvae.data.dataset import VALID_EPOCH, WindowDataset, read_manifest
from seqvae.evaluation import active_units, mean_and_error, mutual_information, score_examples
from seqvae.harness import checkpoint
from seqvae.harness.comparison import flat, newest_config
from seqvae.harness.config import Trained, load
from seqvae.harness.run import configuration
from seqvae.harness.scores import weights_digest
from seqvae.harness.scoring import open_split, random_subset

ROWS = Path(__file__).with_suffix(".yaml")
COMMAND = "import sys; from seqvae.cli import main; sys.exit(main())"
POLL_SECONDS = 0.2
OF_NO_MATTER = ("run_dir", "resume", "init_from", "data.root", "data.workers")  # where a run lies, not what it is


@dataclass(frozen=True)
class Plan:
    """benchmarks/text.yaml."""

    experiment: str
    steps: int
    split: str
    sentences: int
    sentences_seed: int
    importance_samples: int
    reference: str
    common: dict[str, Any]
    before: dict[str, dict[str, Any]]
    tables: dict[str, dict[str, dict[str, Any]]]

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        """Every row by its name. Raises ValueError where two have one name."""
        found: dict[str, dict[str, Any]] = {}
        for part in (self.before, *self.tables.values()):
            for name, keys in part.items():
                if name in found:
                    raise ValueError(f"two rows are called {name}")
                found[name] = keys
        return found


@dataclass(frozen=True)
class Run:
    """A row with a seed: one training."""

    row: str
    seed: int
    path: Path
    overrides: tuple[str, ...] = field(repr=False)
    steps: int
    after: "Run | None" = None  # the one whose weights it begins with

    @property
    def name(self) -> str:
        return self.path.name

    def finished(self) -> bool:
        """Return whether the training has come to its end."""
        newest = checkpoint.last(self.path)
        if newest is None:
            return False
        reached = checkpoint.read_training(newest).values
        return bool(reached["step"] >= self.steps and not reached["validation_due"])


@dataclass(frozen=True)
class Measured:
    """What one run reached. Nats a sentence; the NLL of the plan's sentences, all else of the whole split."""

    row: str
    seed: int
    nll: float
    nll_error: float
    minus_reference: float | None
    minus_reference_error: float | None
    elbo: float
    kl: float
    mutual_information: float
    active_units: int
    latent_dim: int
    tokens_per_second: float
    minutes: float


def read_plan(path: Path) -> Plan:
    """Return the plan of a file. Raises ValueError where it says too much or too little."""
    try:
        plan = Plan(**yaml.safe_load(path.read_text(encoding="utf-8")))
    except TypeError as error:
        raise ValueError(f"{path}: {error}") from None
    for name, keys in plan.rows.items():
        before = keys.get("init_from", name)
        if before not in plan.rows:
            raise ValueError(f"{path}: {name} begins with {before}, which is no row")
    return plan


def written(value: Any) -> str:
    """Return a value of YAML as Hydra's command line takes it."""
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def make_run(plan: Plan, name: str, seed: int, options: argparse.Namespace) -> Run:
    """Return the run of a row and a seed."""
    keys = plan.common | plan.rows[name]
    steps = max(1, round(plan.steps * keys.pop("share", 1)))
    after = make_run(plan, keys["init_from"], seed, options) if "init_from" in keys else None
    every = math.ceil(steps / 10)  # a cure may look at what a validation says
    budget = {"max_steps": steps, "valid_every": every, "save_every": every, "log_every": math.ceil(steps / 60)}
    path = options.runs / f"{name}-{seed}"
    overrides = [f"experiment={plan.experiment}", f"data.root={options.root}", f"seed={seed}", f"run_dir={path}"]
    overrides += [f"trainer.{key}={value}" for key, value in budget.items()]
    overrides += options.set
    overrides += [f"{key}={written(value)}" for key, value in keys.items() if key != "init_from"]
    if after is not None:
        overrides.append(f"init_from={after.path}")
    return Run(name, seed, path, tuple(overrides), steps, after)


def check(run: Run) -> None:
    """Raise ValueError unless a run's keys can be composed, and are those that its directory was trained with."""
    try:
        wanted = flat(OmegaConf.to_container(configuration(run.overrides), resolve=True))
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(f"{run.name} cannot be composed: {' '.join(str(error).split())}") from None
    if not (run.path / "config.yaml").is_file():
        return
    trained = flat(yaml.safe_load(newest_config(run.path).read_text(encoding="utf-8")))
    differing = [  # a key that came to conf/ since then has a default that changes nothing
        f"{key}: {value!r} -> {wanted.get(key)!r}"
        for key, value in trained.items()
        if value != wanted.get(key) and not key.startswith(OF_NO_MATTER)
    ]
    if differing:
        raise ValueError(f"{run.path} was trained with {'; '.join(differing)}: remove it, or choose another --runs")


def start(run: Run, threads: int) -> subprocess.Popen[bytes]:
    """Start a run's training, or let it go on; what it says goes to a log beside its directory."""
    run.path.parent.mkdir(parents=True, exist_ok=True)
    log = run.path.with_name(f"{run.name}.log")
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    print(f"{run.name}: training, see {log}", flush=True)
    with log.open("ab") as file:
        command = [sys.executable, "-c", COMMAND, "train", *run.overrides, "resume=auto"]
        return subprocess.Popen(command, stdout=file, stderr=file, env=environment)


def last_line(run: Run) -> str:
    lines = run.path.with_name(f"{run.name}.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "nothing was said"


def train(runs: Sequence[Run], jobs: int) -> Iterator[tuple[Run, str | None]]:
    """Train the runs, `jobs` at a time; yield each as it ends, with the reason where it failed.

    A run waits for the one whose weights it begins with. While what was yielded is looked at, its place is free.
    When the generator is closed, the trainings that go on are told to save and stop.
    """
    waiting = list(runs)
    going: dict[Run, subprocess.Popen[bytes]] = {}
    ended: dict[str, str | None] = {}
    try:
        while waiting or going:
            for run in list(waiting):
                before = None if run.after is None else run.after.name
                if before is not None and before not in ended:
                    continue
                if before is not None and ended[before] is not None:
                    ended[run.name] = f"{before}, which it begins with, failed"
                elif run.finished():
                    ended[run.name] = None
                elif len(going) < jobs:
                    going[run] = start(run, torch.get_num_threads())
                    waiting.remove(run)
                    continue
                else:
                    continue
                waiting.remove(run)
                yield run, ended[run.name]
            for run, process in list(going.items()):
                if process.poll() is not None:
                    del going[run]
                    ended[run.name] = None if process.returncode == 0 else last_line(run)
                    yield run, ended[run.name]
            time.sleep(POLL_SECONDS)
    finally:
        for process in going.values():
            process.terminate()
        for process in going.values():
            process.wait()


def chosen_sentences(dataset: WindowDataset, count: int, seed: int) -> NDArray[np.int64]:
    """Return the windows that every run is weighted on, in the order they are scored: by length."""
    chosen = random_subset(dataset, min(count, len(dataset)), seed)
    ordered: NDArray[np.int64] = chosen[np.argsort(dataset.lengths[chosen], kind="stable")]
    return ordered


def speed(run: Run) -> dict[str, float]:
    """Return the training's median tokens a second, and the minutes of all its sessions and of what it began with."""
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    readings = [event.value for event in events.Scalars("train/tokens_per_second")]
    seconds = 0.0
    for file in sorted((run.path / "tensorboard").glob("events.*")):
        times = [event.wall_time for event in EventFileLoader(str(file)).Load()]
        seconds += times[-1] - times[0] if times else 0.0
    before = 0.0 if run.after is None else speed(run.after)["minutes"]
    return {"tokens_per_second": statistics.median(readings), "minutes": seconds / 60 + before}


def score(run: Run, plan: Plan, root: Path) -> dict[str, Any]:
    """Return a run's scores: those kept beside it, where they are of these weights and sentences."""
    path = checkpoint.resolve(str(run.path))
    wanted = {
        "weights": weights_digest(path),
        "data": read_manifest(root)["fingerprint"],
        "split": plan.split,
        "sentences": plan.sentences,
        "sentences_seed": plan.sentences_seed,
        "importance_samples": plan.importance_samples,
    }
    kept = run.path / "bench.json"
    if kept.is_file():
        found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        if found["of"] == wanted:
            return found
    print(f"{run.name}: evaluating", flush=True)
    found = {"of": wanted, **evaluate(load(run.path), plan, root), "speed": speed(run)}
    write(kept, json.dumps(found))
    return found


def evaluate(trained: Trained, plan: Plan, root: Path) -> dict[str, Any]:
    """Return the NLL of each of the plan's sentences, and what the whole split says of the latent."""
    vae, codec = trained.vae, trained.codec
    dataset = open_split(root, plan.split, trained.config["data"]["fingerprint"])
    chosen = chosen_sentences(dataset, plan.sentences, plan.sentences_seed).tolist()
    batches = [chosen[place : place + 64] for place in range(0, len(chosen), 64)]
    weighted = score_examples(
        vae,
        [batch.x for batch in loader(dataset, codec, batches, seed=VALID_SEED, epoch=VALID_EPOCH)],
        importance_samples=plan.importance_samples if vae.latent_dim else 1,  # without a latent it is exact
        generator=torch.Generator().manual_seed(0),
    )
    whole = score_examples(
        vae,
        [batch.x for batch in valid_loader(dataset, codec, batch_size=256)],
        generator=torch.Generator().manual_seed(0),
    )
    assert weighted.iw_bound is not None
    return {
        "nll": (-weighted.iw_bound).tolist(),
        "whole": {
            "elbo": float(whole.elbo.mean()),
            "kl": float(whole.kl.mean()),
            "mutual_information": mutual_information(whole.posterior, torch.Generator().manual_seed(0)),
            "active_units": active_units(whole.posterior),
            "latent_dim": vae.latent_dim,
        },
    }


def measure(run: Run, reference: Run, plan: Plan, root: Path) -> Measured:
    """Return a row's numbers, paired with those of the reference where that has come to its end."""
    scores = score(run, plan, root)
    nll = torch.tensor(scores["nll"], dtype=torch.float64)
    mean, error = mean_and_error(nll)
    minus: float | None = None
    minus_error: float | None = None
    if run.name != reference.name and reference.finished():
        theirs = torch.tensor(score(reference, plan, root)["nll"], dtype=torch.float64)
        minus, minus_error = mean_and_error(nll - theirs)
    return Measured(run.row, run.seed, mean, error, minus, minus_error, **scores["whole"], **scores["speed"])


def markdown(measured: Sequence[Measured], reference: str) -> str:
    """Return a table with a row a run."""
    lines = [
        f"| row | seed | NLL | NLL minus {reference}, paired | ELBO | KL | MI | active units | tokens/s | minutes |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for one in measured:
        minus = "" if one.minus_reference is None else f"{one.minus_reference:+.2f} ± {one.minus_reference_error:.2f}"
        latent = ["", "", ""]
        if one.latent_dim:
            latent = [f"{one.kl:.2f}", f"{one.mutual_information:.2f}", f"{one.active_units}/{one.latent_dim}"]
        cells = [one.row, str(one.seed), f"{one.nll:.2f} ± {one.nll_error:.2f}", minus, f"{one.elbo:.2f}", *latent]
        cells += [f"{one.tokens_per_second:,.0f}", f"{one.minutes:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def command(options: argparse.Namespace) -> str:
    """Return what makes these tables again."""
    more = {
        "--rows": options.rows,
        "--seeds": options.seeds if options.seeds != [0] else None,
        "--steps": options.steps,
        "--importance-samples": options.importance_samples,
    }
    words = [f"{name} {written(value).strip('[]')}" for name, value in more.items() if value is not None]
    words += ["--frontier"] if options.frontier else []
    words += ["--set", *options.set] if options.set else []
    return " ".join(["make bench-text", *([f"BENCH='{' '.join(words)}'"] if words else [])])


def report(plan: Plan, tables: dict[str, list[Measured]], options: argparse.Namespace) -> str:
    """Return the tables, and above them what they are of."""
    manifest = read_manifest(options.root)
    size = manifest["splits"][plan.split]
    sentences = min(plan.sentences, size)
    about = (
        f"`{command(options)}`: `{options.root.name}`, {manifest['splits']['train']:,} training sentences, "
        f"{plan.steps:,} steps, processor threads a training: {torch.get_num_threads()}. Nats a sentence. NLL: "
        f"{plan.importance_samples} importance samples on {sentences:,} {plan.split} sentences (drawn with seed "
        f"{plan.sentences_seed}), ± its standard error over them; all else is of the whole split of {size:,}, so that "
        f"MI cannot exceed {math.log(size):.2f}."
    )
    parts = ["# What keeps a text VAE from collapsing", about]
    for name, measured in tables.items():
        parts += [f"## {name.capitalize()}", markdown(measured, plan.reference)]
    return "\n\n".join(parts) + "\n"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def bench(options: argparse.Namespace) -> int:
    """Train and measure; write the tables anew after each run. Return 1 where a run failed, else 0."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that trainings are told, too
    cli.check_positive(options, "steps", "importance_samples", "jobs")
    changed = {"steps": options.steps, "importance_samples": options.importance_samples}
    plan = replace(read_plan(options.plan), **{name: value for name, value in changed.items() if value is not None})
    titles = [title for title in plan.tables if title != "frontier" or options.frontier]
    shown = {title: [plan.reference, *(row for row in plan.tables[title] if row != plan.reference)] for title in titles}
    names = options.rows or list(dict.fromkeys(name for rows in shown.values() for name in rows))
    for name in names:
        if name not in plan.rows:
            raise ValueError(f"there is no row {name!r}; there are {', '.join(plan.rows)}")
    wanted = [make_run(plan, name, seed, options) for seed in options.seeds for name in names]
    runs = {run.name: run for one in wanted for run in (one.after, one) if run is not None}
    for run in runs.values():
        check(run)
    # of each training, and of an evaluation, which takes the place of one
    torch.set_num_threads(max(1, torch.get_num_threads() // options.jobs))
    ended: dict[str, Run] = {}
    failed = 0
    for run, reason in train(list(runs.values()), options.jobs):
        if reason is not None:
            failed = 1
            print(f"{run.name}: failed: {reason}", file=sys.stderr, flush=True)
            continue
        ended[run.name] = run
        tables = {
            title: [
                measure(ended[name], make_run(plan, plan.reference, seed, options), plan, options.root)
                for row in rows
                for seed in options.seeds
                if (name := f"{row}-{seed}") in ended
            ]
            for title, rows in shown.items()
        }
        if options.json is not None:
            found = {title: [asdict(one) for one in measured] for title, measured in tables.items()}
            write(options.json, json.dumps(found, indent=1) + "\n")
        if options.output is not None:
            write(options.output, report(plan, tables, options))
    if ended:
        print(report(plan, tables, options))
    return failed


def _names(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.parser("text", __doc__)
    parser.add_argument("--root", type=Path, default=Path("data/bible_bbe"), help="a prepared text dataset")
    parser.add_argument("--plan", type=Path, default=ROWS, help="the rows (default benchmarks/text.yaml)")
    parser.add_argument("--rows", type=_names, metavar="A,B", help="only these (default: all of the tables)")
    parser.add_argument("--seeds", type=_numbers, default=[0], metavar="0,1", help="a run each (default 0)")
    parser.add_argument("--frontier", action="store_true", help="the best recipe at several rates as well")
    parser.add_argument("--steps", type=int, help="of a training, in place of the plan's")
    parser.add_argument("--importance-samples", type=int, metavar="K", help="in place of the plan's")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once, which share the processors (default 1)")
    parser.add_argument("--runs", type=Path, default=Path("runs/bench_text"), help="where the run directories lie")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of every row, as for seqvae train")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="the tables as Markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the same numbers as JSON")
    return cli.run(parser, bench, argv)


if __name__ == "__main__":
    sys.exit(main())
