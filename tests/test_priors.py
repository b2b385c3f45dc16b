"""Priors against torch.distributions, and the ELBO's terms where the KL has no closed form."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, MixtureSameFamily, Normal

from seqvae.evaluation import importance_weighted_bound, score_examples
from seqvae.models import DiscretizedLogistic, conv
from seqvae.priors import MixtureOfGaussians, StandardNormal, VampPrior
from seqvae.vae import VAE
from tests.helpers.linear_gaussian import linear_gaussian

SMALL: dict[str, Any] = {"levels": 256, "latent_dim": 2, "width": 4, "features": 8}


def oracle(logits: Tensor, mean: Tensor, log_variance: Tensor) -> Distribution:
    parts = Independent(Normal(mean, torch.exp(0.5 * log_variance)), 1)
    return MixtureSameFamily(Categorical(logits=logits), parts)


def mixture(components: int = 5, latent_dim: int = 3) -> tuple[MixtureOfGaussians, Distribution]:
    """Return a prior of random components, and the same mixture from torch; in float64."""
    torch.manual_seed(0)
    prior = MixtureOfGaussians(latent_dim, components).double()
    for parameter in prior.parameters():
        nn.init.normal_(parameter)
    log_variance = 8 * torch.tanh(prior.log_variance / 8)
    return prior, oracle(prior.logits.detach(), prior.mean.detach(), log_variance.detach())


def vamp(image_shape: tuple[int, int, int] = (1, 6, 5)) -> tuple[VampPrior, nn.Module, Distribution]:
    """Return a prior, an encoder of 256 levels, and the mixture of the posteriors of the learned pictures."""
    torch.manual_seed(0)
    encoder, _ = conv(image_shape=image_shape, likelihood=DiscretizedLogistic(), **SMALL)
    for parameter in encoder.parameters():
        if not parameter.any():
            nn.init.normal_(
                parameter, std=0.1
            )  # blocks start as the identity, which teaches nothing before its last layer
    prior = VampPrior(2, components=4, image_shape=image_shape)
    posterior = encoder.double()(torch.sigmoid(prior.double().pictures))
    return prior, encoder, oracle(torch.zeros(4).double(), posterior.mean, posterior.log_variance)


def test_the_mixtures_density_is_torchs() -> None:
    prior, truth = mixture()
    z = 2 * torch.randn(7, 11, 3).double()
    torch.testing.assert_close(prior(nn.Identity()).log_prob(z), truth.log_prob(z))


def test_the_density_keeps_its_digits_in_float32_where_variances_are_small() -> None:
    prior, _ = mixture(latent_dim=40)
    with torch.no_grad():
        prior.mean.mul_(3.0)
        prior.log_variance.fill_(-6.0)
    exact = prior(nn.Identity())
    z = exact.sample(100, torch.Generator().manual_seed(0))
    rounded = prior.float()(nn.Identity()).log_prob(z.float())
    assert rounded.dtype == torch.float32
    # what float32 makes of the inputs is not the density's fault
    again = oracle(prior.logits.double(), prior.mean.double(), 8 * torch.tanh(prior.log_variance.double() / 8))
    torch.testing.assert_close(rounded.double(), again.log_prob(z.float().double()), rtol=1e-5, atol=1e-4)


def test_the_vamp_priors_density_is_the_mean_of_the_posteriors_of_its_pictures() -> None:
    prior, encoder, truth = vamp()
    z = torch.randn(7, 11, 2).double()
    torch.testing.assert_close(prior(encoder).log_prob(z), truth.log_prob(z))


def test_draws_have_the_mixtures_moments() -> None:
    prior, truth = mixture()
    drawn = prior(nn.Identity()).sample(200_000, torch.Generator().manual_seed(0))
    assert drawn.shape == (200_000, 3)
    torch.testing.assert_close(drawn.mean(0), truth.mean, atol=0.02, rtol=0.0)
    torch.testing.assert_close(drawn.var(0), truth.variance, atol=0.05, rtol=0.0)


def test_draws_are_a_function_of_the_generator_alone() -> None:
    prior, _ = mixture()
    first, again = (prior(nn.Identity()).sample(5, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again)


def test_a_component_far_from_a_latent_leaves_its_gradient_finite() -> None:
    prior, _ = mixture()
    z = torch.full((1, 3), 1e4, dtype=torch.float64, requires_grad=True)
    prior(nn.Identity()).log_prob(z).sum().backward()
    for tensor in (z, *prior.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


def test_a_mixture_of_one_standard_normal_gives_the_standard_normals_elbo() -> None:
    vae, evidence = linear_gaussian(error=0.4)
    x = evidence.sample((3,))
    standard = vae.terms(x)
    prior = MixtureOfGaussians(2, components=1).double()
    nn.init.zeros_(prior.mean)
    vae.prior = prior
    terms = vae.terms(x, 100_000, generator=torch.Generator().manual_seed(0))
    assert terms.kl is None
    assert standard.kl is not None
    torch.testing.assert_close(terms.total_kl, standard.kl.sum(-1), atol=0.02, rtol=0.0)
    torch.testing.assert_close(terms.elbo, terms.log_weights.mean(0))


def test_the_bounds_under_a_mixture_approach_its_exact_evidence() -> None:
    """p(x) under a mixture of two unit Gaussians is a mixture of two of the model's own evidences."""
    vae, evidence = linear_gaussian(error=0.4)
    prior = MixtureOfGaussians(2, components=2).double()
    with torch.no_grad():
        prior.mean.copy_(torch.tensor([[1.0, -0.5], [-1.0, 0.5]]))
        prior.logits.copy_(torch.tensor([0.7, -0.3]))
    vae.prior = prior
    x = evidence.sample((400,))
    shifts = (vae.decoder.predict(prior.mean, prior.mean) - vae.decoder.bias).detach()  # type: ignore[operator]
    parts = torch.stack([evidence.log_prob(x - shift) for shift in shifts], -1)
    exact = (parts + prior.logits.detach().log_softmax(0)).logsumexp(-1)
    elbo = score_examples(vae, [x], generator=torch.Generator().manual_seed(0)).elbo
    estimate = importance_weighted_bound(vae, x, 1000, torch.Generator().manual_seed(0)).log_prob
    assert elbo.mean() < estimate.mean() < exact.mean() + 0.01
    torch.testing.assert_close(estimate, exact, atol=0.5, rtol=0.0)
    assert float(estimate.mean()) == pytest.approx(float(exact.mean()), abs=0.01)


