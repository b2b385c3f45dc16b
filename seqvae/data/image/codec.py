"""Pictures <-> pixel tensors."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from seqvae.data.codec import Codec, Preview
from seqvae.data.image.pictures import CHANNELS, SUFFIXES, Pixels, read_picture, resized, write_png

PREVIEW_SIDE = 96  # pixels; smaller pictures are shown enlarged to about this
GAP = 2  # pixels between the pictures of a preview
MOST_IN_A_ROW = 16  # so many pictures are a strip, more of them a grid


class PixelCodec(Codec[Pixels]):
    """Pictures as uint8 arrays [height width channels], one window each: uint8 [channels height width].

    `image_shape` is (channels, height, width). A picture of another size is cut to the shape's proportions
    about its centre, then resized. With `binarize` the view draws each pixel as 0 or 1, 1 with the probability
    value / 255 (dynamic binarization; Salakhutdinov & Murray, 2008); the stored window stays grey.
    """

    view_options: ClassVar[frozenset[str]] = frozenset({"binarize"})
    suffix: ClassVar[str | None] = ".png"
    endings: ClassVar[tuple[str, ...]] = SUFFIXES
    strips: ClassVar[bool] = True

    def __init__(self, image_shape: Sequence[int], binarize: bool = False) -> None:
        shape = tuple(image_shape) if isinstance(image_shape, list | tuple) else ()
        if len(shape) != 3 or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in shape):
            raise ValueError(f"image_shape must be 3 positive ints (channels, height, width), got {image_shape!r}")
        if shape[0] not in CHANNELS:
            raise ValueError(f"image_shape must have 1 or 3 channels, got {shape[0]}")
        if not isinstance(binarize, bool):
            raise ValueError(f"binarize must be true or false, got {binarize!r}")
        self.image_shape, self.binarize = shape, binarize

    @property
    def options(self) -> dict[str, Any]:
        return {"image_shape": list(self.image_shape), "binarize": self.binarize}

    @property
    def spec(self) -> dict[str, Any]:
        return {"image_shape": list(self.image_shape), "levels": 2 if self.binarize else 256}

    def windows(self, item: Pixels) -> list[Tensor]:
        channels, height, width = self.image_shape
        if item.dtype != np.uint8 or item.ndim != 3 or item.shape[2] != channels or item.size == 0:
            raise ValueError(
                f"a picture must be a uint8 array [height width {channels}], got {item.dtype} {list(item.shape)}"
            )
        if item.shape[:2] != (height, width):
            item = resized(item, height, width)
        return [torch.from_numpy(item.transpose(2, 0, 1).copy())]

    def join(self, tensors: Sequence[Tensor], like: Pixels | None = None) -> Pixels:
        """Return the picture of the one tensor; see `intensities` for what its numbers mean."""
        assert len(tensors) == 1, f"a picture is one window, got {len(tensors)}"
        assert tuple(tensors[0].shape) == self.image_shape, f"{tuple(tensors[0].shape)} is not {self.image_shape}"
        values = (self.intensities(tensors[0]) * 255).round().to(torch.uint8)
        return np.ascontiguousarray(values.permute(1, 2, 0).cpu().numpy())

    def intensities(self, tensor: Tensor) -> Tensor:
        """Return brightness in [0, 1] as float32, by the tensor's dtype.

        Floating numbers are that already: a decoder's probabilities and samples. uint8 are stored values, 0 to 255;
        but with `binarize` a uint8 tensor without any value above 1 is a view's zeros and ones (as stored values
        it would be black to the eye and in every view).
        """
        if tensor.is_floating_point():
            return tensor.float().clamp(0, 1)
        assert tensor.dtype == torch.uint8, f"pixels are uint8 or floating, got {tensor.dtype}"
        binary = self.binarize and bool((tensor <= 1).all())
        return tensor.float() / (1 if binary else 255)

    def view(self, tensor: Tensor, rng: np.random.Generator, augment: bool = False) -> Tensor:
        if not self.binarize:
            return tensor
        drawn = rng.random(self.image_shape, np.float32) * 255 < tensor.numpy()
        return torch.from_numpy(drawn.astype(np.uint8))

    def sizes(self, tensor: Tensor) -> dict[str, int]:
        return {"dim": tensor.numel()}

    def score(self, truth: Sequence[Tensor], predicted: Sequence[Tensor]) -> dict[str, float]:
        """Return pixel_accuracy, the share of pixels on the same side of one half, for two levels.

        For 256 levels return psnr_db, the mean over pictures of -10 log10(mean squared error) on brightness in
        [0, 1]: decibels, higher is better, no upper bound (a perfect picture counts as 99).
        """
        pairs = [(self.intensities(a), self.intensities(b)) for a, b in zip(truth, predicted, strict=True)]
        if self.binarize:
            right = [((a >= 0.5) == (b >= 0.5)).float().mean().item() for a, b in pairs]
            return {"pixel_accuracy": sum(right) / max(len(right), 1)}
        errors = [(a - b).square().mean().item() for a, b in pairs]
        decibels = [min(99.0, -10 * math.log10(error)) if error > 0 else 99.0 for error in errors]
        return {"psnr_db": sum(decibels) / max(len(decibels), 1)}

    def attributes(self, window: Tensor) -> dict[str, float]:
        """Return the mean over pixels and the standard deviation of brightness, the mean of a pixel's channels.

        Brightness is from 0 to 1; contrast, of which a picture of one colour has none, from 0 to 1/2 (Peli, 1990).
        """
        light = self.intensities(window).mean(0)
        return {"brightness": float(light.mean()), "contrast": float(light.std(correction=0))}

    def read(self, source: str) -> list[Pixels]:
        return [read_picture(Path(source), self.image_shape[0])]

    def write(self, item: Pixels, path: Path) -> None:
        write_png(path, item)

    def preview(self, items: Sequence[Pixels], columns: int | None = None, sound: bool = True) -> Preview:
        """Return the pictures in one row, or where they are many in a square grid, small ones enlarged."""
        if not items:
            return Preview()
        tiles = self.frames(items)
        columns = columns or (len(tiles) if len(tiles) <= MOST_IN_A_ROW else math.ceil(math.sqrt(len(tiles))))
        rows = math.ceil(len(tiles) / columns)
        height, width = tiles[0].shape[0] + GAP, tiles[0].shape[1] + GAP
        grid = np.full((rows * height - GAP, columns * width - GAP, 3), 255, np.uint8)
        for place, tile in enumerate(tiles):
            top, left = place // columns * height, place % columns * width
            grid[top : top + tile.shape[0], left : left + tile.shape[1]] = tile  # grey spreads to three channels
        return Preview(image=grid)

    def frames(self, items: Sequence[Pixels]) -> list[Pixels]:
        """Return the pictures, small ones enlarged."""
        factor = max(1, PREVIEW_SIDE // max(self.image_shape[1:]))
        pictures = [self.windows(item)[0].permute(1, 2, 0).numpy() for item in items]  # all of one size
        return [np.kron(picture, np.ones((factor, factor, 1), np.uint8)) for picture in pictures]
