"""How fast the shipped experiments train here, and what share of the machine's matrix-product peak that is.

    python -m benchmarks.speed melody text fashion

Each experiment trains a few steps as `seqvae train` does, on its own prepared dataset. The share is 2 x 3 x the
forward pass's multiply-adds an example (a backward pass costs two forward ones), over the peak measured before and
after; softmaxes, activations and the optimizer do not count, so 1 cannot be reached. Of pictures it also says where
the time of a step goes, and how many a second are sampled; benchmarks.text_speed does of sentences.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.profiler import record_function

from benchmarks import cli
from benchmarks.timing import OPTIMIZER, sampling_speeds, training_step, where_time_goes
from seqvae import latent
from seqvae.data.batching import BatchOrder, loader
from seqvae.data.dataset import WindowDataset
from seqvae.harness.config import build, load
from seqvae.harness.machine import gemm_peak
from seqvae.harness.run import configuration, train
from seqvae.models.conv import ConvDecoder
from seqvae.vae import VAE

LOG_EVERY = 20  # steps between two readings of the throughput
BATCHES = 20  # that tell what an example multiplies
PROFILED = 5  # steps

PARTS = {
    "convolutions and matrix products": ("conv2d", "conv_transpose2d", "linear", "matmul", "mm", "addmm"),
    "elementwise": ("silu", "glu", "add", "sub", "mul", "div", "neg", "square", "exp", "expm1", "tanh", "sigmoid"),
    "likelihood": ("likelihood",),
    **OPTIMIZER,
    "data": ("enumerate(DataLoader)",),
}
"""What a step on pictures is made of."""


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


class Measured(NamedTuple):
    """A row of the table; of pictures, where a step's time goes and how many a second batches of each size give."""

    row: str
    shares: dict[str, float]
    sampled: dict[int, float]


def measure(experiment: str, steps: int, overrides: list[str], seconds: float = 10.0) -> Measured:
    """Train an experiment; sample each size of batch for so many seconds."""
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
        dataset = WindowDataset(Path(str(config.data.root)), "train", config.data.limit)
        order = BatchOrder(dataset.lengths, config.data.batch_size, config.data.max_tokens)
        chosen = order.epoch(0)[:BATCHES]
        batches = [batch.x for batch in loader(dataset, trained.codec, chosen, seed=0, epoch=0)]
    work = 6 * forward_multiply_adds(trained.vae, batches) / 1e9  # GFLOP an example
    row = (
        f"{experiment:<10}{speeds['examples']:>12,.0f}{speeds.get('tokens', 0):>12,.0f}"
        f"{work * 1e3:>14,.1f}{speeds['examples'] * work:>10.1f}{peak:>10.1f}{speeds['examples'] * work / peak:>8.2f}"
    )
    if not isinstance(trained.vae.decoder, ConvDecoder):
        return Measured(row, {}, {})
    generator = torch.Generator().manual_seed(0)
    drawn = sampling_speeds(lambda batch: len([*latent.stream(trained.vae, batch, generator=generator)]), seconds)
    sampled = {one.batch: one.per_second for one in drawn}
    vae = trained.vae.train()
    likelihood = trained.vae.decoder.likelihood
    likelihood.log_prob = record_function("likelihood")(likelihood.log_prob)  # type: ignore[method-assign]
    optimizer = build(config.optimizer, params=vae.parameters())
    step = training_step(vae, build(config.objective), optimizer, config.trainer.clip_norm)
    step(batches[0])
    seen = loader(dataset, trained.codec, chosen[:PROFILED], seed=0, epoch=0, workers=config.data.workers)
    return Measured(row, where_time_goes(step, (batch.x for batch in seen), PARTS), sampled)


def bench(options: argparse.Namespace) -> None:
    """Print a row an experiment."""
    if options.steps < 2 * LOG_EVERY:  # the first reading does not count
        raise ValueError(f"steps must be at least {2 * LOG_EVERY}, got {options.steps}")
    found = {experiment: measure(experiment, options.steps, options.set) for experiment in options.experiments}
    print(f"{torch.get_num_threads()} threads")
    print("experiment  examples/s    tokens/s  MFLOP/example   GFLOP/s  the peak   share")
    print("\n".join(one.row for one in found.values()))
    for experiment, one in found.items():
        if one.sampled:
            print(f"\n{experiment}: share of a step's time")
            print("\n".join(f"  {part:<34}{share:>6.2f}" for part, share in one.shares.items()))
            print(f"{experiment}: pictures a second, sampled in batches of")
            print("\n".join(f"  {batch:<28,}{speed:>12,.1f}" for batch, speed in one.sampled.items()))


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.parser("speed", __doc__)
    parser.add_argument("experiments", nargs="*", default=["melody", "text", "fashion"])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="as for seqvae train")
    return cli.run(parser, bench, argv)


if __name__ == "__main__":
    sys.exit(main())
