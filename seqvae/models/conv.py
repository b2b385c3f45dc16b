"""Convolutional residual VAE for images of any size (He et al., 2016; Kingma & Welling, 2014)."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from seqvae.gaussian import DiagonalGaussian, GaussianHead
from seqvae.models.decoding import Beam, Greedy, Strategy, Temperature
from seqvae.models.layers import ResidualBlock, check_flag, check_positive
from seqvae.models.likelihoods import Bernoulli, Likelihood
from seqvae.vae import Decoder, Encoder


class Stage(NamedTuple):
    """The pictures between two halvings: how many channels they have, and how they are refined."""

    channels: int
    blocks: int
    bottleneck: int
    gated: bool

    def refine(self) -> list[nn.Module]:
        """Return the stage's residual blocks."""
        return [ResidualBlock(self.channels, self.bottleneck, self.gated) for _ in range(self.blocks)]


def _pyramid(size: tuple[int, int], stages: int) -> list[tuple[int, int]]:
    """Return the sizes of an image halved `stages` times, rounded up."""
    sizes = [size]
    for _ in range(stages):
        height, width = sizes[-1]
        sizes.append((-(-height // 2), -(-width // 2)))
    return sizes


class Patches(nn.Conv2d):
    """Every patch of 2x2 pixels becomes one pixel of more channels; an odd size is filled up with zeros."""

    def __init__(self, channels: int, features: int) -> None:
        super().__init__(channels, features, 2, stride=2)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features rows columns"]:
        height, width = x.shape[2:]
        return super().forward(F.pad(x, (0, width % 2, 0, height % 2)) if height % 2 or width % 2 else x)


class ConvEncoder(Encoder):
    """Pixels -> q(z|x): every stage halves the picture and refines it with residual blocks."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        levels: int,
        latent_dim: int,
        stages: Sequence[Stage],
        features: int,
        patches: bool = False,
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.levels = levels
        channels, *size = image_shape
        layers: list[nn.Module] = []
        for stage in stages:
            halve = Patches if patches else partial(nn.Conv2d, kernel_size=3, stride=2, padding=1)
            layers += [halve(channels, stage.channels), *stage.refine()]
            channels = stage.channels
        self.stages = nn.Sequential(*layers)
        height, breadth = _pyramid((size[0], size[1]), len(stages))[-1]
        self.features = nn.Linear(channels * height * breadth, features)
        self.head = GaussianHead(features, latent_dim)

    def forward(self, x: Shaped[Tensor, "batch channels height width"]) -> DiagonalGaussian:
        """Return the posterior of pictures: uint8 levels, or floating brightness in [0, 1], which has a gradient."""
        dtype = self.features.weight.dtype
        pixels = (x.to(dtype) if x.is_floating_point() else x.to(dtype) / (self.levels - 1)) - 0.5
        maps = F.silu(self.stages(pixels.contiguous(memory_format=torch.channels_last)))
        posterior: DiagonalGaussian = self.head(F.silu(self.features(maps.flatten(1))))
        return posterior


class ConvDecoder(Decoder):
    """p(x|z): the encoder's stages in reverse, ending in the likelihood's parameter maps."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        levels: int,
        latent_dim: int,
        stages: Sequence[Stage],
        features: int,
        likelihood: Likelihood,
        patches: bool = False,
    ) -> None:
        super().__init__()
        self.likelihood = likelihood
        self.is_density = likelihood.is_density
        channels, *size = image_shape
        self.sizes = _pyramid((size[0], size[1]), len(stages))[::-1]
        self.channels = stages[-1].channels
        height, breadth = self.sizes[0]
        self.features = nn.Sequential(
            nn.Linear(latent_dim, features), nn.SiLU(), nn.Linear(features, self.channels * height * breadth)
        )
        self.blocks = nn.ModuleList(nn.Sequential(*stage.refine()) for stage in reversed(stages))
        maps, narrow = likelihood.maps(channels, levels), stages[0].channels
        steps = list(pairwise(stage.channels for stage in reversed(stages)))
        self.output: nn.Module | None = None
        if patches:
            self.upsample = nn.ModuleList(nn.ConvTranspose2d(*step, 2, stride=2) for step in steps)
            # the pixels of a patch are the channels of one pixel at half the resolution (Shi et al., 2016)
            self.upsample.append(nn.Sequential(nn.Conv2d(narrow, 4 * maps, 3, padding=1), nn.PixelShuffle(2)))
        else:
            steps.append((narrow, narrow))
            self.upsample = nn.ModuleList(nn.ConvTranspose2d(*step, 4, stride=2, padding=1) for step in steps)
            self.output = nn.Conv2d(narrow, maps, 3, padding=1)

    def forward(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch maps height width"]:
        """Return the likelihood's parameters."""
        maps = self.features(z).unflatten(1, (self.channels, *self.sizes[0]))
        maps = maps.contiguous(memory_format=torch.channels_last)
        for blocks, upsample, (height, width) in zip(self.blocks, self.upsample, self.sizes[1:], strict=True):
            maps = upsample(F.silu(blocks(maps)))[:, :, :height, :width]  # an odd size was rounded up on the way down
        parameters: Tensor = maps if self.output is None else self.output(F.silu(maps))
        return parameters.float() if parameters.dtype in (torch.float16, torch.bfloat16) else parameters

    def log_prob(
        self, x: UInt8[Tensor, "batch channels height width"], z: Float[Tensor, "batch latent"]
    ) -> Float[Tensor, " batch"]:
        return self.likelihood.log_prob(self(z), x)

    def predict(
        self, x: UInt8[Tensor, "batch channels height width"], z: Float[Tensor, "batch latent"]
    ) -> Float[Tensor, "batch channels height width"]:
        return self.likelihood.mean(self(z))

    def sample(
        self,
        z: Float[Tensor, "batch latent"],
        *,
        strategy: Strategy | Beam | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch channels height width"]:
        """Return pixels in [0, 1]: their expectation without a strategy, draws of each pixel with a Temperature."""
        if strategy is None or isinstance(strategy, Greedy):
            return self.likelihood.mean(self(z))
        if isinstance(strategy, Temperature):
            return self.likelihood.sample(self(z), strategy.temperature, generator)
        raise ValueError(f"pixels are independent given z: {type(strategy).__name__} decoding is for sequences")


def conv(
    *,
    image_shape: Sequence[int],
    levels: int,
    latent_dim: int = 32,
    width: int | Sequence[int] = 32,
    stages: int = 2,
    blocks: int | Sequence[int] = 1,
    bottleneck: int = 1,
    gated: bool = False,
    patches: bool = False,
    features: int = 256,
    likelihood: Likelihood | None = None,
) -> tuple[ConvEncoder, ConvDecoder]:
    """Build the convolutional encoder and decoder; the first two arguments are the codec's facts.

    Args:
        image_shape: channels, height, width.
        levels: how many values a pixel can have: 2 when binarized, else 256.
        width: channels of the first stage, which every further stage doubles; or those of each stage.
        stages: how often the picture is halved.
        blocks: residual blocks a stage; or those of each stage.
        bottleneck: a block's 3x3 convolution sees an n-th of the channels; 1: two of them see all.
        gated: gates within the blocks, at twice the maps before them.
        patches: halve and double pictures by patches of 2x2 pixels, and let nothing work at full resolution.
        features: units of the dense layer beside the latents.
        likelihood: p(pixels | parameters); Bernoulli by default.

    Raises:
        ValueError: for a number out of its range, or a likelihood that does not fit the pixels.
    """
    check_positive(latent_dim=latent_dim, stages=stages, bottleneck=bottleneck, features=features)
    check_flag(gated=gated, patches=patches)
    channels, height, breadth = image_shape
    most = min(height, breadth).bit_length() - 1  # the halvings that leave a pixel
    if stages > most:
        raise ValueError(f"stages must be at most {most} for {height}x{breadth} pixels, got {stages}")
    widths = _each_stage(stages, width=width)
    if isinstance(width, int):
        widths = [width << stage for stage in range(stages)]
    if bottleneck > min(widths):
        raise ValueError(f"bottleneck must be at most the narrowest stage's {min(widths)} channels, got {bottleneck}")
    pyramid = [
        Stage(wide, deep, bottleneck, gated)
        for wide, deep in zip(widths, _each_stage(stages, blocks=blocks), strict=True)
    ]
    shape = (channels, height, breadth)
    encoder = ConvEncoder(shape, levels, latent_dim, pyramid, features, patches)
    decoder = ConvDecoder(shape, levels, latent_dim, pyramid, features, likelihood or Bernoulli(), patches)
    return encoder, decoder


def _each_stage(stages: int, **values: int | Sequence[int]) -> list[int]:
    """Return the number of each stage for the one value that is named. Raises ValueError for no positive ints."""
    ((name, value),) = values.items()
    numbers = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value] * stages
    if len(numbers) != stages:
        raise ValueError(f"{name} must be one number or one for each of {stages} stages, got {value!r}")
    for number in numbers:
        check_positive(**{name: number})
    return numbers
