"""Commands that measure: evaluate."""

from __future__ import annotations

import argparse
import json

from seqvae.cli.arguments import Commands, add_command, add_data, data_root, open_checkpoint


def add(commands: Commands) -> None:
    """Add the commands of this file."""
    evaluate = add_command(
        commands, "evaluate", "ELBO, importance-weighted NLL, latent health and reconstruction of a split", _evaluate
    )
    evaluate.add_argument("--split", choices=("train", "valid", "test"), default="test")
    evaluate.add_argument(
        "--importance-samples", type=int, default=0, metavar="K", help="of the NLL (default 0: ELBO only)"
    )
    evaluate.add_argument("--limit", type=int, metavar="N", help="use the split's first N windows")
    evaluate.add_argument("--rows", type=int, default=512, help="sequences or pictures decoded at once (default 512)")
    evaluate.add_argument("--seed", type=int, default=0)
    add_data(evaluate, "the dataset, if it is not where it was in training")
    evaluate.add_argument("--json", action="store_true", help="print JSON instead of a table")


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
    if options.json:
        print(json.dumps({"checkpoint": str(trained.path), "split": options.split, **report._asdict()}, indent=1))
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
