"""The way between latents, and streams of samples."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqvae.data import MelodyTokenizer, PixelCodec, SentencePieceTokenizer, load_codec
from seqvae.gaussian import DiagonalGaussian
from seqvae.latent import Sieve, decode, encode, grid, interpolate, lerp, reconstruct, slerp, stream
from seqvae.latent.interpolation import path
from seqvae.models.decoding import Beam
from seqvae.vae import VAE, Encoder
from tests.helpers.vectors import RowCodec, linear_world
from tests.helpers.worlds import World

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


CODEC = RowCodec()


def test_the_corners_and_the_sides_of_a_grid_are_reconstructions_and_interpolations() -> None:
    vae = linear_world()
    corners = [torch.randn(2, 5) for _ in range(4)]
    a, b, c, d = corners
    items = grid(vae, CODEC, corners, 3, 4)
    assert len(items) == 12
    torch.testing.assert_close(torch.stack(items[:4]), torch.stack(interpolate(vae, CODEC, a, b, 4)))
    torch.testing.assert_close(torch.stack(items[8:]), torch.stack(interpolate(vae, CODEC, c, d, 4)))
    torch.testing.assert_close(torch.stack(items[::4]), torch.stack(interpolate(vae, CODEC, a, c, 3)))
    torch.testing.assert_close(torch.stack(items[3::4]), torch.stack(interpolate(vae, CODEC, b, d, 3)))
    places = [items[0], items[3], items[8], items[11]]
    for place, plain in zip(places, reconstruct(vae, CODEC, corners), strict=True):
        torch.testing.assert_close(place, plain)


def test_the_middle_of_a_straight_grid_is_the_mean_of_its_corners() -> None:
    vae = linear_world()
    corners = [torch.randn(1, 5) for _ in range(4)]
    middle = grid(vae, CODEC, corners, 3, 3, "lerp")[4]
    torch.testing.assert_close(middle, torch.stack(reconstruct(vae, CODEC, corners)).mean(0))


def test_a_grid_that_is_none_is_refused() -> None:
    corners = [torch.randn(1, 5)] * 4
    with pytest.raises(ValueError, match=r"at least 2 rows and 2 columns .* got 1x5"):
        grid(linear_world(), CODEC, corners, 1, 5)
    with pytest.raises(ValueError, match="a grid has four corners, got 3 items"):
        grid(linear_world(), CODEC, corners[:3], 3, 3)


class PixelEncoder(Encoder):
    """The posterior's mean is what the encoder sees."""

    def forward(self, x: torch.Tensor) -> DiagonalGaussian:
        return DiagonalGaussian(x.flatten(1).float(), x.flatten(1).float())


def test_each_window_is_binarized_by_a_mask_of_its_own_in_any_company() -> None:
    world, codec = linear_world(), PixelCodec((1, 32, 32), binarize=True)
    vae = VAE(PixelEncoder(), world.decoder, world.prior)
    greys = [torch.full((1, 32, 32), level, dtype=torch.uint8) for level in (127, 128)]
    masks = encode(vae, codec, greys)
    assert (masks[0] != masks[1]).float().mean() > 0.4  # one mask for both would differ in 4 of 1024 pixels
    assert torch.equal(encode(vae, codec, [greys[1], greys[1], greys[0]]), masks[[1, 1, 0]])


def test_a_stream_draws_as_it_is_read_and_never_more_than_a_batch_at_once() -> None:
    vae = linear_world()
    asked: list[int] = []
    plain = vae.decoder.sample

    def spy(z: torch.Tensor, **options: Any) -> torch.Tensor:
        asked.append(len(z))
        return plain(z, **options)

    vae.decoder.sample = spy  # type: ignore[method-assign]
    assert len(list(itertools.islice(stream(vae, 10**12), 300))) == 300
    assert asked == [256, 256]
    asked.clear()
    assert len(list(stream(vae, 600))) == 600
    assert asked == [256, 256, 88]


def test_what_a_beam_looks_at_counts_as_rows() -> None:
    vae = linear_world()
    asked: list[int] = []
    plain = vae.decoder.sample

    def spy(z: torch.Tensor, **options: Any) -> torch.Tensor:
        asked.append(len(z))
        return plain(z, **options)

    vae.decoder.sample = spy  # type: ignore[method-assign]
    decode(vae, torch.randn(100, 3), Beam(10))
    assert asked == [25, 25, 25, 25]


def test_the_seed_alone_decides_a_stream() -> None:
    vae = linear_world()
    draws = [torch.stack(list(stream(vae, 600, generator=torch.Generator().manual_seed(seed)))) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    torch.testing.assert_close(draws[0][:256], draws[1][:256])


def test_what_is_refused_is_drawn_again_but_not_for_ever() -> None:
    vae, seen = linear_world(), 0

    def every_third(window: torch.Tensor) -> bool:
        nonlocal seen
        seen += 1
        return seen % 3 == 0

    assert len(list(stream(vae, 500, keep=every_third))) == 500
    assert 1500 <= seen < 1500 + 256
    seen = 0

    def none(window: torch.Tensor) -> bool:
        nonlocal seen
        seen += 1
        return False

    assert list(stream(vae, 70, keep=none)) == []
    assert seen == 700
    with pytest.raises(ValueError, match="n must be positive, got 0"):
        stream(vae, 0)


def test_a_sieve_passes_each_window_once_and_none_that_is_known() -> None:
    a, b, c = (torch.full((1, 5), float(number)) for number in range(3))
    sieve = Sieve(CODEC, unique=True, known=[a])
    assert [sieve(window) for window in (a, b, b, c, a)] == [False, True, False, True, False]
    assert (sieve.passed, sieve.copies, sieve.repeats) == (2, 2, 1)
    sieve = Sieve(CODEC, unique=False, known=[a])
    assert [sieve(window) for window in (a, b, b)] == [False, True, True]


def test_a_sentence_is_the_same_however_it_is_cut(get_world: Callable[[str], World]) -> None:
    tokenizer = load_codec(get_world("text").root / "codec")
    assert isinstance(tokenizer, SentencePieceTokenizer)
    sentence = "the old king took the red house"
    (window,) = tokenizer.windows(sentence)
    cuts = [torch.tensor([*ids, 1]) for ids in tokenizer._processor.nbest_encode_as_ids(sentence, 5)]
    others = [cut for cut in cuts if not torch.equal(cut, window)]
    assert others
    for other in others:
        assert tokenizer.join([other]) == sentence
        assert not Sieve(tokenizer, unique=True, known=[window])(other)
    strange = torch.tensor([1])  # no text: it cannot be encoded, and is what it is
    sieve = Sieve(tokenizer, unique=True, known=[window])
    assert [sieve(strange), sieve(strange)] == [True, False]


def test_a_melody_is_the_same_with_an_end_in_silence_and_another_in_another_key() -> None:
    codec = MelodyTokenizer(bars=2)
    tune = torch.zeros(32, dtype=torch.int64)
    tune[[0, 8, 12]] = torch.tensor([40, 44, 1])
    silent, higher = tune.clone(), torch.where(tune > 1, tune + 1, tune)
    silent[20] = 1
    sieve = Sieve(codec, unique=True, known=[tune])
    assert [sieve(window) for window in (tune, silent, higher)] == [False, False, True]
