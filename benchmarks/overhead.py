"""What the harness costs: a step of the bare loop beside a step of ours, on the melody model and the same batches.

    python -m benchmarks.overhead --root data/folk_tunes

The two loops take turns, so that whatever else the machine does falls on both; on a busy machine, the processor's
time says more than the wall's.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from benchmarks import cli
from seqvae import data
from seqvae.data.batching import BatchOrder, loader
from seqvae.data.dataset import Batch, WindowDataset
from seqvae.harness.config import assemble, build
from seqvae.harness.engine import Engine
from seqvae.harness.options import TrainerOptions
from seqvae.harness.run import configuration
from seqvae.harness.signals import StopSignals
from seqvae.harness.tracking import ProgressBar
from seqvae.harness.trainer import Trainer
from seqvae.vae import VAE


def bare_steps(vae: VAE, config: dict[str, Any], batches: list[Batch]) -> Iterator[None]:
    """Take a step a turn as one would write it in plain torch."""
    optimizer, objective = build(config["optimizer"], params=vae.parameters()), build(config["objective"])
    for batch in batches:
        optimizer.zero_grad(set_to_none=True)
        loss, _ = objective(vae, batch.x, 0.5)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        yield


def our_steps(trainer: Trainer, batches: list[Batch]) -> Iterator[None]:
    """Take a step a turn as the trainer does, with all that it does at every step."""
    source = iter(batches)
    for _ in batches:
        trainer.meter.add(trainer._step(source))
        trainer._log()
        trainer._signal()
        trainer._out_of_time(time.monotonic())
        trainer.meter.pause()
        yield


def cost(steps: Iterator[None]) -> tuple[float, float]:
    """Return the seconds that a step took, on the wall and of the processor."""
    wall, processor = time.perf_counter(), time.process_time()
    next(steps)
    return time.perf_counter() - wall, time.process_time() - processor


def bench(options: argparse.Namespace) -> None:
    """Print the time of a step of either loop, on the wall and of the processor."""
    cli.check_positive(options, "steps", "threads")
    torch.set_num_threads(options.threads)
    composed = configuration(["experiment=melody", f"data.root={options.root}"])
    config: Any = OmegaConf.to_container(composed, resolve=True)
    train, valid = (WindowDataset(options.root, split) for split in ("train", "valid"))
    codec = data.load_codec(options.root / "codec").replace(**config["data"]["view"])
    order = BatchOrder(train.lengths, config["data"]["batch_size"])
    chosen = [order.epoch(epoch)[place] for epoch, place in (divmod(n, order.steps) for n in range(options.steps + 3))]
    batches = list(loader(train, codec, chosen, seed=0, epoch=0))

    with tempfile.TemporaryDirectory() as folder, StopSignals() as signals:
        vae = assemble(config["model"], config["prior"], codec)
        trainer = Trainer(
            engine=Engine(1),
            vae=vae,
            codec=codec,
            objective=build(config["objective"]),
            optimizer=build(config["optimizer"], params=vae.parameters()),
            learning_rate=build(config["learning_rate"]),
            train=train,
            valid=valid,
            order=order,
            options=TrainerOptions(max_steps=10**6, max_minutes=10.0),
            run_dir=Path(folder),
            config={},
        )
        trainer.set_up()
        trainer.signals, trainer.bar, trainer.tracker = signals, ProgressBar(10**6, 0, enabled=False), None
        bare = bare_steps(assemble(config["model"], config["prior"], codec), config, batches)
        ours = our_steps(trainer, batches)
        turns = [(cost(bare), cost(ours)) for _ in batches][3:]  # the first ones allocate
    for place, kind in enumerate(("wall", "processor")):
        plain, harness = (statistics.median(turn[loop][place] for turn in turns) for loop in (0, 1))
        pairs = statistics.median(second[place] / first[place] for first, second in turns)
        print(
            f"{kind} time of a step: bare loop {1e3 * plain:.1f} ms, harness {1e3 * harness:.1f} ms; "
            f"ratio of the medians {harness / plain:.3f}, median of the ratios of {len(turns)} turns {pairs:.3f}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.parser("overhead", __doc__)
    parser.add_argument("--root", type=Path, required=True, help="a prepared melody dataset")
    parser.add_argument("--steps", type=int, default=40, help="of each loop, in turns (default 40)")
    parser.add_argument("--threads", type=int, default=1)
    return cli.run(parser, bench, argv)


if __name__ == "__main__":
    sys.exit(main())
