"""The diagonal Gaussian against torch.distributions, in float64."""

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from seqvae.gaussian import LOG_VARIANCE_BOUND, DiagonalGaussian, GaussianHead


@pytest.fixture
def posterior() -> DiagonalGaussian:
    torch.manual_seed(0)
    return DiagonalGaussian(torch.randn(5, 3).double(), 2 * torch.randn(5, 3).double())


def test_log_prob_is_that_of_torch(posterior: DiagonalGaussian) -> None:
    oracle = Independent(Normal(posterior.mean, (0.5 * posterior.log_variance).exp()), 1)
    z = torch.randn(7, 5, 3).double()
    torch.testing.assert_close(posterior.log_prob(z), oracle.log_prob(z), rtol=1e-12, atol=1e-12)


def test_kl_is_that_of_torch_and_summed_by_nobody(posterior: DiagonalGaussian) -> None:
    oracle = kl_divergence(Normal(posterior.mean, (0.5 * posterior.log_variance).exp()), Normal(0.0, 1.0))
    kl = posterior.kl_to_standard_normal()
    assert kl.shape == (5, 3)
    torch.testing.assert_close(kl, oracle, rtol=1e-12, atol=1e-12)


def test_kl_keeps_its_digits_next_to_the_prior() -> None:
    tiny = DiagonalGaussian(torch.zeros(1, 1), torch.full((1, 1), 1e-4))
    exact = 0.5 * (1e-4**2 / 2 + 1e-4**3 / 6)
    assert tiny.kl_to_standard_normal().item() == pytest.approx(exact, rel=1e-2)  # exp(v) - 1 - v in float32: 0


def test_samples_have_the_mean_and_the_variance(posterior: DiagonalGaussian) -> None:
    z = posterior.rsample(200_000, torch.Generator().manual_seed(0))
    spread = (0.5 * posterior.log_variance).exp()
    assert ((z.mean(0) - posterior.mean) / spread).abs().max() < 0.02
    torch.testing.assert_close(z.var(0), spread.square(), rtol=0.02, atol=0.0)


def test_gradients_of_a_sample_are_the_reparameterization() -> None:
    mean = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    log_variance = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    def sample(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
        return DiagonalGaussian(mean, log_variance).rsample(2, torch.Generator().manual_seed(1))

    def kl(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
        return DiagonalGaussian(mean, log_variance).kl_to_standard_normal()

    assert torch.autograd.gradcheck(sample, (mean, log_variance))
    assert torch.autograd.gradcheck(kl, (mean, log_variance))


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e8])
def test_the_head_bounds_the_log_variance_softly_whatever_comes_in(scale: float) -> None:
    head = GaussianHead(4, 2)
    posterior = head(scale * torch.randn(16, 4))
    assert posterior.log_variance.abs().max() <= LOG_VARIANCE_BOUND
    assert torch.isfinite(posterior.kl_to_standard_normal()[posterior.mean.abs() < 1e10]).all()


def test_the_head_stays_in_float32_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        posterior = GaussianHead(4, 2)(torch.randn(3, 4, dtype=torch.bfloat16))
    assert posterior.mean.dtype == posterior.log_variance.dtype == torch.float32
