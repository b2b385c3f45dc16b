"""What a VAE is worth: ELBO, importance-weighted bound, active units, mutual information; in nats, higher is better."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from seqvae.gaussian import LOG_TWO_PI, DiagonalGaussian
from seqvae.priors import PriorDistribution
from seqvae.vae import VAE

ACTIVE_UNIT_VARIANCE = 0.01  # Burda et al. (2016), section 3


@dataclass(frozen=True)
class ImportanceEstimate:
    """The importance-weighted bound of each example, and how many samples carried its weight."""

    log_prob: Float[Tensor, " batch"]  # float64
    effective_samples: Float[Tensor, " batch"]


@dataclass(frozen=True)
class ExampleScores:
    """What an evaluation found for each example, in the order the batches came; float64 on the CPU."""

    elbo: Float[Tensor, " n"]
    log_likelihood: Float[Tensor, " n"]
    kl: Float[Tensor, " n"]
    kl_per_dimension: Float[Tensor, "n latent"] | None
    iw_bound: Float[Tensor, " n"] | None
    effective_samples: Float[Tensor, " n"] | None  # None as well where the bound is exact
    posterior: DiagonalGaussian


@torch.no_grad()
def importance_weighted_bound(
    vae: VAE,
    x: Tensor,
    samples: int,
    generator: torch.Generator | None = None,
    rows: int = 512,
    posterior: DiagonalGaussian | None = None,
    prior: PriorDistribution | None = None,
) -> ImportanceEstimate:
    """Return log (1/K sum_k p(x|z_k) p(z_k) / q(z_k|x)) of each example (Burda et al., 2016, eq. 8).

    The example is encoded once; K = `samples` are drawn in chunks of at most `rows` decoder rows and summed in
    float64. In expectation it grows with K towards log p(x): too few samples only make the number worse.
    `posterior` and `prior` are q(z|x) and p(z) where they are at hand already.

    Raises:
        ValueError: when samples or rows are not positive.
    """
    if samples < 1 or rows < 1:
        raise ValueError(f"importance samples and rows must be positive, got {samples} and {rows}")
    posterior = vae.encoder(x) if posterior is None else posterior
    prior = vae.prior(vae.encoder) if prior is None else prior
    log_sum = torch.full((len(x),), -math.inf, dtype=torch.float64)  # on the CPU: some devices have no float64
    log_sum_of_squares = log_sum.clone()
    done = 0
    while done < samples:
        chunk = min(samples - done, max(1, rows // len(x)))
        weights = vae.terms_at(x, posterior, posterior.rsample(chunk, generator), prior).log_weights.cpu().double()
        log_sum = torch.logaddexp(log_sum, weights.logsumexp(0))
        log_sum_of_squares = torch.logaddexp(log_sum_of_squares, (2 * weights).logsumexp(0))
        done += chunk
    return ImportanceEstimate(log_sum - math.log(samples), torch.exp(2 * log_sum - log_sum_of_squares))


@torch.no_grad()
def score_examples(
    vae: VAE,
    batches: Iterable[Tensor],
    *,
    importance_samples: int = 0,
    elbo_samples: int = 1,
    generator: torch.Generator | None = None,
    rows: int = 512,
    max_values: int | None = None,
) -> ExampleScores:
    """Return the scores of every example of the batches, drawn with the generator alone.

    Importance weighting decodes at most `rows` rows at once and, where it is said, so many values of x. A model
    without a latent has nothing to draw: its ELBO is log p(x), and so is its `iw_bound`, which is always there.
    """
    parts: list[dict[str, Tensor]] = []
    prior = vae.prior(vae.encoder)  # one made of posteriors takes a pass of the encoder
    for x in batches:
        posterior = vae.encoder(x)
        terms = vae.terms_at(x, posterior, posterior.rsample(elbo_samples, generator), prior)
        part = {
            "elbo": terms.elbo,
            "log_likelihood": terms.log_likelihood.mean(0),
            "kl": terms.total_kl,
            "mean": terms.posterior.mean,
            "log_variance": terms.posterior.log_variance,
        }
        if terms.kl is not None:
            part["kl_per_dimension"] = terms.kl
        if vae.latent_dim == 0:
            part["iw_bound"] = terms.elbo
        elif importance_samples:
            fitting = rows if max_values is None else min(rows, max(1, max_values // x[0].numel()))
            estimate = importance_weighted_bound(vae, x, importance_samples, generator, fitting, posterior, prior)
            part |= {"iw_bound": estimate.log_prob, "effective_samples": estimate.effective_samples}
        parts.append({name: value.cpu().double() for name, value in part.items()})
    if not parts:
        raise ValueError("there is nothing to evaluate: no batches")
    columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return ExampleScores(
        elbo=columns["elbo"],
        log_likelihood=columns["log_likelihood"],
        kl=columns["kl"],
        kl_per_dimension=columns.get("kl_per_dimension"),
        iw_bound=columns.get("iw_bound"),
        effective_samples=columns.get("effective_samples"),
        posterior=DiagonalGaussian(columns["mean"], columns["log_variance"]),
    )


@torch.no_grad()
def mean_kl_by_dimension(
    posterior: DiagonalGaussian, prior: PriorDistribution, generator: torch.Generator | None = None
) -> Float[Tensor, " latent"]:
    """Return the mean over examples of KL(q(z_d|x) || p(z_d)) in nats, for each dimension d.

    Where there is no closed form it is an estimate by one draw of each posterior, with the marginals of the prior.
    """
    kl = prior.kl(posterior)
    if kl is not None:
        return kl.mean(0)
    z = posterior.rsample(1, generator)[0]
    squares = (z - posterior.mean).square() * torch.exp(-posterior.log_variance)
    own = -0.5 * (squares + posterior.log_variance + LOG_TWO_PI)
    axes = torch.eye(z.shape[1], device=z.device, dtype=z.dtype).unsqueeze(-1)
    marginals = [prior.projected_log_prob(z[:, d : d + 1], axis) for d, axis in enumerate(axes)]
    return (own - torch.stack(marginals, dim=1)).mean(0)


class Use(NamedTuple):
    """How much each latent dimension is used: its mean KL in nats or, where z has no noise, the variance of the means.

    Without noise a KL would be infinite, and a mean is known to any number of digits.
    """

    amount: Float[Tensor, " latent"]  # on the CPU
    measure: str = "KL"
    unit: str = " nats"

    def label(self, dimension: int) -> str:
        """Return the dimension's name with what it is used for."""
        return f"z{dimension}, {self.measure} {self.amount[dimension]:z.2f}{self.unit}"


