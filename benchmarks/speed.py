"""How fast the shipped experiments train here, and what share of the machine's matrix-product peak that is.

    python -m benchmarks.speed melody text fashion

Each experiment trains a few steps as `seqvae train` does, on its own prepared dataset. The share is 2 x 3 x the
forward pass's multiply-adds an example (a backward pass costs two forward ones), over the peak measured before and
after; softmaxes, activations and the optimizer do not count, so 1 cannot be reached.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from benchmarks import cli
from seqvae.data.batching import valid_loader
from seqvae.data.dataset import WindowDataset
from seqvae.harness.config import load
from seqvae.harness.machine import gemm_peak
from seqvae.harness.run import configuration, train
from seqvae.vae import VAE

LOG_EVERY = 20  # steps between two readings of the throughput


def multiply_adds(layer: nn.Module, inputs: Any, output: Tensor) -> int:
    """Return the multiply-adds of one call of a layer; 0 for those that are cheap."""
    if isinstance(layer, nn.LSTM):
        steps = len(inputs.data) if isinstance(inputs, PackedSequence) else inputs.shape[0] * inputs.shape[1]
        return steps * sum(weight.numel() for name, weight in layer.named_parameters() if name.startswith("weight"))
    if isinstance(layer, nn.Linear):
        return output.numel() * layer.in_features
    if isinstance(layer, nn.Conv2d):
        return output.numel() * layer.weight[0].numel()
    if isinstance(layer, nn.ConvTranspose2d):
        return int(inputs.numel()) * layer.weight[0].numel()
    return 0


@contextmanager
def counting(module: nn.Module) -> Iterator[list[int]]:
    """Yield a list that gets the multiply-adds of every call of the module's layers."""
    counts: list[int] = []

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        counts.append(multiply_adds(layer, inputs[0], output))

    hooks = [layer.register_forward_hook(count) for layer in module.modules()]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def forward_multiply_adds(vae: VAE, batches: list[Tensor]) -> float:
    """Return the mean over examples of what one forward pass of the ELBO multiplies."""
    with counting(vae) as counts, torch.no_grad():
        for x in batches:
            vae.prior(vae.encoder)
            vae.decoder.predict(x, vae.encoder(x).mean)  # by its layers, as the chunks of a loss are not
    return sum(counts) / sum(len(x) for x in batches)


def measure(experiment: str, steps: int, overrides: list[str]) -> str:
    """Return one row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        keys = [f"experiment={experiment}", f"run_dir={folder}/run", f"trainer.max_steps={steps}"]
        keys += [f"trainer.log_every={LOG_EVERY}", "trainer.valid_every=1000000", "trainer.save_every=1000000"]
        config = configuration([*keys, *overrides])
        before = gemm_peak()
        train(config)
        peak = max(before, gemm_peak())
        events = EventAccumulator(f"{folder}/run/tensorboard")
        events.Reload()
        speeds = {
            unit: statistics.median(event.value for event in events.Scalars(f"train/{unit}_per_second")[1:])
            for unit in ("examples", "tokens")
            if f"train/{unit}_per_second" in events.Tags()["scalars"]
        }
        trained = load(f"{folder}/run@last")
        dataset = WindowDataset(Path(str(config.data.root)), "valid")
        batches = [batch.x for batch in valid_loader(dataset, trained.codec, batch_size=64)][:20]
    work = 6 * forward_multiply_adds(trained.vae, batches) / 1e9  # GFLOP an example
    return (
        f"{experiment:<10}{speeds['examples']:>12,.0f}{speeds.get('tokens', 0):>12,.0f}"
        f"{work * 1e3:>14,.1f}{speeds['examples'] * work:>10.1f}{peak:>10.1f}{speeds['examples'] * work / peak:>8.2f}"
    )


def bench(options: argparse.Namespace) -> None:
    """Print a row an experiment."""
    if options.steps < 2 * LOG_EVERY:  # the first reading does not count
        raise ValueError(f"steps must be at least {2 * LOG_EVERY}, got {options.steps}")
    rows = [measure(experiment, options.steps, options.set) for experiment in options.experiments]
    print(f"{torch.get_num_threads()} threads")
    print("experiment  examples/s    tokens/s  MFLOP/example   GFLOP/s  the peak   share")
    print("\n".join(rows))


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.parser("speed", __doc__)
    parser.add_argument("experiments", nargs="*", default=["melody", "text", "fashion"])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="as for seqvae train")
    return cli.run(parser, bench, argv)


if __name__ == "__main__":
    sys.exit(main())
