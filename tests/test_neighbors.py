"""Variations by the statistics of their noise, neighbours by brute force."""

import pytest
import torch
from torch import nn

from seqvae.gaussian import DiagonalGaussian
from seqvae.latent import encode, nearest, posterior, reconstruct, similar
from seqvae.priors import MixtureDistribution, Prior
from tests.helpers.vectors import RowCodec, linear_world

CODEC = RowCodec()
VAE = linear_world()


class WidePrior(Prior):
    """Two components, as far apart in the last dimension as makes its deviation 5."""

    def forward(self, encoder: nn.Module) -> MixtureDistribution:
        return MixtureDistribution(
            torch.zeros(2),
            DiagonalGaussian(
                torch.tensor([[0.0, 1.0, 4.0], [0.0, 1.0, -4.0]]), torch.tensor([1.0, 4.0, 9.0]).log().expand(2, 3)
            ),
        )


@pytest.mark.parametrize(
    ("prior", "noise", "scale"),
    [
        (VAE.prior, "prior", [1.0, 1.0, 1.0]),
        (WidePrior(3), "prior", [1.0, 2.0, 5.0]),
        (WidePrior(3), "posterior", None),
    ],
)
def test_variations_spread_as_far_as_the_strength_says(prior: Prior, noise: str, scale: list[float] | None) -> None:
    item, vae = torch.randn(1, 5), linear_world()
    vae.prior = prior
    made = torch.stack(similar(vae, CODEC, item, 20_000, 0.5, noise, generator=torch.Generator().manual_seed(0)))
    q = posterior(vae, CODEC, CODEC.windows(item))
    wanted = torch.exp(0.5 * q.log_variance[0]) if scale is None else torch.tensor(scale)
    weight = vae.decoder.get_parameter("weight").detach()
    expected = weight @ (0.5 * wanted).square().diag() @ weight.T
    torch.testing.assert_close(made[:, 0].T.cov(), expected, atol=0.02, rtol=0.03)
    torch.testing.assert_close(made.mean(0), reconstruct(vae, CODEC, [item])[0], atol=0.05, rtol=0.0)


def test_strength_zero_is_the_reconstruction() -> None:
    item = torch.randn(2, 5)
    for made in similar(VAE, CODEC, item, 3, 0.0):
        torch.testing.assert_close(made, reconstruct(VAE, CODEC, [item])[0])


def test_windows_of_an_item_vary_by_themselves_and_the_seed_decides() -> None:
    item = torch.randn(1, 5).expand(2, -1)
    draws = [similar(VAE, CODEC, item, 4, 1.0, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert all(not torch.equal(one[0], one[1]) for one in draws[0])
    assert torch.equal(torch.stack(draws[0]), torch.stack(draws[1]))
    assert not torch.equal(torch.stack(draws[0]), torch.stack(draws[2]))


@pytest.mark.parametrize(
    ("n", "strength", "noise", "message"),
    [
        (0, 0.3, "prior", "n must be positive, got 0"),
        (2, -0.1, "prior", "strength must be 0 or more, got -0.1"),
        (2, float("nan"), "prior", "strength must be 0 or more, got nan"),
        (2, 0.3, "loud", "noise must be one of prior, posterior, got 'loud'"),
    ],
)
def test_a_value_out_of_its_range_is_named(n: int, strength: float, noise: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        similar(VAE, CODEC, torch.randn(1, 5), n, strength, noise)


@pytest.mark.parametrize("chunk", [1, 7, 100])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_the_nearest_are_those_of_a_plain_sort(metric: str, chunk: int) -> None:
    queries, corpus = torch.randn(6, 4, dtype=torch.float64), torch.randn(50, 4, dtype=torch.float64)
    for k in (1, 5, 50):
        found = nearest(queries, corpus, k, metric, chunk)
        for query, distances, places in zip(queries, found.distance, found.index, strict=True):
            if metric == "euclidean":
                every = (corpus - query).square().sum(1).sqrt()
            else:
                every = 1 - torch.nn.functional.cosine_similarity(corpus, query[None])
            expected = every.sort()
            assert torch.equal(places, expected.indices[:k])
            torch.testing.assert_close(distances, expected.values[:k])


def test_an_item_is_its_own_nearest_at_distance_zero() -> None:
    corpus = 100 + torch.randn(30_000, 3)  # far from the origin, where differences of products have no digits left
    found = nearest(corpus[:50], corpus, 1)
    assert torch.equal(found.index[:, 0], torch.arange(50))
    assert not found.distance.any()


def test_cosine_distance_ignores_lengths() -> None:
    query, corpus = torch.randn(1, 3), torch.randn(9, 3)
    plain, scaled = (nearest(query, corpus * factor, 9, "cosine") for factor in (1.0, 7.0))
    assert torch.equal(plain.index, scaled.index)
    assert not torch.equal(nearest(query, corpus, 9).distance, nearest(query, corpus * 7, 9).distance)


def test_a_wrong_k_or_metric_is_named() -> None:
    rows = encode(VAE, CODEC, [torch.randn(1, 5) for _ in range(3)])
    with pytest.raises(ValueError, match="k must be between 1 and the 3 rows of the corpus, got 4"):
        nearest(rows, rows, 4)
    with pytest.raises(ValueError, match="metric must be one of euclidean, cosine, got 'taxi'"):
        nearest(rows, rows, 1, "taxi")
