"""Evaluation against a model whose evidence and mutual information are known."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from seqvae.evaluation import (
    active_units,
    importance_weighted_bound,
    mean_and_error,
    mutual_information,
    score_examples,
    use_of_dimensions,
)
from seqvae.gaussian import DiagonalGaussian
from seqvae.models import lstm
from seqvae.priors import StandardNormal
from seqvae.vae import VAE
from tests.helpers.linear_gaussian import linear_gaussian


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def watch(part: Any, name: str) -> list[int]:
    """Return the list to which every call of a method will add how many rows it got."""
    calls: list[int] = []
    method = getattr(part, name)

    def watched(x: torch.Tensor, *more: torch.Tensor) -> Any:
        calls.append(len(x))
        return method(x, *more)

    object.__setattr__(part, name, watched)
    return calls


def test_elbo_below_iw_bound_below_evidence() -> None:
    vae, evidence = linear_gaussian(error=0.5)
    x = evidence.sample((500,))
    elbo = score_examples(vae, [x], generator=seeded()).elbo.mean()
    bounds = [importance_weighted_bound(vae, x, k, seeded()).log_prob.mean() for k in (1, 10, 1000)]
    assert elbo < bounds[1] < bounds[2] < evidence.log_prob(x).mean() + 0.01  # the noise of 500 x 1000 weights
    assert bounds[2] == pytest.approx(float(evidence.log_prob(x).mean()), abs=0.01)


def test_the_bound_is_the_evidence_with_one_sample_when_the_posterior_is_exact() -> None:
    vae, evidence = linear_gaussian()
    x = evidence.sample((8,))
    estimate = importance_weighted_bound(vae, x, 1, seeded())
    torch.testing.assert_close(estimate.log_prob, evidence.log_prob(x), rtol=1e-9, atol=1e-9)
    many = importance_weighted_bound(vae, x, 50, seeded())
    torch.testing.assert_close(many.effective_samples, torch.full((8,), 50.0).double())


@pytest.mark.parametrize("rows", [8, 24, 10_000])
def test_the_bound_is_the_log_mean_weight_however_it_is_chunked(rows: int) -> None:
    vae, evidence = linear_gaussian(error=0.5)
    x = evidence.sample((8,))
    posterior = vae.encoder(x)
    generator, chunk = seeded(), max(1, rows // 8)
    drawn = [min(chunk, 30 - start) for start in range(0, 30, chunk)]
    weights = torch.cat([vae.terms_at(x, posterior, posterior.rsample(n, generator)).log_weights for n in drawn])
    estimate = importance_weighted_bound(vae, x, 30, seeded(), rows)
    torch.testing.assert_close(estimate.log_prob, weights.logsumexp(0) - math.log(30))
    shares = weights.softmax(0)
    torch.testing.assert_close(estimate.effective_samples, 1 / shares.square().sum(0))


@pytest.mark.parametrize(("rows", "max_values", "most"), [(24, None, 24), (24, 30, 10), (1000, 30, 10), (24, 1, 8)])
def test_the_decoder_never_has_more_rows_than_the_budget_gives(rows: int, max_values: int | None, most: int) -> None:
    vae, evidence = linear_gaussian(error=0.5, observed=3)
    x = evidence.sample((8,))  # three values a row
    decoded, encoded = watch(vae.decoder, "log_prob"), watch(vae.encoder, "forward")
    scores = score_examples(vae, [x], importance_samples=30, generator=seeded(), rows=rows, max_values=max_values)
    assert max(decoded[1:]) == 8 * (most // 8)  # the first is the ELBO's
    assert sum(decoded) == 8 * 31
    assert encoded == [8]  # once, for all of it
    assert scores.iw_bound is not None


def test_without_a_latent_the_bound_is_the_elbo_and_takes_no_samples() -> None:
    encoder, decoder = lstm(vocab_size=7, max_length=5, end_id=1, hidden_dim=4, embedding_dim=4, language_model=True)
    vae = VAE(encoder, decoder, StandardNormal(0))
    x = torch.tensor([[2, 3, 1], [4, 4, 1]])
    decoded = watch(decoder, "log_prob")
    scores = score_examples(vae, [x], importance_samples=500)
    assert decoded == [2]
    assert scores.effective_samples is None
    assert scores.iw_bound is not None
    torch.testing.assert_close(scores.iw_bound, decoder.log_prob(x, torch.zeros(2, 0)).double())
    assert torch.equal(scores.iw_bound, scores.elbo)


def test_scores_do_not_depend_on_how_examples_are_batched() -> None:
    vae, evidence = linear_gaussian(error=0.3)
    x = evidence.sample((10,))
    whole = score_examples(vae, [x], elbo_samples=4000, generator=seeded(1))
    ragged = score_examples(vae, [x[:7], x[7:]], elbo_samples=4000, generator=seeded(2))
    assert len(ragged.elbo) == 10
    torch.testing.assert_close(whole.kl, ragged.kl)
    assert mean_and_error(whole.elbo)[0] == pytest.approx(mean_and_error(ragged.elbo)[0], abs=0.03)


def test_active_units_count_means_that_vary() -> None:
    mean = torch.zeros(100, 3)
    mean[:, 0] = torch.linspace(-1, 1, 100)
    mean[:, 1] = 5.0 + 0.01 * torch.linspace(-1, 1, 100)
    assert active_units(DiagonalGaussian(mean, torch.zeros(100, 3))) == 1


def test_a_dimension_is_used_for_its_kl_and_without_noise_for_the_variance_of_its_means() -> None:
    posterior = DiagonalGaussian(torch.randn(50, 3), torch.randn(50, 3))
    prior = StandardNormal(3)(nn.Identity())
    use, points = (use_of_dimensions(one, prior) for one in (posterior, posterior.without_noise()))
    torch.testing.assert_close(use.amount, posterior.kl_to_standard_normal().mean(0))
    torch.testing.assert_close(points.amount, posterior.mean.var(0, correction=0))
    assert use.label(1) == f"z1, KL {use.amount[1]:.2f} nats"
    assert points.label(2) == f"z2, variance {points.amount[2]:.2f}"


def test_mutual_information_of_a_linear_gaussian_is_known() -> None:
    vae, evidence = linear_gaussian()
    x = evidence.sample((4000,))
    precision = (-vae.encoder(x[:1]).log_variance.detach()).exp()
    exact = float(0.5 * precision.log().sum())  # I(x; z) = H(z) - H(z|x) with p(z) = N(0, I)
    with torch.no_grad():
        assert mutual_information(vae.encoder(x), seeded(), pairs_at_once=999 * 2000) == pytest.approx(exact, abs=0.1)


def test_mutual_information_is_nothing_when_collapsed_and_capped_when_apart() -> None:
    collapsed = DiagonalGaussian(torch.zeros(200, 4), torch.zeros(200, 4))
    assert mutual_information(collapsed, seeded()) == pytest.approx(0.0, abs=1e-9)
    apart = DiagonalGaussian(100 * torch.randn(200, 4), torch.zeros(200, 4))
    assert mutual_information(apart, seeded()) == pytest.approx(math.log(200), abs=1e-6)


def test_standard_error_is_that_of_the_mean() -> None:
    mean, error = mean_and_error(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64))
    assert mean == 2.5
    assert error == pytest.approx((5 / 3) ** 0.5 / 2)


def test_no_samples_and_no_batches_are_refused() -> None:
    vae, evidence = linear_gaussian()
    with pytest.raises(ValueError, match="importance samples and rows must be positive, got 0"):
        importance_weighted_bound(vae, evidence.sample((2,)), 0)
    with pytest.raises(ValueError, match="nothing to evaluate"):
        score_examples(vae, [])
