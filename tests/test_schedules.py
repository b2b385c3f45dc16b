"""Schedules are pure functions of progress."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqvae.schedules import Constant, Cyclical, Linear, Schedule, Sigmoid, WarmupCosine

SCHEDULES: list[Schedule] = [
    Constant(0.3),
    Linear(0.1, 0.7, 0.4),
    Sigmoid(0.1, 0.7, 0.4),
    Cyclical(0.1, 0.7, 3),
    WarmupCosine(0.1, 0.05),
]


@pytest.mark.parametrize(
    ("schedule", "points"),
    [
        (Constant(0.3), {0.0: 0.3, 0.5: 0.3, 1.0: 0.3, 2.0: 0.3}),
        (Linear(0.0, 1.0, 0.5), {0.0: 0.0, 0.25: 0.5, 0.5: 1.0, 0.9: 1.0, 3.0: 1.0}),
        (Sigmoid(0.0, 1.0, 0.5), {0.0: 0.0, 0.25: 0.5, 0.5: 1.0, 0.9: 1.0, 3.0: 1.0}),
        (Cyclical(0.0, 1.0, 4, 0.5), {0.0: 0.0, 0.0625: 0.5, 0.125: 1.0, 0.2: 1.0, 0.25: 0.0, 1.0: 1.0, 3.0: 1.0}),
        (WarmupCosine(0.1, 0.0), {0.0: 0.0, 0.05: 0.5, 0.1: 1.0, 0.55: 0.5, 1.0: 0.0, 3.0: 0.0}),
    ],
)
def test_values_at_known_points(schedule: Schedule, points: dict[float, float]) -> None:
    for progress, value in points.items():
        assert schedule(progress) == pytest.approx(value, abs=1e-12)


def test_the_sigmoid_is_the_logistic_curve_between_its_ends() -> None:
    low, high = (1 / (1 + math.exp(-10 * x)) for x in (-0.5, 0.5))
    expected = (1 / (1 + math.exp(-10 * (0.3 - 0.5))) - low) / (high - low)
    assert Sigmoid(0.0, 1.0, 1.0)(0.3) == pytest.approx(expected)


def test_the_inverse_sigmoid_of_scheduled_sampling_is_a_sigmoid() -> None:
    k, steps = 1000, 50_000  # MusicVAE's two-bar models: Bengio et al. (2015), section 2.4, 1 - k / (k + e^(i/k))
    schedule = Sigmoid(0.0, 1.0, share=2 * k * math.log(k) / steps, steepness=2 * math.log(k))
    for step in (0, 1000, 3000, 6908, 9000, 12_000, 13_815, 40_000):
        assert schedule(step / steps) == pytest.approx(1 - k / (k + math.exp(step / k)), abs=2 / k)


@given(st.floats(0, 5), st.sampled_from(SCHEDULES))
def test_calling_a_schedule_changes_nothing_and_stays_in_bounds(progress: float, schedule: Schedule) -> None:
    assert schedule(progress) == schedule(progress)
    assert 0.0 <= schedule(progress) <= 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Linear(share=0.0), r"share must be a share of the training in \(0, 1\], got 0.0"),
        (lambda: Linear(end="abc"), "end must be a finite number, got 'abc'"),  # type: ignore[arg-type]
        (lambda: Sigmoid(steepness=-1.0), "steepness must be positive, got -1.0"),
        (lambda: Cyclical(cycles=0), "cycles must be a positive int, got 0"),
        (lambda: Constant(math.nan), "value must be a finite number, got nan"),
        (lambda: WarmupCosine(warmup=2.0), "warmup must be a share"),
    ],
)
def test_numbers_out_of_range_are_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()
