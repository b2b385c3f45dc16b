"""Small pictures, and the idx format written by hand."""

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

IDX_CODES = {"uint8": 0x08, "int8": 0x09, "int16": 0x0B, "int32": 0x0C, "float32": 0x0D, "float64": 0x0E}


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def idx_bytes(array: NDArray[Any]) -> bytes:
    """Return an array in the idx format: two zero bytes, the type, the rank, the sizes, the values, big end first."""
    head = struct.pack(f">HBB{array.ndim}I", 0, IDX_CODES[array.dtype.name], array.ndim, *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()
