"""Commands that measure: evaluate, compare."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from seqvae.cli.arguments import Commands, add_command, add_data, add_seed, data_root, open_checkpoint

if TYPE_CHECKING:
    from seqvae.harness.config import Trained
    from seqvae.harness.scoring import Report

log = logging.getLogger(__name__)

SPLITS = ("train", "valid", "test")


def add(commands: Commands) -> None:
    """Add the commands of this file."""
    evaluate = add_command(
        commands, "evaluate", "ELBO, importance-weighted NLL, latent health and reconstruction of a split", _evaluate
    )
    evaluate.add_argument("--split", choices=SPLITS, default="test")
    evaluate.add_argument(
        "--importance-samples", type=int, default=0, metavar="K", help="of the NLL (default 0: ELBO only)"
    )
    evaluate.add_argument("--limit", type=int, metavar="N", help="use the split's first N windows")
    evaluate.add_argument("--rows", type=int, default=512, help="sequences or pictures decoded at once (default 512)")
    add_seed(evaluate)
    add_data(evaluate, "the dataset, if it is not where it was in training")
    evaluate.add_argument(
        "--scores", type=Path, metavar="FILE", help="where each window's scores go (default: RUN/scores/, for compare)"
    )
    evaluate.add_argument("--json", action="store_true", help="print JSON instead of a table")

    help = "where runs differ, what they reached, and their differences on the same examples"
    compare = commands.add_parser("compare", help=help, description=help)
    compare.add_argument("runs", nargs="+", metavar="RUN", help="a run directory: its best, RUN@last its newest")
    compare.add_argument("--split", choices=SPLITS, default="test", help="whose scores are paired (default test)")
    compare.add_argument("--json", action="store_true", help="print JSON instead of a table")
    compare.set_defaults(run=_compare)


def _evaluate(options: argparse.Namespace) -> None:
    from seqvae.harness.scoring import evaluate, open_split

    trained = open_checkpoint(options)
    root = data_root(options, trained)
    dataset = open_split(root, options.split, trained.config["data"]["fingerprint"], options.limit)
    report = evaluate(
        trained.vae,
        trained.codec,
        dataset,
        importance_samples=options.importance_samples,
        rows=options.rows,
        seed=options.seed,
    )
    kept = _save_scores(options, trained, report)
    if options.json:
        found = {"metrics": report.metrics, "reconstruction": report.reconstruction, "scores": kept and str(kept)}
        print(json.dumps({"checkpoint": str(trained.path), "split": options.split, **found}, indent=1))
        return
    print(f"{trained.path}  {options.split} split")
    for name, value in report.metrics.items():
        if not name.endswith("_error"):
            error = report.metrics.get(f"{name}_error")
            print(f"  {name:<26}{value:>12.6g}" + (f"  +- {error:.2g}" if error is not None else ""))
    columns = list(next(iter(report.reconstruction.values())))
    print("  " + f"{'reconstruction':<26}" + "".join(f"{column:>16}" for column in columns))
    for row, scores in report.reconstruction.items():
        print("  " + f"{row:<26}" + "".join(f"{scores[column]:>16.4f}" for column in columns))
    if kept is not None:
        print(f"each window's scores: {kept}")


def _save_scores(options: argparse.Namespace, trained: Trained, report: Report) -> Path | None:
    """Write each window's scores where a person wants them, or those of a whole split beside the run's checkpoints."""
    from seqvae.harness.scores import Scores, keep, scores_path, weights_digest

    scores = Scores(
        split=options.split,
        data=trained.config["data"]["fingerprint"],
        seen=report.seen,
        weights=weights_digest(trained.path),
        importance_samples=options.importance_samples,
        **{name: column.numpy() for name, column in report.examples.items()},
    )
    if options.scores is not None:
        scores.save(options.scores)
        return Path(options.scores)
    path = scores_path(trained.path, options.split)
    if path is None or options.limit is not None:
        return None
    try:
        keep(scores, path)
    except OSError as error:
        log.warning("each window's scores could not be kept (%s); --scores FILE puts them elsewhere", error)
        return None
    return path


def _compare(options: argparse.Namespace) -> None:
    from seqvae.harness.comparison import compare

    comparison = compare(options.runs, options.split)
    print(json.dumps(comparison.as_dict(), indent=1) if options.json else comparison.table())
