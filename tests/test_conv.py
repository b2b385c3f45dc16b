"""The convolutional VAE and its likelihood."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli as TorchBernoulli
from torch.nn import functional as F

from seqvae.models import Bernoulli, conv
from seqvae.models.conv import Patches
from seqvae.models.decoding import Temperature
from seqvae.models.layers import ResidualBlock
from seqvae.priors import StandardNormal
from seqvae.vae import VAE

SMALL: dict[str, Any] = {"levels": 2, "latent_dim": 3, "width": 4, "features": 8}
NETWORKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gated": {"gated": True},
    "bottleneck": {"bottleneck": 2, "blocks": 2},
    "patches": {"patches": True, "bottleneck": 2, "gated": True},
}
every_network = pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 9, 14), (3, 17, 5), (1, 4, 64)])
@pytest.mark.parametrize("stages", [1, 2])
@every_network
def test_any_size_and_channels_come_back_in_shape(
    shape: tuple[int, int, int], stages: int, options: dict[str, Any]
) -> None:
    encoder, decoder = conv(image_shape=shape, stages=stages, **SMALL, **options)
    x = torch.randint(0, 2, (2, *shape), dtype=torch.uint8)
    posterior = encoder(x)
    assert posterior.mean.shape == (2, 3)
    assert decoder.sample(posterior.mean).shape == x.shape
    assert decoder.log_prob(x, posterior.mean).shape == (2,)


def test_log_prob_is_torchs_bernoulli_summed_over_the_picture() -> None:
    _, decoder = conv(image_shape=(3, 6, 5), **SMALL)
    decoder.double()
    x, z = torch.randint(0, 2, (4, 3, 6, 5), dtype=torch.uint8), torch.randn(4, 3).double()
    oracle = TorchBernoulli(logits=decoder(z)).log_prob(x.double()).sum((1, 2, 3))
    torch.testing.assert_close(decoder.log_prob(x, z), oracle)


@every_network
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_the_likelihood_sums_to_one_over_every_picture(
    options: dict[str, Any], dtype: torch.dtype, error: float
) -> None:
    _, decoder = conv(image_shape=(1, 3, 2), stages=1, **SMALL, **options)
    every = torch.tensor(list(itertools.product((0, 1), repeat=6)), dtype=torch.uint8).view(-1, 1, 3, 2)
    total = decoder.to(dtype).log_prob(every, torch.randn(1, 3).to(dtype).expand(len(every), -1)).exp().sum()
    assert total.item() == pytest.approx(1.0, abs=error)


@every_network
def test_in_mixed_precision_the_posterior_and_the_likelihood_stay_in_float32(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    encoder, decoder = conv(image_shape=(1, 8, 8), **SMALL, **options)
    inner: set[torch.dtype] = set()
    for layer in (encoder.stages[0], decoder.upsample[0]):
        layer.register_forward_hook(lambda _, inputs, output: inner.add(output.dtype))
    x, z = torch.randint(0, 2, (4, 1, 8, 8), dtype=torch.uint8), torch.randn(4, 3)
    exact, whole = encoder(x), decoder.log_prob(x, z)
    with torch.autocast("cpu", torch.bfloat16):
        posterior, log_prob = encoder(x), decoder.log_prob(x, z)
    assert inner == {torch.float32, torch.bfloat16}  # else it would prove nothing
    for found, expected in (
        (posterior.mean, exact.mean),
        (posterior.log_variance, exact.log_variance),
        (log_prob / 64, whole / 64),  # of a pixel
    ):
        assert found.dtype == torch.float32
        assert not torch.equal(found, expected)
        torch.testing.assert_close(found, expected, atol=0.02, rtol=0.0)


@every_network
def test_what_stages_hand_on_has_its_channels_last(options: dict[str, Any]) -> None:
    encoder, decoder = conv(image_shape=(3, 8, 8), **SMALL, **options)
    layers = [*encoder.stages, *decoder.blocks, *decoder.upsample]
    found: list[bool] = []
    for layer in layers:
        layer.register_forward_hook(
            lambda _, inputs, output: found.append(output.is_contiguous(memory_format=torch.channels_last))
        )
    decoder(encoder(torch.randint(0, 2, (2, 3, 8, 8), dtype=torch.uint8)).mean)
    assert found == [True] * len(layers)
    found.clear()
    encoder.stages(torch.zeros(2, 3, 8, 8))  # of pixels whose channels come first
    assert not any(found)


def test_the_gradient_does_not_vanish_where_a_sigmoid_saturates() -> None:
    logits = torch.full((1, 1, 1, 1), 40.0, requires_grad=True)
    Bernoulli().log_prob(logits, torch.zeros(1, 1, 1, 1, dtype=torch.uint8)).sum().backward()
    assert logits.grad is not None
    assert logits.grad.item() == pytest.approx(-1.0)


def test_draws_have_the_pixels_probabilities() -> None:
    logits = torch.tensor([-2.0, 0.0, 1.0]).view(1, 3, 1, 1).expand(50_000, -1, -1, -1)
    drawn = Bernoulli().sample(logits, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean(0), torch.sigmoid(logits[0]), atol=0.01, rtol=0.0)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}


def test_sampling_gives_expected_pixels_or_draws() -> None:
    _, decoder = conv(image_shape=(1, 8, 8), **SMALL)
    z = torch.randn(2, 3)
    torch.testing.assert_close(decoder.sample(z), torch.sigmoid(decoder(z)))
    assert set(decoder.sample(z, strategy=Temperature(1.0)).unique().tolist()) == {0.0, 1.0}
    with pytest.raises(ValueError, match="str decoding is for sequences"):
        decoder.sample(z, strategy="beam")  # type: ignore[arg-type]


@every_network
def test_gradients_reach_every_parameter_once_the_blocks_have_left_the_identity(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    encoder, decoder = conv(image_shape=(1, 8, 8), **SMALL, **options)
    for parameter in [*encoder.parameters(), *decoder.parameters()]:
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    vae = VAE(encoder, decoder, StandardNormal(3))
    vae.terms(torch.randint(0, 2, (4, 1, 8, 8), dtype=torch.uint8)).elbo.sum().backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_a_patch_is_a_matrix_product_of_its_pixels_and_an_odd_size_ends_in_zeros() -> None:
    layer = Patches(3, 5).double()
    x = torch.randn(2, 3, 5, 4).double()
    filled = torch.zeros(2, 3, 6, 4).double()
    filled[:, :, :5] = x
    expected = F.conv2d(F.pixel_unshuffle(filled, 2), layer.weight.reshape(5, 12, 1, 1), layer.bias)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("bottleneck", [1, 2])
@pytest.mark.parametrize("gated", [False, True])
def test_a_block_adds_what_its_convolutions_and_its_gate_say(bottleneck: int, gated: bool) -> None:
    block = ResidualBlock(4, bottleneck, gated).double()
    x = torch.randn(2, 4, 5, 6).double()
    assert torch.equal(block(x), x)  # as it starts
    for parameter in block.last.parameters():
        nn.init.normal_(parameter)

    def convolve(layer: nn.Module, maps: Tensor) -> Tensor:
        assert isinstance(layer, nn.Conv2d)
        return F.conv2d(maps, layer.weight, layer.bias, padding=layer.weight.shape[2] // 2)

    inner = convolve(block.first, F.silu(x))
    if bottleneck > 1:
        inner = convolve(block.middle[1], F.silu(inner))  # type: ignore[index]
        assert inner.shape[1] == (4 if gated else 2)
    half = inner.shape[1] // 2
    active = inner[:, :half] * torch.sigmoid(inner[:, half:]) if gated else F.silu(inner)
    torch.testing.assert_close(block(x), x + convolve(block.last, active))


def test_width_and_depth_can_be_told_for_each_stage() -> None:
    doubled, told = (
        conv(**{"image_shape": (1, 8, 8), "stages": 2, **SMALL, "width": width, "blocks": blocks})
        for width, blocks in ((4, 3), ([4, 8], [3, 3]))
    )
    for part, same in zip(doubled, told, strict=True):
        shapes = [{name: value.shape for name, value in network.state_dict().items()} for network in (part, same)]
        assert shapes[0] == shapes[1]
    for network in conv(**{"image_shape": (1, 8, 8), "stages": 2, **SMALL, "width": [6, 4], "blocks": [1, 4]}):
        blocks = [block for block in network.modules() if isinstance(block, ResidualBlock)]
        assert sorted(block.last.out_channels for block in blocks) == [4, 4, 4, 4, 6]


@pytest.mark.parametrize(("patches", "at_full"), [(False, 2), (True, 0)])
def test_with_patches_no_convolution_works_at_full_resolution(patches: bool, at_full: int) -> None:
    _, decoder = conv(image_shape=(1, 8, 8), **SMALL, patches=patches)
    sizes: list[int] = []
    for layer in decoder.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(lambda _, inputs, output: sizes.append(output.shape[2]))
    decoder(torch.zeros(1, 3))
    assert sizes.count(8) == at_full


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_dim": "abc"}, "latent_dim must be a positive int, got 'abc'"),
        ({"stages": 4}, "stages must be at most 3 for 8x8 pixels, got 4"),
        ({"width": [4, 4, 4]}, r"width must be one number or one for each of 2 stages, got \[4, 4, 4\]"),
        ({"width": "44"}, "width must be a positive int, got '44'"),
        ({"blocks": [1, 0]}, "blocks must be a positive int, got 0"),
        ({"bottleneck": 5}, "bottleneck must be at most the narrowest stage's 4 channels, got 5"),
        ({"gated": 1}, "gated must be true or false, got 1"),
        ({"levels": 256}, "Bernoulli likelihood needs pixels of 2 levels"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        conv(**{"image_shape": (1, 8, 8), **SMALL, **options})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cpu_and_gpu_agree() -> None:
    encoder, decoder = conv(image_shape=(1, 8, 8), **SMALL)
    vae = VAE(encoder, decoder, StandardNormal(3))
    x = torch.randint(0, 2, (4, 1, 8, 8), dtype=torch.uint8)
    here = vae.terms(x, noise=False).elbo
    there = vae.cuda().terms(x.cuda(), noise=False).elbo
    torch.testing.assert_close(here, there.cpu(), rtol=1e-3, atol=1e-2)