def test_a_vamp_prior_teaches_its_pictures_and_the_encoder_and_owns_neither_the_encoder_nor_a_copy() -> None:
    prior, encoder, _ = vamp()
    assert [name for name, _ in prior.named_parameters()] == ["pictures"]
    assert list(prior.state_dict()) == ["pictures"]
    prior(encoder).log_prob(torch.randn(8, 2).double()).sum().backward()
    for name, parameter in [*prior.named_parameters(), *encoder.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_an_evaluation_encodes_the_learned_pictures_once_a_batch() -> None:
    prior, encoder, _ = vamp()
    _, decoder = conv(image_shape=(1, 6, 5), likelihood=DiscretizedLogistic(), **SMALL)
    vae = VAE(encoder, decoder.double(), prior)  # type: ignore[arg-type]
    seen: list[int] = []
    encoder.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    x = torch.randint(0, 256, (3, 1, 6, 5), dtype=torch.uint8)
    importance_weighted_bound(vae, x, samples=40, rows=6)
    assert sorted(seen) == [3, 4]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (MixtureOfGaussians, {"components": 0}, "components must be a positive int, got 0"),
        (VampPrior, {"components": "many", "image_shape": (1, 4, 4)}, "components must be a positive int, got 'many'"),
        (VampPrior, {"from_data": 1, "image_shape": (1, 4, 4)}, "from_data must be true or false, got 1"),
        (VampPrior, {}, "tokens cannot be learned like that; use prior=mixture"),
    ],
)
def test_what_makes_no_sense_is_refused(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(2, **options)


def test_a_walk_of_the_standard_normal_stays_standard_normal_and_forgets_as_its_drift_says() -> None:
    law = StandardNormal(2)(nn.Identity())
    generator = torch.Generator().manual_seed(0)
    start = law.sample(200_000, generator)
    for drift in (0.0, 0.5, 1.0):
        z = law.walk(start, drift, generator)
        torch.testing.assert_close(torch.cov(z.T), torch.eye(2), atol=0.02, rtol=0.0)
        assert float((z * start).mean()) == pytest.approx((1 - drift**2) ** 0.5, abs=0.02)


def test_a_walk_leaves_the_mixture_as_it_is() -> None:
    prior, truth = mixture()
    generator = torch.Generator().manual_seed(0)
    law = prior(nn.Identity())
    z = law.walk(law.sample(200_000, generator), 0.7, generator)
    torch.testing.assert_close(z.mean(0), truth.mean, atol=0.02, rtol=0.0)
    torch.testing.assert_close(z.var(0), truth.variance, atol=0.05, rtol=0.0)


@pytest.mark.parametrize("drift", [-0.1, 1.1, float("nan")])
def test_a_drift_beyond_its_bounds_is_refused(drift: float) -> None:
    with pytest.raises(ValueError, match="drift must be between 0"):
        StandardNormal(2)(nn.Identity()).walk(torch.zeros(1, 2), drift)
