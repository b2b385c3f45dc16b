"""What was not there before: samples without repeats and without copies of the training data."""

import hashlib
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from seqvae.data.codec import Codec, encoded_again


class Sieve:
    """Lets a window pass that repeats no earlier one (with `unique`) and copies none of the `known` ones.

    Windows are compared whole and in their canonical form: what encoding the decoded item gives. A sentence is the
    same however it was cut into tokens; a melody in another key and a picture off by one level are others. Sixteen
    bytes are kept of each window.
    """

    def __init__(self, codec: Codec[Any], *, unique: bool, known: Iterable[Tensor] = ()) -> None:
        self.codec, self.unique = codec, unique
        self.passed = self.repeats = self.copies = 0  # how many did, and why others did not
        self._known = {_digest(window) for window in known}
        self._earlier: set[bytes] = set()

    def __call__(self, window: Tensor) -> bool:
        own = _digest(canonical(self.codec, window))
        if own in self._known or (self._known and _digest(window) in self._known):
            self.copies += 1
            return False
        if self.unique and own in self._earlier:
            self.repeats += 1
            return False
        if self.unique:
            self._earlier.add(own)
        self.passed += 1
        return True


def canonical(codec: Codec[Any], window: Tensor) -> Tensor:
    """Return the window that encoding its item gives, or itself where that gives none or several."""
    again = encoded_again(codec, window)
    return window if again is None else again


def _digest(window: Tensor) -> bytes:
    return hashlib.blake2b(window.numpy().tobytes(), digest_size=16).digest()
