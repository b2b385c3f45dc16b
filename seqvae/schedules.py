"""Schedules: pure functions of training progress, 0 at the first step and 1 at the last."""

import math
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Constant", "Cyclical", "Linear", "Sigmoid", "WarmupCosine"]


class Schedule(Protocol):
    """A number for every moment of a training."""

    def __call__(self, progress: float) -> float:
        """Return the value at `progress`, the share of the training that is done; beyond 1 it stays as it is at 1."""


def _check_share(**shares: float) -> None:
    for name, share in shares.items():
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise ValueError(f"{name} must be a share of the training in (0, 1], got {share!r}")


def _check_numbers(**values: float) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value!r}")


@dataclass(frozen=True)
class Constant:
    """Always `value`."""

    value: float = 1.0

    def __post_init__(self) -> None:
        _check_numbers(value=self.value)

    def __call__(self, progress: float) -> float:
        return self.value


@dataclass(frozen=True)
class Linear:
    """From `start` to `end` in a straight line over the first `share` of the training, then `end`."""

    start: float = 0.0
    end: float = 1.0
    share: float = 0.25

    def __post_init__(self) -> None:
        _check_numbers(start=self.start, end=self.end)
        _check_share(share=self.share)

    def __call__(self, progress: float) -> float:
        return self.start + (self.end - self.start) * min(progress / self.share, 1.0)


@dataclass(frozen=True)
class Sigmoid:
    """From `start` to `end` along a logistic curve centred in the first `share` (Bowman et al., 2016, section 3.1).

    The curve is stretched to begin exactly at `start` and to reach exactly `end`, where it stays.
    """

    start: float = 0.0
    end: float = 1.0
    share: float = 0.25
    steepness: float = 10.0

    def __post_init__(self) -> None:
        _check_numbers(start=self.start, end=self.end, steepness=self.steepness)
        _check_share(share=self.share)
        if self.steepness <= 0:
            raise ValueError(f"steepness must be positive, got {self.steepness!r}")

    def __call__(self, progress: float) -> float:
        lowest, value, highest = (
            1.0 / (1.0 + math.exp(-self.steepness * (position - 0.5)))
            for position in (0.0, min(progress / self.share, 1.0), 1.0)
        )
        return self.start + (self.end - self.start) * (value - lowest) / (highest - lowest)


@dataclass(frozen=True)
class Cyclical:
    """`cycles` times from `start` to `end`: a rise over `rise` of each cycle, then a stay (Fu et al., 2019)."""

    start: float = 0.0
    end: float = 1.0
    cycles: int = 4
    rise: float = 0.5

    def __post_init__(self) -> None:
        _check_numbers(start=self.start, end=self.end)
        _check_share(rise=self.rise)
        if isinstance(self.cycles, bool) or not isinstance(self.cycles, int) or self.cycles < 1:
            raise ValueError(f"cycles must be a positive int, got {self.cycles!r}")

    def __call__(self, progress: float) -> float:
        if progress >= 1.0:
            return self.end
        position = progress * self.cycles % 1.0
        return self.start + (self.end - self.start) * min(position / self.rise, 1.0)


@dataclass(frozen=True)
class WarmupCosine:
    """A factor for the learning rate: up to 1 over the first `warmup` share, then down to `end` along a cosine."""

    warmup: float = 0.02
    end: float = 0.0

    def __post_init__(self) -> None:
        _check_numbers(end=self.end)
        _check_share(warmup=self.warmup)

    def __call__(self, progress: float) -> float:
        if progress < self.warmup:
            return progress / self.warmup
        position = min((progress - self.warmup) / max(1.0 - self.warmup, 1e-12), 1.0)
        return self.end + (1.0 - self.end) * 0.5 * (1.0 + math.cos(math.pi * position))
