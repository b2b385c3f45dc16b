"""Commands that measure: evaluate, quality, compare."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from seqvae.cli.arguments import (
    Commands,
    add_command,
    add_data,
    add_decoding,
    add_law,
    add_seed,
    data_root,
    law,
    open_checkpoint,
    open_data,
    seed,
    strategy,
)

if TYPE_CHECKING:
    from torch import Tensor

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
    evaluate.add_argument(
        "--keep-seen", action="store_true", help="score windows that stand in train, too (default: leave them out)"
    )
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
        "what samples are worth beside real items: copies, variety, their attributes; of text also perplexities",
        _quality,
    )
    quality.add_argument("-n", type=int, help="how many to sample (default 10,000 sentences, 1,000 of other items)")
    add_law(quality)
    quality.add_argument(
        "--lm",
        metavar="RUN",
        help="a language model of the same data (model=lstm_lm) for the forward perplexity; "
        "default: the one that is trained here on n training sentences",
    )
    quality.add_argument(
        "--lm-steps",
        type=int,
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
    import numpy as np

    from seqvae.harness.scoring import evaluate, random_subset, unseen

    subset = _subset(options)
    if subset is not None and options.limit is not None:
        raise ValueError("--limit is the split's first windows, --subset are some of all; choose one")
    trained = open_checkpoint(options)
    dataset = open_data(options, trained, options.split, options.limit)
    places = np.arange(len(dataset)) if options.keep_seen else unseen(dataset)
    left_out = len(dataset) - len(places)
    report = evaluate(
        trained.vae,
        trained.codec,
        dataset,
        importance_samples=options.importance_samples,
        rows=options.rows,
        max_tokens=options.max_tokens,
        places=places if subset is None else places[random_subset(places, *subset)],
        seed=options.seed,
        noise=trained.noise,
    )
    kept = _save_scores(options, trained, report, subset)
    if options.json:
        found = {
            "subset": subset and subset._asdict(),
            "left_out_as_seen_in_train": left_out,
            "metrics": report.metrics,
            "reconstruction": report.reconstruction,
            "scores": kept and str(kept),
        }
        print(json.dumps({"checkpoint": str(trained.path), "split": options.split, **found}, indent=1))
        return
    print(f"{trained.path}  {options.split} split" + ("" if subset is None else f", {subset}"))
    if left_out:
        print(f"{left_out:,} of {len(dataset):,} windows also stand in train and are left out (--keep-seen keeps them)")
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
    from seqvae import latent
    from seqvae.harness.quality import of_sentences

    trained = open_checkpoint(options)
    drawn_from = law(options, trained)
    sentences = of_sentences(trained.codec)
    tokens = "vocab_size" in trained.codec.spec
    draw = strategy(options, 1.0 if tokens and options.beam is None else None)
    count = (10_000 if sentences else 1000) if options.n is None else options.n

    def windows() -> Iterator[Tensor]:
        seed(options)
        return latent.stream(trained.vae, count, draw, law=drawn_from)

    (_quality_of_sentences if sentences else _quality_of_windows)(options, trained, windows)


def _quality_of_windows(options: argparse.Namespace, trained: Trained, windows: Callable[[], Iterator[Tensor]]) -> None:
    from seqvae.harness.samples import sample_quality

    for name in ("lm", "lm_steps", "keep"):
        if getattr(options, name) is not None:
            given = f"--{name.replace('_', '-')}"
            raise ValueError(f"{given} is for sentences, {trained.path} is a {type(trained.codec).__name__}'s model")
    rows = sample_quality(trained, list(windows()), data_root(options, trained), options.seed)
    if options.json:
        print(json.dumps({"checkpoint": str(trained.path), "from": options.law, "rows": rows}, indent=1))
    else:
        _print_rows(trained, options, rows)


def _quality_of_sentences(
    options: argparse.Namespace, trained: Trained, windows: Callable[[], Iterator[Tensor]]
) -> None:
    from tempfile import TemporaryDirectory

    from seqvae.harness.config import load
    from seqvae.harness.quality import check, quality
    from seqvae.harness.signals import Stopped

    steps = 1000 if options.lm_steps is None else options.lm_steps
    if steps < 1:
        raise ValueError(f"lm-steps must be positive, got {steps}")
    judge = None if options.lm is None else load(options.lm, options.device)
    check(trained, judge)  # sampling takes its time
    root = data_root(options, trained)
    if options.keep is not None:
        options.keep.mkdir(parents=True)
    samples = [trained.codec.join([window]) for window in windows()]
    with TemporaryDirectory(prefix="seqvae-quality-") as temporary:
        folder = options.keep or Path(temporary)
        try:
            found = quality(trained, samples, root, folder, judge=judge, steps=steps, seed=options.seed)
        except Stopped:  # what it has saved ends with the command
            raise KeyboardInterrupt from None
    if options.json:
        print(json.dumps({"checkpoint": str(trained.path), "from": options.law, **found._asdict()}, indent=1))
        return
    _print_rows(trained, options, found.rows)
    judged = "the model of the training sentences" if judge is None else found.facts["judge"]
    print(f"forward: by {judged}; reverse: of the test split, by a model trained {steps:,} steps")
    print(f"self-BLEU: of {found.facts['self_bleu_sentences']:,} sentences each, drawn at random")
    if found.facts["without_text"]:
        print(f"{found.facts['without_text']:,} samples hold no text that can be encoded, and are left out")


def _print_rows(trained: Trained, options: argparse.Namespace, rows: dict[str, dict[str, float]]) -> None:
    print(f"{trained.path}  samples from the {options.law}")
    print(f"{'':<20}" + "".join(f"{name:>22}" for name in rows))
    for metric in dict.fromkeys(name for row in rows.values() for name in row if not name.endswith("_error")):
        print(f"{metric:<20}" + "".join(f"{_cell(row, metric):>22}" for row in rows.values()))


def _cell(row: dict[str, float], metric: str) -> str:
    if metric not in row:
        return "-"
    error = row.get(f"{metric}_error")
    return f"{row[metric]:.6g}" + ("" if error is None else f" +- {error:.2g}")


def _compare(options: argparse.Namespace) -> None:
    from seqvae.harness.comparison import compare

    comparison = compare(options.runs, options.split, _subset(options))
    print(json.dumps(comparison.as_dict(), indent=1) if options.json else comparison.table())
