"""Runs beside each other: where their configurations differ, what they reached, and how they differ by example."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from seqvae.harness import checkpoint
from seqvae.harness.config import REGISTRY
from seqvae.harness.scores import (
    PAIRED,
    Difference,
    Scores,
    Subset,
    other_examples,
    paired_differences,
    run_dir_of,
    scores_path,
    weights_digest,
)

UNTOLD = ("run_dir", "resume")  # keys whose difference says nothing of a model


class Run(NamedTuple):
    """One run, by its checkpoint."""

    name: str
    checkpoint: str
    step: int
    config: dict[str, Any]  # dotted keys
    metrics: dict[str, float]  # of the checkpoint's validation, and split/name for what was scored
    scores: Scores | None
    density: str | None  # the likelihood, where its nats are of a density and no probability


class Comparison(NamedTuple):
    """Runs, the keys in which their configurations differ, and their paired differences from the first one."""

    split: str
    runs: list[Run]
    differing: list[str]
    paired: dict[str, dict[str, Difference]]  # run -> score
    unpaired: dict[str, str]  # run -> why not

    def table(self) -> str:
        """Return a row a run, and below it a row a paired run. Where the nats of any are of a density, it is named."""
        metrics = list(dict.fromkeys(name for run in self.runs for name in run.metrics))
        densities = any(run.density for run in self.runs)
        rows = [["run", *self.differing, "step", *(["density"] if densities else []), *metrics]]
        for run in self.runs:
            chosen = [_shown(run.config.get(key)) for key in self.differing]
            reached = [_shown(run.metrics[name]) if name in run.metrics else "-" for name in metrics]
            rows.append([run.name, *chosen, str(run.step), *([run.density or "-"] if densities else []), *reached])
        lines = _aligned(rows)
        if self.paired:
            first = self.runs[0]
            assert first.scores is not None
            lines += ["", f"minus {first.name} on the same {len(first.scores.index):,} {self.split} examples:"]
            names = [name for name in PAIRED if any(name in scores for scores in self.paired.values())]
            cells = [["run", *names]]
            for run_name, scores in self.paired.items():
                cells.append(
                    [run_name]
                    + [f"{scores[n].mean:+.4g} +- {scores[n].error:.2g}" if n in scores else "-" for n in names]
                )
            lines += _aligned(cells)
        lines += [f"{name}: not paired, {reason}" for name, reason in self.unpaired.items()]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "split": self.split,
            "differing": self.differing,
            "runs": [
                {
                    **{name: value for name, value in run._asdict().items() if name not in ("config", "scores")},
                    "differing": {key: run.config.get(key) for key in self.differing},
                }
                for run in self.runs
            ],
            "paired": {
                run: {name: difference._asdict() for name, difference in scores.items()}
                for run, scores in self.paired.items()
            },
            "unpaired": self.unpaired,
        }


def compare(names: Sequence[str], split: str = "test", subset: Subset | None = None) -> Comparison:
    """Return how the runs (or checkpoints) differ, from their own files alone; scores are those of a split or subset.

    Raises:
        CheckpointError: for a run without a sound checkpoint.
        ValueError: for a configuration that cannot be read.
    """
    runs = [_read(name, split, subset) for name in names]
    keys = dict.fromkeys(key for run in runs for key in run.config)
    differing = [
        key for key in keys if key not in UNTOLD and any(run.config.get(key) != runs[0].config.get(key) for run in runs)
    ]
    paired: dict[str, dict[str, Difference]] = {}
    unpaired: dict[str, str] = {}
    first = runs[0]
    for run in runs[1:]:
        reason = _why_not(first, run, split, subset)
        if reason is not None:
            unpaired[run.name] = reason
            continue
        assert first.scores is not None
        assert run.scores is not None
        paired[run.name] = paired_differences(first.scores, run.scores)
    return Comparison(split, runs, differing, paired, unpaired)


def _why_not(first: Run, run: Run, split: str, subset: Subset | None) -> str | None:
    which, more = ("its", "") if subset is None else (f"{subset} of its", f" {subset.options}")
    for one in (first, run):
        if one.scores is None:
            command = f"seqvae evaluate {one.name} --split {split}{more}"
            return f"{one.name} has no scores of {which} {split} split; run: {command}"
    assert first.scores is not None
    assert run.scores is not None
    return other_examples(first.scores, run.scores)


def _read(name: str, split: str, subset: Subset | None) -> Run:
    path = checkpoint.resolve(name)
    facts = checkpoint.read_config(path)
    run_dir = run_dir_of(path)
    own = None if run_dir is None else newest_config(run_dir)
    if own is not None and own.is_file():
        try:
            config = yaml.safe_load(own.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"{own} cannot be read ({' '.join(str(error).split())})") from None
    else:
        config = {key: facts[key] for key in ("experiment", "model", "prior", "objective", "data")}
    metrics = dict(facts["metrics"])
    scores = _scores(path, split, subset)
    if scores is not None:
        columns = {name: getattr(scores, name) for name in PAIRED}
        metrics |= {f"{split}/{name}": float(column.mean()) for name, column in columns.items() if column is not None}
    likelihood = str(flat(facts.get("model")).get("likelihood._target_"))
    is_density = getattr(REGISTRY.get(likelihood), "is_density", False)
    density = likelihood.rpartition(".")[2] if is_density else None
    return Run(name.rstrip("/"), str(path), facts["step"], flat(config), metrics, scores, density)


def _scores(path: Path, split: str, subset: Subset | None) -> Scores | None:
    """Return the checkpoint's scores; None where there are none, or they are of weights that no longer stand there."""
    place = scores_path(path, split, subset)
    if place is None or not place.is_file():
        return None
    scores = Scores.load(place)
    return scores if scores.weights == weights_digest(path) else None


def newest_config(run_dir: Path) -> Path:
    """Return where the configuration is that a run went on with last."""
    later = len(list(run_dir.glob("config.resume-*.yaml")))
    return run_dir / (f"config.resume-{later}.yaml" if later else "config.yaml")


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping's leaves by their dotted keys."""
    if not isinstance(node, dict):
        return {prefix[:-1]: node}
    return {key: value for name, child in node.items() for key, value in flat(child, f"{prefix}{name}.").items()}


def _shown(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in rows
    ]
