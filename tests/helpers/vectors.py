"""A world where everything is exact: items are rows of numbers, the encoder and the decoder are linear."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seqvae.data.codec import Codec, Preview
from seqvae.gaussian import DiagonalGaussian
from seqvae.priors import StandardNormal
from seqvae.vae import VAE
from tests.helpers.linear_gaussian import LinearDecoder, LinearEncoder


class RowCodec(Codec[Tensor]):
    """An item [windows numbers] is as many windows [1 numbers]."""

    @property
    def options(self) -> dict[str, Any]:
        return {}

    @property
    def spec(self) -> dict[str, Any]:
        return {}

    def windows(self, item: Tensor) -> list[Tensor]:
        if not len(item):
            raise ValueError("the item is empty")
        return [row.unsqueeze(0) for row in item]

    def join(self, tensors: Sequence[Tensor], like: Tensor | None = None) -> Tensor:
        return torch.cat(list(tensors))

    def sizes(self, tensor: Tensor) -> dict[str, int]:
        return {"number": tensor.numel()}

    def score(self, truth: Sequence[Tensor], predicted: Sequence[Tensor]) -> dict[str, float]:
        return {}

    def read(self, source: str) -> list[Tensor]:
        return [torch.tensor([[float(number) for number in source.split()]])]

    def write(self, item: Tensor, path: Path) -> None:
        path.write_text(str(item.tolist()))

    def preview(self, items: Sequence[Tensor], columns: int | None = None, sound: bool = True) -> Preview:
        return Preview()


class RowEncoder(LinearEncoder):
    def forward(self, x: Tensor) -> DiagonalGaussian:
        return super().forward(x.flatten(1))


class RowDecoder(LinearDecoder):
    def sample(self, z: Tensor, *, strategy: Any = None, generator: torch.Generator | None = None) -> Tensor:
        return self.predict(z, z).unsqueeze(1)


def linear_world(numbers: int = 5, latent: int = 3) -> VAE:
    """Return a VAE of such rows, in float32."""
    generator = torch.Generator().manual_seed(3)
    basis, _ = torch.linalg.qr(torch.randn(numbers, latent, generator=generator))
    weight = basis * torch.tensor([1.5, 0.8, 1.1])[:latent]
    bias = torch.randn(numbers, generator=generator)
    return VAE(RowEncoder(weight, bias, 0.0), RowDecoder(weight, bias), StandardNormal(latent))
