"""The way between latents."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqvae.latent import lerp, slerp
from seqvae.latent.interpolation import path

VECTORS = st.lists(st.floats(-5, 5, width=32), min_size=3, max_size=3).map(torch.tensor)


@settings(deadline=None)
@given(VECTORS, VECTORS, st.floats(0, 1))
def test_slerp_is_finite_for_any_two_vectors_and_ends_where_it_should(
    a: torch.Tensor, b: torch.Tensor, share: float
) -> None:
    assert torch.isfinite(slerp(a, b, share)).all()
    torch.testing.assert_close(slerp(a, b, 0.0), a, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(slerp(a, b, 1.0), b, atol=1e-4, rtol=1e-4)


def test_slerp_turns_at_a_constant_rate_on_the_circle() -> None:
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    for share in (0.0, 0.25, 0.5, 0.8):
        angle = share * math.pi / 2
        torch.testing.assert_close(slerp(a, b, share), torch.tensor([math.cos(angle), math.sin(angle)]))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([1.0, 2.0], [1.0, 2.0]),
        ([1.0, 2.0], [2.0, 4.0]),
        ([1.0, 2.0], [-1.0, -2.0]),
        ([0.0, 0.0], [1.0, 2.0]),
        ([0.0, 0.0],) * 2,
    ],
)
def test_where_there_is_no_arc_it_is_the_line(a: list[float], b: list[float]) -> None:
    start, end = torch.tensor(a), torch.tensor(b)
    torch.testing.assert_close(slerp(start, end, 0.3), lerp(start, end, 0.3))


def test_lengths_go_in_proportion() -> None:
    middle = slerp(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 4.0]), 0.5)
    assert middle.norm().item() == pytest.approx(3.0)


def test_steps_count_both_ends() -> None:
    a, b = torch.randn(4), torch.randn(4)
    points = path(a, b, 5, "lerp")
    assert points.shape == (5, 4)
    torch.testing.assert_close(points[2], (a + b) / 2)
    with pytest.raises(ValueError, match="steps must be at least 2"):
        path(a, b, 1)
    with pytest.raises(ValueError, match="method must be one of slerp, lerp, got 'arc'"):
        path(a, b, 3, "arc")
