"""Convolutional residual VAE for images of any size (He et al., 2016; Kingma & Welling, 2014)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from seqvae.gaussian import DiagonalGaussian, GaussianHead
from seqvae.models.decoding import Beam, Greedy, Strategy, Temperature
from seqvae.models.layers import ResidualBlock, check_positive
from seqvae.models.likelihoods import Bernoulli, Likelihood
from seqvae.vae import Decoder, Encoder


def _pyramid(size: tuple[int, int], stages: int) -> list[tuple[int, int]]:
    """Return the sizes of an image halved `stages` times, rounded up."""
    sizes = [size]
    for _ in range(stages):
        height, width = sizes[-1]
        sizes.append((-(-height // 2), -(-width // 2)))
    return sizes


class ConvEncoder(Encoder):
    """Pixels -> q(z|x): every stage halves the picture, doubles the channels and refines with residual blocks."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        levels: int,
        latent_dim: int,
        width: int,
        stages: int,
        blocks: int,
        features: int,
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.levels = levels
        channels, *size = image_shape
        layers: list[nn.Module] = []
        for stage in range(stages):
            layers.append(nn.Conv2d(channels, width << stage, 3, stride=2, padding=1))
            layers += [ResidualBlock(width << stage) for _ in range(blocks)]
            channels = width << stage
        self.stages = nn.Sequential(*layers)
        height, breadth = _pyramid((size[0], size[1]), stages)[-1]
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
        width: int,
        stages: int,
        blocks: int,
        features: int,
        likelihood: Likelihood,
    ) -> None:
        super().__init__()
        self.likelihood = likelihood
        self.is_density = likelihood.is_density
        channels, *size = image_shape
        self.sizes = _pyramid((size[0], size[1]), stages)[::-1]
        self.channels = width << (stages - 1)
        height, breadth = self.sizes[0]
        self.features = nn.Sequential(
            nn.Linear(latent_dim, features), nn.SiLU(), nn.Linear(features, self.channels * height * breadth)
        )
        self.blocks = nn.ModuleList()
        self.upsample = nn.ModuleList()
        for stage in reversed(range(stages)):
            self.blocks.append(nn.Sequential(*(ResidualBlock(width << stage) for _ in range(blocks))))
            self.upsample.append(nn.ConvTranspose2d(width << stage, width << max(stage - 1, 0), 4, stride=2, padding=1))
        self.output = nn.Conv2d(width, likelihood.maps(channels, levels), 3, padding=1)

    def forward(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch maps height width"]:
        """Return the likelihood's parameters."""
        maps = self.features(z).unflatten(1, (self.channels, *self.sizes[0]))
        maps = maps.contiguous(memory_format=torch.channels_last)
        for blocks, upsample, (height, width) in zip(self.blocks, self.upsample, self.sizes[1:], strict=True):
            maps = upsample(F.silu(blocks(maps)))[:, :, :height, :width]  # an odd size was rounded up on the way down
        parameters: Tensor = self.output(F.silu(maps))
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
    width: int = 32,
    stages: int = 2,
    blocks: int = 1,
    features: int = 256,
    likelihood: Likelihood | None = None,
) -> tuple[ConvEncoder, ConvDecoder]:
    """Build the convolutional encoder and decoder; the first two arguments are the codec's facts.

    Args:
        image_shape: channels, height, width.
        levels: how many values a pixel can have: 2 when binarized, else 256.
        width: channels of the first stage; every further stage doubles them.
        stages: how often the picture is halved.
        blocks: residual blocks a stage.
        features: units of the dense layer beside the latents.
        likelihood: p(pixels | parameters); Bernoulli by default.

    Raises:
        ValueError: for a number out of its range, or a likelihood that does not fit the pixels.
    """
    check_positive(latent_dim=latent_dim, width=width, stages=stages, blocks=blocks, features=features)
    channels, height, breadth = image_shape
    most = min(height, breadth).bit_length() - 1  # the halvings that leave a pixel
    if stages > most:
        raise ValueError(f"stages must be at most {most} for {height}x{breadth} pixels, got {stages}")
    shape = (channels, height, breadth)
    encoder = ConvEncoder(shape, levels, latent_dim, width, stages, blocks, features)
    decoder = ConvDecoder(shape, levels, latent_dim, width, stages, blocks, features, likelihood or Bernoulli())
    return encoder, decoder
