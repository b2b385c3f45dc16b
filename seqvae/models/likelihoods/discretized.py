"""Pixels of 256 levels as the bins of a continuous distribution: the probabilities of all levels sum to one.

The distribution lives on brightness from -1 (level 0) to 1 (level 255). A level's bin reaches half a level to
either side, and the bins at the ends hold all that lies beyond (Salimans et al., 2017, eq. 2).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from seqvae.gaussian import LOG_TWO_PI, soft_bound
from seqvae.models.likelihoods.likelihood import check_levels

LEVELS = 256
HALF = 1.0 / (LEVELS - 1)  # half a level, on brightness from -1 to 1
LOG_SCALE_MIDDLE, LOG_SCALE_REACH = -2.5, 4.5  # from a ninth of a level to what all but ignores the levels between


class DiscretizedGaussian:
    """Pixels independent given z, each a Gaussian in bins with a mean and a scale of its own, which it learns.

    A Gaussian's density at grey values would be no likelihood of them; the probabilities of its bins are.
    """

    is_density = False

    def maps(self, channels: int, levels: int) -> int:
        check_levels("discretized Gaussian", LEVELS, levels)
        return 2 * channels

    def log_prob(
        self, parameters: Float[Tensor, "batch maps height width"], x: UInt8[Tensor, "batch channels height width"]
    ) -> Float[Tensor, " batch"]:
        mean, scale = _mean_and_scale(parameters)
        value = _brightness(x, mean)
        lower, upper = (value - HALF - mean) / scale, (value + HALF - mean) / scale
        up_to, from_on = _log_ndtr(upper), _log_ndtr(-lower)
        # a bin is the difference of two tails on one side of the mean, where they are small: near 1 no digit is left
        beyond = lower > 0
        tail = torch.where(beyond, from_on, up_to)
        rest = _log_ndtr(torch.where(beyond, -upper, lower))
        inner = tail + _log_one_minus_exp(rest - tail)
        nats = torch.where(x == 0, up_to, torch.where(x == LEVELS - 1, from_on, inner))
        return nats.flatten(1).sum(1)

    def mean(
        self, parameters: Float[Tensor, "batch maps height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return the expected pixels in [0, 1], to half a level."""
        mean, scale = _mean_and_scale(parameters)

        def below(u: Tensor) -> Tensor:  # the integral of the distribution function up to u
            area: Tensor = u * torch.special.ndtr(u) + torch.exp(-0.5 * (u.square() + LOG_TWO_PI))
            return area

        return 0.5 * scale * (below((mean + 1) / scale) - below((mean - 1) / scale))

    def sample(
        self,
        parameters: Float[Tensor, "batch maps height width"],
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch channels height width"]:
        mean, scale = _mean_and_scale(parameters)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return _to_levels(mean + temperature * scale * noise)


class DiscretizedLogistic:
    """Pixels independent given z, each a logistic distribution in bins with a mean and a scale of its own."""

    is_density = False

    def maps(self, channels: int, levels: int) -> int:
        check_levels("discretized logistic", LEVELS, levels)
        return 2 * channels

    def log_prob(
        self, parameters: Float[Tensor, "batch maps height width"], x: UInt8[Tensor, "batch channels height width"]
    ) -> Float[Tensor, " batch"]:
        return _log_logistic_bin(x, *_mean_and_scale(parameters)).flatten(1).sum(1)

    def mean(
        self, parameters: Float[Tensor, "batch maps height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return the expected pixels in [0, 1], to half a level."""
        return _expected_logistic(*_mean_and_scale(parameters))

    def sample(
        self,
        parameters: Float[Tensor, "batch maps height width"],
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch channels height width"]:
        mean, scale = _mean_and_scale(parameters)
        return _to_levels(_draw_logistic(mean, temperature * scale, generator))


class _Mixture(NamedTuple):
    """A picture's parameters, by what they are."""

    logits: Float[Tensor, "batch components height width"]
    mean: Float[Tensor, "batch components channels height width"]
    scale: Float[Tensor, "batch components channels height width"]
    coefficients: Float[Tensor, "batch components pairs height width"]

    def conditional_mean(self, channel: int, before: list[Tensor]) -> Float[Tensor, "batch components height width"]:
        """Return a channel's means given the brightness of the channels before it (Salimans et al., 2017, eq. 3)."""
        first = channel * (channel - 1) // 2
        mean = self.mean[:, :, channel]
        for place, brightness in enumerate(before):
            mean = mean + self.coefficients[:, :, first + place] * brightness
        return mean


class MixtureOfLogistics:
    """Every pixel a mixture of `components` discretized logistics (PixelCNN++; Salimans et al., 2017, section 2).

    All channels of a pixel come from the same component, and a channel's mean is linear in those before it, so
    green follows red and blue both. Temperature narrows scales and sharpens the choice of a component.

    Raises:
        ValueError: when components is not positive.
    """

    is_density = False

    def __init__(self, components: int = 10) -> None:
        if isinstance(components, bool) or not isinstance(components, int) or components < 1:
            raise ValueError(f"components must be a positive int, got {components!r}")
        self.components = components

    def maps(self, channels: int, levels: int) -> int:
        check_levels("mixture of logistics", LEVELS, levels)
        return self.components * _maps_a_component(channels)

    def log_prob(
        self, parameters: Float[Tensor, "batch maps height width"], x: UInt8[Tensor, "batch channels height width"]
    ) -> Float[Tensor, " batch"]:
        mixture = self._split(parameters)
        brightness = _brightness(x, parameters).unsqueeze(1).unbind(2)
        means = [mixture.conditional_mean(channel, list(brightness[:channel])) for channel in range(x.shape[1])]
        nats = _log_logistic_bin(x.unsqueeze(1), torch.stack(means, 2), mixture.scale).sum(2)
        return torch.logsumexp(torch.log_softmax(mixture.logits, 1) + nats, 1).flatten(1).sum(1)

    def mean(
        self, parameters: Float[Tensor, "batch maps height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return the expected pixels in [0, 1], to half a level: each channel's at what is expected of those before."""
        mixture = self._split(parameters)
        weights = torch.softmax(mixture.logits, 1)
        expected: list[Tensor] = []
        for channel in range(mixture.mean.shape[2]):
            before = [2 * pixel - 1 for pixel in expected]
            mean = mixture.conditional_mean(channel, before)
            expected.append(_expected_logistic(mean, mixture.scale[:, :, channel]))
        return torch.stack([(weights * pixel).sum(1) for pixel in expected], 1)

    def sample(
        self,
        parameters: Float[Tensor, "batch maps height width"],
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch channels height width"]:
        mixture = self._split(parameters)
        weights = torch.softmax(mixture.logits / temperature, 1).movedim(1, -1)
        chosen = torch.multinomial(weights.flatten(0, 2), 1, generator=generator).view(weights.shape[:-1]).unsqueeze(1)
        drawn: list[Tensor] = []
        for channel in range(mixture.mean.shape[2]):
            before = [2 * pixel - 1 for pixel in drawn]
            mean = mixture.conditional_mean(channel, before).gather(1, chosen)
            scale = mixture.scale[:, :, channel].gather(1, chosen)
            drawn.append(_to_levels(_draw_logistic(mean, temperature * scale, generator)))
        return torch.cat(drawn, 1)

    def _split(self, parameters: Float[Tensor, "batch maps height width"]) -> _Mixture:
        each = parameters.unflatten(1, (self.components, -1))
        channels = next(n for n in (1, 2, 3) if _maps_a_component(n) == each.shape[2])
        logits, mean, log_scale, coefficients = each.split(
            [1, channels, channels, channels * (channels - 1) // 2], dim=2
        )
        return _Mixture(logits.squeeze(2), mean, _scale(log_scale), torch.tanh(coefficients))


def _maps_a_component(channels: int) -> int:
    """A logit; a mean and a scale for each channel; a coefficient for each pair of channels."""
    return 1 + 2 * channels + channels * (channels - 1) // 2


def _brightness(x: UInt8[Tensor, "*shape"], like: Tensor) -> Float[Tensor, "*shape"]:
    return x.to(like.dtype) * (2 * HALF) - 1


def _to_levels(brightness: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the level that each value falls to, as a pixel in [0, 1]."""
    return ((brightness.clamp(-1, 1) + 1) / (2 * HALF)).round() / (LEVELS - 1)


def _mean_and_scale(
    parameters: Float[Tensor, "batch maps height width"],
) -> tuple[Float[Tensor, "batch channels height width"], Float[Tensor, "batch channels height width"]]:
    mean, log_scale = parameters.chunk(2, 1)
    return mean, _scale(log_scale)


def _scale(log_scale: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return torch.exp(LOG_SCALE_MIDDLE + soft_bound(log_scale - LOG_SCALE_MIDDLE, LOG_SCALE_REACH))


def _log_ndtr(u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the log of the standard normal's distribution function; far below the mean, from its asymptotic series.

    There torch's gradient is wrong in float32: 65,000 for 10,000 (DLMF 7.12.1 has the series).
    """
    near = u > -8
    far = torch.where(near, -8.0, u)
    inverse = far.square().reciprocal()
    series = torch.log1p(inverse * (-1 + inverse * (3 + inverse * (-15 + 105 * inverse))))
    tail = -0.5 * (far.square() + LOG_TWO_PI) - torch.log(-far) + series
    return torch.where(near, torch.special.log_ndtr(torch.where(near, u, 0.0)), tail)


def _log_logistic_bin(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Return log P(level x) for a logistic distribution in bins; the shapes broadcast.

    sigmoid(u) - sigmoid(l) = sigmoid(u) sigmoid(-l) (1 - exp(l - u)): every factor keeps its digits, however small.
    """
    value = _brightness(x, mean)
    upper = F.logsigmoid((value + HALF - mean) / scale).where(x < LEVELS - 1, 0.0)
    lower = F.logsigmoid((mean - value + HALF) / scale).where(x > 0, 0.0)
    width = _log_one_minus_exp(-2 * HALF / scale).where((x > 0) & (x < LEVELS - 1), 0.0)
    return upper + lower + width


def _log_one_minus_exp(negative: Tensor) -> Tensor:
    return torch.log(-torch.expm1(negative))


def _expected_logistic(mean: Tensor, scale: Tensor) -> Tensor:
    """Return the mean, as a pixel in [0, 1], of a logistic variable that is cut off at the ends."""
    return 0.5 * scale * (F.softplus((mean + 1) / scale) - F.softplus((mean - 1) / scale))


def _draw_logistic(mean: Tensor, scale: Tensor, generator: torch.Generator | None) -> Tensor:
    uniform = torch.rand(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
    uniform = uniform.clamp(min=torch.finfo(mean.dtype).tiny)
    return mean + scale * (torch.log(uniform) - torch.log1p(-uniform))
