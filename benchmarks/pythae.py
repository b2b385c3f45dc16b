"""An image VAE trained by seqvae and by pythae 0.1.2: images a second and nats, side by side.

    python -m benchmarks.pythae --root data/fashion_mnist --epochs 10

Both train the networks of `experiment=fashion` on the same binary pixels, drawn once, in as many epochs of batches of
the same size by Adam at the same constant rate, on the CPU, and validate after each epoch. Both best models are scored
by `seqvae evaluate`'s estimate, and their NLLs paired over the same pictures. Our Adam is PyTorch's fused AdamW without
decay, theirs its default Adam; averages of weights, clipping and annealing are off. One trains after the other, so the
machine must be as free for the second.
pythae runs in an environment of its own with this checkout beside it: `--python` names its interpreter, else the
environment is made at `--environment`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from benchmarks import cli
from seqvae import data
from seqvae.data.batching import VALID_SEED, loader
from seqvae.data.codec import Codec
from seqvae.data.dataset import VALID_EPOCH, WindowDataset
from seqvae.evaluation import mean_and_error
from seqvae.harness.config import assemble, load
from seqvae.harness.engine import Engine
from seqvae.harness.run import configuration, train
from seqvae.harness.scoring import evaluate, random_subset, unseen
from seqvae.vae import VAE

WORKER = "benchmarks.pythae_worker"
CHECKOUT = Path(__file__).resolve().parent.parent
SEED = 0  # of the test pictures
COLUMNS = ("parameters", "images/s", "images a CPU second", "NLL", "+-", "ELBO", "active units")


class Measured(NamedTuple):
    """What each has come to, and the mean of our NLL minus theirs over pictures, with its standard error."""

    rows: dict[str, dict[str, float]]
    minus: tuple[float, float]


def bench(options: argparse.Namespace) -> None:
    """Print what both have come to."""
    cli.check_positive(options, "epochs", "batch_size", "lr", "limit", "importance_samples", "subset", "seeds")
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            found = measure(options, Path(folder), seed)
        print(f"{options.epochs} epochs of {options.batch_size}, {torch.get_num_threads()} threads, seed {seed}\n")
        print(table(found.rows))
        minus, error = found.minus
        print(f"\nNLL of seqvae minus that of pythae, on the same pictures: {minus:+.2f} +- {error:.2f}\n", flush=True)


def measure(options: argparse.Namespace, folder: Path, seed: int = 0) -> Measured:
    """Train both and return what they have come to."""
    for override in options.set:
        if not override.startswith("model."):
            raise ValueError(f"--set changes what both are built of, model.KEY=VALUE, got {override!r}")
    device = Engine(devices=1).device
    if device.type != "cpu":
        raise ValueError(f"both train on the CPU, and ours would take {device}: hide it (CUDA_VISIBLE_DEVICES=)")
    size = len(WindowDataset(options.root, "train", options.limit))
    codec, test = data.load_codec(options.root / "codec").replace(binarize=True), WindowDataset(options.root, "test")
    steps = -(-size // options.batch_size)  # an epoch
    keys = ["experiment=fashion", f"data.root={options.root}", f"data.batch_size={options.batch_size}", f"seed={seed}"]
    keys += ["data.fresh_views=false", f"data.limit={options.limit or 'null'}", f"run_dir={folder / 'ours'}"]
    keys += [f"optimizer.lr={options.lr}", "schedule@learning_rate=constant", "~learning_rate.end"]
    keys += ["objective.beta.start=1", "trainer.clip_norm=1e9", "trainer.ema=null"]
    keys += ["trainer.devices=1", f"trainer.max_steps={options.epochs * steps}"]
    keys += [f"trainer.{name}_every={steps}" for name in ("valid", "save")] + [f"trainer.log_every={min(10, steps)}"]
    config = configuration([*keys, *options.set])
    request = {
        "model": OmegaConf.to_container(config.model, resolve=True),
        "spec": codec.spec,
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "lr": options.lr,
        "seed": seed,
        "threads": torch.get_num_threads(),
    }
    theirs = assemble(request["model"], {"_target_": "seqvae.priors.StandardNormal"}, codec)
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    export(options.root, codec, folder / "pixels.npz", options.limit, seed)
    subprocess.run([interpreter(options), "-m", WORKER, str(folder)], cwd=CHECKOUT, check=True, stdout=sys.stderr)
    theirs.load_state_dict(load_file(folder / "theirs.safetensors"))
    speeds = {"pythae 0.1.2": json.loads((folder / "theirs.json").read_text(encoding="utf-8"))}
    seconds = time.process_time()
    train(config)
    seconds = time.process_time() - seconds
    speeds["seqvae"] = {
        "images/s": _logged_speed(folder / "ours" / "tensorboard"),
        "images a CPU second": options.epochs * size / seconds,
    }
    models = {"pythae 0.1.2": theirs.eval(), "seqvae": load(folder / "ours").vae}
    scored = {name: score(vae, codec, test, options) for name, vae in models.items()}
    rows = {name: {**speeds[name], **row} for name, (row, _) in scored.items()}
    theirs_nll, ours_nll = (nll for _, nll in scored.values())
    return Measured(rows, mean_and_error(ours_nll - theirs_nll))


def export(root: Path, codec: Codec[Any], path: Path, limit: int | None, seed: int) -> None:
    """Write the pixels that a training of `data.fresh_views=false` and its validations see."""
    arrays = {}
    for split, drawn_with in (("train", seed), ("valid", VALID_SEED)):
        dataset = WindowDataset(root, split, limit)
        places = [list(range(len(dataset)))]
        (batch,) = loader(dataset, codec, places, seed=drawn_with, epoch=VALID_EPOCH)
        arrays[split] = batch.x.numpy()
    np.savez(path, **arrays)


def score(
    vae: VAE, codec: Codec[Any], test: WindowDataset, options: argparse.Namespace
) -> tuple[dict[str, float], Tensor]:
    """Return what an evaluation finds of unseen test pictures, the same ones for both, and the NLL of each."""
    places = unseen(test)
    places = places[random_subset(places, min(options.subset, len(places)), SEED)]
    report = evaluate(vae, codec, test, importance_samples=options.importance_samples, places=places)
    found = report.metrics
    row = {
        "parameters": sum(parameter.numel() for parameter in vae.parameters()),
        "NLL": found["nll"],
        "+-": found["nll_error"],
        "ELBO": found["elbo"],
        "active units": found["active_units"],
    }
    return row, report.examples["nll"]


def table(rows: dict[str, dict[str, float]]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * len(COLUMNS)]
    for name, row in rows.items():
        cells = [
            f"{row[column]:,.2f}" if column in ("NLL", "+-", "ELBO") else f"{row[column]:,.0f}" for column in COLUMNS
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def interpreter(options: argparse.Namespace) -> str:
    """Return the interpreter of an environment with pythae. Raises ValueError for one that the worker cannot run in."""
    python = str((options.python or environment(options.environment)).absolute())  # a link says which environment
    tried = subprocess.run([python, "-c", f"import {WORKER}"], cwd=CHECKOUT, capture_output=True, text=True)
    if tried.returncode:
        raise ValueError(f"{python} cannot run {WORKER}: {''.join(tried.stderr.splitlines()[-1:])}")
    return python


def environment(folder: Path) -> Path:
    """Return the interpreter of an environment with pythae, made where there is none."""
    interpreter = folder / "bin" / "python"
    if not interpreter.exists():
        venv.create(folder, with_pip=True)
        install = ["-m", "pip", "install", "--quiet", "-c", str(CHECKOUT / "constraints.txt")]
        subprocess.run([str(interpreter.absolute()), *install, "pythae==0.1.2", str(CHECKOUT)], check=True)
    return interpreter


def _logged_speed(folder: Path) -> float:
    events = EventAccumulator(str(folder))
    events.Reload()
    readings: list[float] = [event.value for event in events.Scalars("train/examples_per_second")]
    return statistics.harmonic_mean(readings)  # images over seconds of the whole training, as theirs


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.parser("pythae", __doc__)
    parser.add_argument("--root", type=Path, default=Path("data/fashion_mnist"), help="a prepared dataset of pictures")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--limit", type=int, metavar="N", help="train on the first N pictures")
    parser.add_argument("--importance-samples", type=int, default=500, metavar="K")
    parser.add_argument("--subset", type=int, default=1000, metavar="N", help="test pictures, drawn at random")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="how often, with other weights and pixels")
    parser.add_argument("--set", nargs="*", default=[], metavar="model.KEY=VALUE", help="of both: model.width=16")
    parser.add_argument("--python", type=Path, help="the interpreter of an environment with pythae and seqvae")
    parser.add_argument("--environment", type=Path, default=Path(".venv-pythae"), help="where else one is made")
    return cli.run(parser, bench, argv)


if __name__ == "__main__":
    sys.exit(main())
