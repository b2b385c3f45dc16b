"""Commands that measure: evaluate, quality, compare."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from seqvae.cli.arguments import (
    Commands,
    add_command,
    add_data,
    add_decoding,
    add_seed,
    data_root,
    open_checkpoint,
    seed,
    strategy,
)

if TYPE_CHECKING:
    from seqvae.harness.config import Trained
    from seqvae.harness.scores import Subset
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
    _add_subset(evaluate, "use N windows of the split, drawn at random: the same ones for every model")
    evaluate.add_argument("--rows", type=int, default=512, help="sequences or pictures decoded at once (default 512)")
    evaluate.add_argument(
        "--max-tokens", type=int, default=4096, metavar="N", help="of sequences, decoded at once (default 4096)"
    )
    add_seed(evaluate)
    add_data(evaluate, "the dataset, if it is not where it was in training")
    evaluate.add_argument(
        "--scores", type=Path, metavar="FILE", help="where each window's scores go (default: RUN/scores/, for compare)"
    )
    evaluate.add_argument("--json", action="store_true", help="print JSON instead of a table")

    quality = add_command(
        commands,
        "quality",
        "what sampled sentences are worth: copies, variety, forward and reverse perplexity",
        _quality,
    )
    quality.add_argument("-n", type=int, default=10_000, help="how many to sample (default 10,000)")
    quality.add_argument(
        "--lm",
        metavar="RUN",
        help="a language model of the same data (model=lstm_lm) for the forward perplexity; "
        "default: the one that is trained here on n training sentences",
    )
    quality.add_argument(
        "--lm-steps",
        type=int,
        default=1000,
        metavar="N",
        help="of the two trainings, on the samples and on as many training sentences (default 1000: minutes each)",
    )
    quality.add_argument(
        "--keep", type=Path, metavar="DIR", help="a new folder for the samples' dataset and the language models"
    )
    add_data(quality, "the dataset, if it is not where it was in training")
    add_decoding(quality, "1")
    quality.add_argument("--json", action="store_true", help="print JSON instead of a table")

    help = "where runs differ, what they reached, and their differences on the same examples"
    compare = commands.add_parser("compare", help=help, description=help)
    compare.add_argument("runs", nargs="+", metavar="RUN", help="a run directory: its best, RUN@last its newest")
    compare.add_argument("--split", choices=SPLITS, default="test", help="whose scores are paired (default test)")
    _add_subset(compare, "pair the scores of `evaluate --subset N`")
    compare.add_argument("--json", action="store_true", help="print JSON instead of a table")
    compare.set_defaults(run=_compare)


def _add_subset(sub: argparse.ArgumentParser, help: str) -> None:
    sub.add_argument("--subset", type=int, metavar="N", help=help)
    sub.add_argument("--subset-seed", type=int, default=0, metavar="S", help="of the drawing (default 0)")


def _subset(options: argparse.Namespace) -> Subset | None:
    from seqvae.harness.scores import Subset

    return None if options.subset is None else Subset(options.subset, options.subset_seed)


def _evaluate(options: argparse.Namespace) -> None:
    from seqvae.harness.scoring import evaluate, open_split, random_subset

    subset = _subset(options)
    if subset is not None and options.limit is not None:
        raise ValueError("--limit is the split's first windows, --subset are some of all; choose one")
    trained = open_checkpoint(options)
    root = data_root(options, trained)
    dataset = open_split(root, options.split, trained.config["data"]["fingerprint"], options.limit)
    report = evaluate(
        trained.vae,
        trained.codec,
        dataset,
        importance_samples=options.importance_samples,
        rows=options.rows,
        max_tokens=options.max_tokens,
        places=None if subset is None else random_subset(dataset, *subset),
        seed=options.seed,
    )
    kept = _save_scores(options, trained, report, subset)
    if options.json:
        found = {
            "subset": subset and subset._asdict(),
            "metrics": report.metrics,
            "reconstruction": report.reconstruction,
            "scores": kept and str(kept),
        }
        print(json.dumps({"checkpoint": str(trained.path), "split": options.split, **found}, indent=1))
        return
    print(f"{trained.path}  {options.split} split" + ("" if subset is None else f", {subset}"))
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


def _save_scores(options: argparse.Namespace, trained: Trained, report: Report, subset: Subset | None) -> Path | None:
    """Write each window's scores where a person wants them, or those that `compare` knows beside the checkpoints."""
    from seqvae.harness.scores import Scores, keep, scores_path, weights_digest

    scores = Scores(
        split=options.split,
        data=trained.config["data"]["fingerprint"],
        seen=report.seen,
        weights=weights_digest(trained.path),
        importance_samples=int(report.metrics.get("importance_samples", 0)),
        **{name: column.numpy() for name, column in report.examples.items()},
    )
    if options.scores is not None:
        scores.save(options.scores)
        return Path(options.scores)
    path = scores_path(trained.path, options.split, subset)
    if path is None or options.limit is not None:
        return None
    try:
        keep(scores, path)
    except OSError as error:
        log.warning("each window's scores could not be kept (%s); --scores FILE puts them elsewhere", error)
        return None
    return path


def _quality(options: argparse.Namespace) -> None:
    from tempfile import TemporaryDirectory

    from seqvae import latent
    from seqvae.harness.config import load
    from seqvae.harness.quality import check, quality
    from seqvae.harness.signals import Stopped

    if options.lm_steps < 1:
        raise ValueError(f"lm-steps must be positive, got {options.lm_steps}")
    trained = open_checkpoint(options)
    judge = None if options.lm is None else load(options.lm, options.device)
    check(trained, judge)  # sampling takes its time
    root = data_root(options, trained)
    if options.keep is not None:
        options.keep.mkdir(parents=True)
    seed(options)
    samples = latent.sample(trained.vae, trained.codec, options.n, strategy(options, None if options.beam else 1.0))
    with TemporaryDirectory(prefix="seqvae-quality-") as temporary:
        folder = options.keep or Path(temporary)
        try:
            found = quality(trained, samples, root, folder, judge=judge, steps=options.lm_steps, seed=options.seed)
        except Stopped:  # what it has saved ends with the command
            raise KeyboardInterrupt from None
    if options.json:
        print(json.dumps({"checkpoint": str(trained.path), **found._asdict()}, indent=1))
        return
    print(f"{trained.path}\n" + f"{'':<20}" + "".join(f"{name:>22}" for name in found.rows))
    for metric in dict.fromkeys(name for row in found.rows.values() for name in row if not name.endswith("_error")):
        cells = [_cell(row, metric) for row in found.rows.values()]
        print(f"{metric:<20}" + "".join(f"{cell:>22}" for cell in cells))
    judged = "the model of the training sentences" if judge is None else found.facts["judge"]
    print(f"forward: by {judged}; reverse: of the test split, by a model trained {options.lm_steps:,} steps")
    print(f"self-BLEU: of {found.facts['self_bleu_sentences']:,} sentences each, drawn at random")
    if found.facts["without_text"]:
        print(f"{found.facts['without_text']:,} samples hold no text that can be encoded, and are left out")


def _cell(row: dict[str, float], metric: str) -> str:
    if metric not in row:
        return "-"
    error = row.get(f"{metric}_error")
    return f"{row[metric]:.6g}" + ("" if error is None else f" +- {error:.2g}")


def _compare(options: argparse.Namespace) -> None:
    from seqvae.harness.comparison import compare

    comparison = compare(options.runs, options.split, _subset(options))
    print(json.dumps(comparison.as_dict(), indent=1) if options.json else comparison.table())
