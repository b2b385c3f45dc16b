"""The convolutional VAE and its likelihood."""

import itertools
from typing import Any

import pytest
import torch
from torch.distributions import Bernoulli as TorchBernoulli

from seqvae.models import Bernoulli, conv
from seqvae.models.decoding import Temperature
from seqvae.priors import StandardNormal
from seqvae.vae import VAE

SMALL: dict[str, Any] = {"levels": 2, "latent_dim": 3, "width": 4, "features": 8}


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 9, 14), (3, 17, 5), (1, 4, 64)])
@pytest.mark.parametrize("stages", [1, 2])
def test_any_size_and_channels_come_back_in_shape(shape: tuple[int, int, int], stages: int) -> None:
    encoder, decoder = conv(image_shape=shape, stages=stages, **SMALL)
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


def test_the_likelihood_sums_to_one_over_every_picture() -> None:
    _, decoder = conv(image_shape=(1, 3, 2), stages=1, **SMALL)
    every = torch.tensor(list(itertools.product((0, 1), repeat=6)), dtype=torch.uint8).view(-1, 1, 3, 2)
    total = decoder.double().log_prob(every, torch.randn(1, 3).double().expand(len(every), -1)).exp().sum()
    assert total.item() == pytest.approx(1.0, abs=1e-12)


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


def test_gradients_reach_every_parameter_once_the_blocks_have_left_the_identity() -> None:
    torch.manual_seed(0)
    encoder, decoder = conv(image_shape=(1, 8, 8), **SMALL)
    for parameter in [*encoder.parameters(), *decoder.parameters()]:
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    vae = VAE(encoder, decoder, StandardNormal(3))
    vae.terms(torch.randint(0, 2, (4, 1, 8, 8), dtype=torch.uint8)).elbo.sum().backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_dim": "abc"}, "latent_dim must be a positive int, got 'abc'"),
        ({"stages": 4}, "stages must be at most 3 for 8x8 pixels, got 4"),
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
