"""Means over examples of what the steps between two log lines reported, and the throughput between them."""

import time
from typing import NamedTuple

import torch
from torch import Tensor

from seqvae.harness.engine import Engine


class Report(NamedTuple):
    """What one batch of this process reported: how many examples and tokens it held, and means over its examples."""

    examples: int
    tokens: int
    metrics: dict[str, Tensor]


class Meter:
    """Collects reports until they are read."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._clear()

    def _clear(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.examples = 0
        self.tokens = 0
        self.seconds = 0.0
        self.since = time.monotonic()

    def add(self, reports: list[Report]) -> None:
        now = time.monotonic()
        self.seconds += now - self.since
        self.since = now
        for examples, tokens, metrics in reports:
            self.examples += examples
            self.tokens += tokens
            for name, value in metrics.items():
                self.sums[name] = self.sums.get(name, torch.zeros((), device=value.device)) + value.detach() * examples

    def pause(self) -> None:
        """Leave out of the throughput what was no training."""
        self.since = time.monotonic()

    def read(self) -> dict[str, float]:
        """Return the means over all processes since the last call, and examples (and tokens) a second."""
        totals = {name: float(total) for name, total in self.state().items()}
        examples, tokens = totals.pop("examples"), totals.pop("tokens")
        numbers = {name: total / max(examples, 1) for name, total in totals.items()}
        numbers["examples_per_second"] = examples / max(self.seconds, 1e-9)
        if tokens:
            numbers["tokens_per_second"] = tokens / max(self.seconds, 1e-9)
        self._clear()
        return numbers

    def state(self) -> dict[str, Tensor]:
        """Return the sums over all processes: what a checkpoint keeps, so that a resumed line is the whole line."""
        device = self.engine.device
        sums = {
            **{name: self.sums[name] for name in sorted(self.sums)},
            "examples": torch.tensor(float(self.examples), device=device),
            "tokens": torch.tensor(float(self.tokens), device=device),
        }
        totals = self.engine.sum(torch.stack([total.float() for total in sums.values()]))
        return dict(zip(sums, totals.unbind(), strict=True))

    def restore(self, sums: dict[str, Tensor]) -> None:
        """Go on from what `state` returned, in one of the processes."""
        self.sums = {name: total.to(self.engine.device) for name, total in sums.items()}
        self.examples, self.tokens = (int(self.sums.pop(name)) for name in ("examples", "tokens"))
