"""What measurements of speed share: a step as the trainer takes it, where its time goes, and how fast draws are."""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor
from torch.optim import Optimizer
from torch.profiler import ProfilerActivity, profile, record_function

from seqvae.harness.engine import Engine
from seqvae.harness.trainer import TrainingStep
from seqvae.objectives import Objective
from seqvae.vae import VAE

DRAWN_AT_ONCE = (1, 64, 1024)
OPTIMIZER = {"optimizer and clipping": ("Optimizer.step", "clipping")}
"""A part of every `training_step`."""

REST = "the rest"
BACKWARD = "autograd::engine::evaluate_function"  # what holds a gradient's operators


def training_step(vae: VAE, objective: Objective, optimizer: Optimizer, clip_norm: float) -> Callable[[Tensor], None]:
    """Return what takes an optimizer step on a batch as the trainer does."""
    engine = Engine(devices=1)
    module, prepared = engine.setup(TrainingStep(vae, objective), optimizer, compile=False)

    def step(x: Tensor) -> None:
        engine.backward(module(x.to(engine.device), 0.0).loss)
        with record_function("clipping"):
            engine.clip(module, prepared, clip_norm)
        prepared.step()
        prepared.zero_grad(set_to_none=True)

    return step


def where_time_goes(
    step: Callable[[Tensor], None], batches: Iterable[Tensor], parts: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """Return the share of the time of these steps, and of getting their batches, that each part takes.

    A part names operators and regions (`record_function`). All that happens within one is its own, the outermost
    counts, and so is its gradient.
    """
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for x in batches:
            step(x)
    part_of = {name: part for part, names in parts.items() for name in names}
    totals = dict.fromkeys([*parts, REST], 0.0)
    forward: dict[int, str] = {}  # parts by the number that an operator and its gradient share
    for event in sorted(recorded.events() or [], key=lambda event: event.time_range.start):
        path = [event]
        while path[-1].cpu_parent is not None:
            path.append(path[-1].cpu_parent)
        names = (one.name.removeprefix("aten::").partition("#")[0] for one in reversed(path))
        part = next((part_of[name] for name in names if name in part_of), REST)
        if path[-1].name.startswith(BACKWARD):
            made_by = forward.get(path[-1].sequence_nr, REST)
            part = part if made_by == REST else made_by
        elif event.sequence_nr >= 0:
            forward[event.sequence_nr] = part  # the last operator of a number is the one that has the gradient
        totals[part] += event.self_cpu_time_total
    whole = sum(totals.values())
    return {part: total / whole for part, total in totals.items()}


class Draws(NamedTuple):
    """How fast batches of one size are drawn."""

    batch: int
    per_second: float  # items, the median over batches
    tokens: float  # of an item


def sampling_speeds(draw: Callable[[int], int], seconds: float) -> Iterator[Draws]:
    """Yield the speed of each size of batch, drawn for so long and three times at least.

    `draw` draws a batch of the size and returns how many tokens it holds.
    """
    for batch in DRAWN_AT_ONCE:
        speeds: list[float] = []
        tokens: list[float] = []
        deadline = time.perf_counter() + seconds
        while len(speeds) < 3 or time.perf_counter() < deadline:
            started = time.perf_counter()
            held = draw(batch)
            speeds.append(batch / (time.perf_counter() - started))
            tokens.append(held / batch)
        yield Draws(batch, statistics.median(speeds), statistics.mean(tokens))
