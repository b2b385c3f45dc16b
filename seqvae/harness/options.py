"""A person's choices for the training loop, checked by the key that was typed."""

from dataclasses import dataclass, fields
from typing import Any

POSITIVE_INTS = ("max_steps", "valid_every", "save_every", "log_every", "keep_last", "accumulate")
POSITIVE_NUMBERS = ("clip_norm", "timeout_minutes")
COUNTS = ("skip_nonfinite", "profile", "aggressive_steps")
FLAGS = ("compile", "deterministic")


@dataclass(frozen=True)
class TrainerOptions:
    """What conf/trainer says; intervals count optimizer steps.

    Raises:
        ValueError: for a value out of its range, with the key a person typed.
    """

    max_steps: int
    max_minutes: float | None = None
    valid_every: int = 500
    save_every: int = 500
    log_every: int = 50
    keep_last: int = 2
    accumulate: int = 1
    clip_norm: float = 1.0
    aggressive_steps: int = 0
    ema: float | None = None
    monitor: str = "objective"
    patience: int | None = None
    skip_nonfinite: int = 0
    devices: int | str = "auto"
    timeout_minutes: float = 10.0
    precision: str = "32-true"
    compile: bool = False
    deterministic: bool = False
    profile: int = 0

    def __post_init__(self) -> None:
        for name in POSITIVE_INTS:
            self._check(name, "a positive int", lambda value: _is_int(value) and value >= 1)
        for name in POSITIVE_NUMBERS:
            self._check(name, "a positive number", lambda value: _is_number(value) and value > 0)
        for name in COUNTS:
            self._check(name, "an int >= 0", lambda value: _is_int(value) and value >= 0)
        for name in FLAGS:
            self._check(name, "true or false", lambda value: isinstance(value, bool))
        if self.max_minutes is not None:
            self._check("max_minutes", "a positive number or null", lambda value: _is_number(value) and value > 0)
        if self.patience is not None:
            self._check("patience", "a positive int or null", lambda value: _is_int(value) and value >= 1)
        if self.ema is not None:
            self._check("ema", "a number between 0 and 1, or null", lambda value: _is_number(value) and 0 < value < 1)

    def _check(self, name: str, kind: str, holds: Any) -> None:
        value = getattr(self, name)
        if not holds(value):
            raise ValueError(f"trainer.{name} must be {kind}, got {value!r}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def trainer_options(node: dict[str, Any]) -> TrainerOptions:
    """Return the options of a configuration node. Raises ValueError for a key that is none."""
    known = {field.name for field in fields(TrainerOptions)}
    for name in node:
        if name not in known:
            raise ValueError(f"trainer has no option {name!r}; it has: {', '.join(sorted(known))}")
    return TrainerOptions(**node)
