"""The diagonal Gaussian against torch.distributions, in float64."""

import jaxtyping
import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence
from torch.nn import functional as F

from seqvae.gaussian import LOG_VARIANCE_BOUND, VARIANCE_FLOOR, BatchNormalizedMean, DiagonalGaussian, GaussianHead


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


def test_a_compiled_draw_is_the_same_for_batches_of_several_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the checks of shapes cannot be traced

    def draw(mean: Tensor) -> Tensor:
        torch.manual_seed(0)
        return DiagonalGaussian(mean, mean).rsample(2)

    compiled = torch.compile(draw, backend="eager")
    for size in (4, 3, 5):  # the second size makes the first axis one of any length
        torch.testing.assert_close(compiled(torch.ones(size, 6)), draw(torch.ones(size, 6)), rtol=0, atol=0)


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


@pytest.mark.parametrize("gamma", [0.3, 0.7, 1.5])
@pytest.mark.parametrize("rows", [2, 3, 64])
def test_normalised_means_keep_the_batchs_mean_kl_above_a_bound(gamma: float, rows: int) -> None:
    torch.manual_seed(0)
    head, features = GaussianHead(5, 4, gamma).double(), 1e-3 * torch.randn(rows, 5).double()
    assert isinstance(head.normalize, BatchNormalizedMean)
    torch.nn.init.normal_(head.normalize.shift)
    variance = head.mean(features).var(0, correction=0)
    held = gamma**2 * variance / (variance + VARIANCE_FLOOR)
    # Zhu et al. (2020), eq. 6: E[mean^2] = gamma^2 + shift^2, and what the variance costs is never negative
    posterior = head(features)
    cost_of_variance = 0.5 * (posterior.log_variance.exp() - 1 - posterior.log_variance)
    exact = 0.5 * (held + head.normalize.shift.square()).sum() + cost_of_variance.sum(1).mean()
    kl = posterior.kl_to_standard_normal().sum(1).mean()
    torch.testing.assert_close(kl, exact, rtol=1e-12, atol=0.0)
    assert kl > 0.5 * held.sum()
    assert GaussianHead(5, 4)(features.float()).kl_to_standard_normal().mean() < kl  # it would be anything otherwise


def test_draws_without_noise_are_the_means() -> None:
    posterior = DiagonalGaussian(torch.randn(5, 3), torch.randn(5, 3))
    assert torch.equal(posterior.without_noise().rsample(4), posterior.mean.expand(4, -1, -1))
    assert not torch.equal(posterior.rsample(4), posterior.mean.expand(4, -1, -1))


def test_the_bound_is_reached_by_a_posterior_that_has_only_normalised_means() -> None:
    head = GaussianHead(5, 4, 0.6)
    for parameter in (head.log_variance.weight, head.log_variance.bias):
        torch.nn.init.zeros_(parameter)
    posterior = head(10 * torch.randn(256, 5))
    assert posterior.kl_to_standard_normal().sum(1).mean().item() == pytest.approx(4 * 0.6**2 / 2, rel=1e-4)


def test_normalised_means_and_their_gradients_are_those_of_torchs_batch_norm() -> None:
    torch.manual_seed(0)
    ours, x, y = BatchNormalizedMean(3, 0.6).double(), torch.randn(7, 3).double(), torch.randn(7, 3).double()
    mean, variance = torch.zeros(3).double(), torch.ones(3).double()
    for training in (True, True, False):
        ours.train(training)
        theirs = x.clone().requires_grad_()
        mine = x.clone().requires_grad_()
        scale = torch.full((3,), 0.6).double()
        expected = F.batch_norm(theirs, mean, variance, scale, ours.shift, training)
        torch.testing.assert_close(ours(mine), expected)
        (ours(mine) * y).sum().backward()
        (expected * y).sum().backward()
        torch.testing.assert_close(mine.grad, theirs.grad)
        # torch follows the unbiased variance, we that which normalises
        mean, variance = ours.running_mean.clone(), ours.running_variance.clone()


def test_a_single_row_is_normalised_by_what_the_batches_had() -> None:
    normalize = BatchNormalizedMean(2, 0.6)
    center, spread = torch.tensor([3.0, -2.0]), torch.tensor([2.0, 0.5])
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        normalize(center + spread * torch.randn(512, 2, generator=generator))
    before = normalize.running_mean.clone()
    row = center + spread
    torch.testing.assert_close(normalize(row.unsqueeze(0))[0], torch.full((2,), 0.6), atol=0.03, rtol=0.0)
    assert torch.equal(normalize.running_mean, before)
    alone = normalize.eval()(row.unsqueeze(0))
    torch.testing.assert_close(normalize(torch.stack([row, 5 * row]))[:1], alone)  # beside whatever it is seen
    assert torch.equal(normalize.running_mean, before)


def test_a_batch_that_is_not_finite_leaves_nothing_in_the_statistics() -> None:
    normalize = BatchNormalizedMean(2, 0.6)
    assert not normalize(torch.tensor([[1.0, torch.nan], [3.0, 1.0]])).isfinite().all()
    torch.testing.assert_close(normalize.running_mean, torch.tensor([0.2, 0.0]))
    assert normalize.running_variance.isfinite().all()
