"""The ELBO's terms against a model whose evidence is known."""

import torch
from torch.distributions import Independent, Normal

from seqvae.priors import StandardNormal
from tests.helpers.linear_gaussian import linear_gaussian


def test_elbo_equals_the_evidence_when_the_posterior_is_exact() -> None:
    vae, evidence = linear_gaussian()
    x = evidence.sample((6,))
    log_weights = vae.terms(x, samples=5).log_weights
    torch.testing.assert_close(log_weights, evidence.log_prob(x).expand(5, -1), rtol=1e-9, atol=1e-9)


def test_elbo_is_the_evidence_minus_the_posteriors_error() -> None:
    vae, evidence = linear_gaussian(error=0.4)
    x = evidence.sample((3,))
    exact, _ = linear_gaussian()
    q, p = vae.encoder(x), exact.encoder(x)
    gap = 0.5 * (
        (q.log_variance - p.log_variance).exp()
        + (q.mean - p.mean).square() * (-p.log_variance).exp()
        - 1
        - q.log_variance
        + p.log_variance
    ).sum(-1)
    elbo = vae.terms(x, 200_000, generator=torch.Generator().manual_seed(0)).elbo
    torch.testing.assert_close(elbo, evidence.log_prob(x) - gap, rtol=0.0, atol=0.02)


def test_terms_are_sums_over_dimensions_kept_for_each_example() -> None:
    vae, evidence = linear_gaussian(error=0.2)
    terms = vae.terms(evidence.sample((6,)), samples=4)
    assert terms.z.shape == (4, 6, 2)
    assert terms.log_likelihood.shape == terms.log_prior.shape == terms.log_posterior.shape == (4, 6)
    assert terms.kl is not None
    assert terms.kl.shape == (6, 2)
    torch.testing.assert_close(terms.elbo, terms.log_likelihood.mean(0) - terms.kl.sum(-1))


def test_every_sample_of_z_meets_its_own_example() -> None:
    vae, evidence = linear_gaussian(error=0.2)
    x = evidence.sample((6,))
    terms = vae.terms(x, samples=3)
    one_by_one = torch.stack([vae.decoder.log_prob(x, z) for z in terms.z])
    torch.testing.assert_close(terms.log_likelihood, one_by_one)


def test_without_noise_z_is_the_posterior_mean() -> None:
    vae, evidence = linear_gaussian(error=0.2)
    terms = vae.terms(evidence.sample((6,)), samples=2, noise=False)
    assert torch.equal(terms.z, terms.posterior.mean.expand(2, -1, -1))


def test_the_standard_normal_prior_is_that_of_torch() -> None:
    prior = StandardNormal(3).double()(torch.nn.Identity())
    z = torch.randn(4, 5, 3).double()
    oracle = Independent(Normal(torch.zeros(3).double(), 1.0), 1)
    torch.testing.assert_close(prior.log_prob(z), oracle.log_prob(z))
    drawn = prior.sample(100_000, torch.Generator().manual_seed(0))
    assert drawn.mean(0).abs().max() < 0.02
    assert (drawn.var(0) - 1).abs().max() < 0.02