def use_of_dimensions(
    posterior: DiagonalGaussian, prior: PriorDistribution, generator: torch.Generator | None = None
) -> Use:
    """Return how much each dimension is used; of `DiagonalGaussian.without_noise`, by the variance of the means."""
    if bool(posterior.log_variance.isneginf().all()):
        return Use(posterior.mean.var(0, correction=0).cpu(), "variance", "")
    return Use(mean_kl_by_dimension(posterior, prior, generator).cpu())


def active_units(posterior: DiagonalGaussian) -> int:
    """Return how many latent dimensions have a posterior mean that varies over the data (Burda et al., 2016)."""
    if len(posterior.mean) < 2 or posterior.mean.shape[1] == 0:
        return 0  # no variance is defined
    return int((posterior.mean.var(0) > ACTIVE_UNIT_VARIANCE).sum())


def mutual_information(
    posterior: DiagonalGaussian, generator: torch.Generator | None = None, pairs_at_once: int = 2**26
) -> float:
    """Return I(x; z) = E[log q(z|x) - log q(z)] in nats over all examples at once (Hoffman & Johnson, 2016).

    q(z) is the mixture of all N posteriors, so the estimate cannot exceed log N: print it with N. `pairs_at_once`
    bounds the memory.
    """
    mean, log_variance = posterior.mean.double(), posterior.log_variance.double()
    z = DiagonalGaussian(mean, log_variance).rsample(1, generator)[0]
    precision = torch.exp(-log_variance)
    constant = (mean.square() * precision + log_variance + LOG_TWO_PI).sum(-1)
    total, chunk = 0.0, max(1, min(1024, pairs_at_once // len(z)))
    for start in range(0, len(z), chunk):
        part = z[start : start + chunk]
        # log q(z_i | x_n) for all pairs, the square expanded so that it is two matrix products
        pairs = -0.5 * (part.square() @ precision.T - 2 * part @ (mean * precision).T + constant)
        own = pairs[torch.arange(len(part)), torch.arange(start, start + len(part))]
        total += float((own - pairs.logsumexp(1) + math.log(len(z))).sum())
    return total / len(z)


def mean_and_error(values: Float[Tensor, " n"]) -> tuple[float, float]:
    """Return the mean over examples and its standard error (NaN for a single example)."""
    error = float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return float(values.mean()), error
