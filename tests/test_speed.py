"""What the measurements of speed count and time is what they say."""

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import record_function
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import speed
from benchmarks.speed import counting, forward_multiply_adds
from benchmarks.timing import REST, sampling_speeds, where_time_goes
from seqvae.models import conv
from seqvae.priors import StandardNormal, VampPrior
from seqvae.vae import VAE
from tests.helpers.worlds import World

GetWorld = Callable[[str], World]


@pytest.mark.parametrize(
    ("layer", "by_hand"),
    [
        # 2 pictures of 6x4 pixels in 3 channels; each of 5 x 3x2 sums is over 3 x 3x3 products
        (nn.Conv2d(3, 5, 3, stride=2, padding=1), 2 * (5 * 3 * 2) * (3 * 3 * 3)),
        (nn.Conv2d(3, 6, 1, groups=3), 2 * (6 * 6 * 4) * 1),
        # each of 3 x 6x4 pixels is spread over 5 x 4x4
        (nn.ConvTranspose2d(3, 5, 4, stride=2, padding=1), 2 * (3 * 6 * 4) * (5 * 4 * 4)),
        (nn.ConvTranspose2d(3, 5, 2, stride=2), 2 * (3 * 6 * 4) * (5 * 2 * 2)),
    ],
)
def test_the_multiply_adds_of_a_convolution_are_those_counted_by_hand_and_by_torch(
    layer: nn.Module, by_hand: int
) -> None:
    with counting(layer) as counts, FlopCounterMode(display=False) as torchs:
        layer(torch.randn(2, 3, 6, 4))
    assert sum(counts) == by_hand
    assert torchs.get_total_flops() == 2 * by_hand


def test_the_multiply_adds_of_an_image_vae_are_torchs_and_a_batch_encodes_the_pictures_of_a_vamp_prior_once() -> None:
    encoder, decoder = conv(image_shape=(1, 8, 8), levels=2, latent_dim=3, width=4, features=8, patches=True)
    x = torch.zeros(6, 1, 8, 8, dtype=torch.uint8)
    plain = forward_multiply_adds(VAE(encoder, decoder, StandardNormal(3)), [x])
    with FlopCounterMode(display=False) as both:
        decoder(encoder(x).mean)
    assert plain == both.get_total_flops() / 2 / 6
    with FlopCounterMode(display=False) as encoding:
        encoder(x[:1])
    vamp = VAE(encoder, decoder, VampPrior(3, components=4, image_shape=(1, 8, 8)))
    for batch in (x, x[:2]):
        shared = 4 * encoding.get_total_flops() / 2 / len(batch)
        assert forward_multiply_adds(vamp, [batch]) == pytest.approx(plain + shared)


def test_what_happens_in_a_region_and_its_gradient_belong_to_the_region() -> None:
    weight, parts = (
        torch.randn(64, 64, requires_grad=True),
        {"products": ["matmul", "mm"], "likelihood": ["likelihood"]},
    )

    def inside(x: Tensor) -> None:
        with record_function("likelihood"):
            nats = (x @ weight).sum()
        nats.backward()

    def outside(x: Tensor) -> None:
        product = x @ weight
        with record_function("likelihood"):
            nats = product.sum()
        nats.backward()

    xs = [torch.randn(256, 64)] * 3
    found, other = where_time_goes(inside, xs, parts), where_time_goes(outside, xs, parts)
    assert found["products"] == 0 < other["products"]
    assert found["likelihood"] > other["likelihood"] > 0
    for shares in (found, other):
        assert list(shares) == ["products", "likelihood", REST]
        assert sum(shares.values()) == pytest.approx(1.0)


def test_the_time_that_batches_take_is_that_of_the_data() -> None:
    def slow(rows: list[Tensor]) -> Tensor:
        time.sleep(0.05)
        return torch.stack(rows)

    batches: DataLoader[Tensor] = DataLoader([torch.ones(3)] * 4, batch_size=2, collate_fn=slow)  # type: ignore[arg-type]
    shares = where_time_goes(lambda x: None, batches, {"data": ["enumerate(DataLoader)"]})
    assert shares["data"] > 0.9


def test_the_speed_of_sampling_is_items_over_seconds() -> None:
    def draw(batch: int) -> int:
        time.sleep(0.02)
        return 7 * batch

    for batch, per_second, tokens in sampling_speeds(draw, seconds=0.0):
        assert 0 < per_second <= batch / 0.02
        assert tokens == 7


@pytest.mark.parametrize("experiment", ["fashion", "text"])
def test_an_experiment_has_a_row_and_one_of_pictures_the_parts_of_a_step_and_the_speed_of_sampling(
    experiment: str, get_world: GetWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "gemm_peak", lambda: 10.0)
    found = speed.measure(experiment, 2 * speed.LOG_EVERY, get_world(experiment).overrides[1:], seconds=0.0)
    assert found.row.split()[0] == experiment
    assert float(found.row.split()[1].replace(",", "")) > 0
    if experiment == "text":
        assert not found.shares
        assert not found.sampled
        return
    assert list(found.shares) == [*speed.PARTS, REST]
    assert min(found.shares.values()) > 0
    assert sum(found.shares.values()) == pytest.approx(1.0)
    assert list(found.sampled) == [1, 64, 1024]
    assert min(found.sampled.values()) > 0
