"""In which order windows are seen: a pure function of (seed, epoch), so that a position is one integer."""

import signal
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from seqvae.data.codec import Codec
from seqvae.data.dataset import VALID_EPOCH, Batch, WindowDataset

VALID_SEED = 777  # of what validation and test draw: binary pixels, previews

__all__ = ["BatchOrder", "loader", "stack", "valid_loader"]


class BatchOrder:
    """Cuts the windows of a split into batches, anew each epoch, always the same number of them.

    Windows are laid out by length and cut at fixed places: a batch holds windows of one length where there are
    enough, at most `batch_size` windows and, padding included, at most `max_tokens` values (a longer window is a
    batch by itself). Which windows of a length meet, and the order of the batches, change with the epoch.
    """

    def __init__(
        self,
        lengths: NDArray[np.int64],
        batch_size: int,
        max_tokens: int | None = None,
        seed: int = 0,
        world_size: int = 1,
    ) -> None:
        if len(lengths) == 0:
            raise ValueError("there are no windows to make batches of")
        for name, value in (("batch_size", batch_size), ("max_tokens", max_tokens)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a positive int, got {value!r}")
        self.lengths, self.max_tokens, self.seed, self.world_size = lengths, max_tokens, seed, world_size
        self.cuts = _cuts(np.sort(lengths), batch_size, max_tokens)
        self.mean_batch_size = len(lengths) / (len(self.cuts) - 1)

    @property
    def steps(self) -> int:
        """How many times every rank gets a batch in one epoch."""
        return -(-(len(self.cuts) - 1) // self.world_size)

    def epoch(self, epoch: int, rank: int = 0) -> list[list[int]]:
        """Return the rank's batches of window indices; [-1] where other ranks have one batch more."""
        rng = np.random.default_rng([self.seed, epoch])
        order = np.lexsort((rng.permutation(len(self.lengths)), self.lengths))
        batches = [order[start:end].tolist() for start, end in zip(self.cuts[:-1], self.cuts[1:], strict=True)]
        shuffled: list[list[int]] = [batches[place] for place in rng.permutation(len(batches))]
        shuffled += [[-1]] * (self.steps * self.world_size - len(shuffled))
        return shuffled[rank :: self.world_size]


def _cuts(lengths: NDArray[np.int64], batch_size: int, max_tokens: int | None) -> list[int]:
    """Return where ascending lengths are cut; the leftover of a length joins the next one when it is small."""
    cuts, start = [0], 0
    for place in range(1, len(lengths)):
        full = place - start == batch_size
        too_many = max_tokens is not None and (place - start + 1) * int(lengths[place]) > max_tokens
        fits = batch_size if max_tokens is None else min(batch_size, max(1, max_tokens // int(lengths[place])))
        other_length = lengths[place] != lengths[start] and 2 * (place - start) >= fits
        if full or too_many or other_length:
            cuts.append(place)
            start = place
    return [*cuts, len(lengths)]


class _Views(Dataset[tuple[Tensor, int]]):
    """What the model sees of each window in one epoch; the random numbers depend on (seed, epoch, index) alone."""

    def __init__(self, dataset: WindowDataset, codec: Codec[Any], seed: int, epoch: int) -> None:
        self.dataset, self.codec, self.seed, self.epoch = dataset, codec, seed, epoch

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        seen = max(index, 0)  # -1 asks for a row of weight nothing: any window will do
        rng = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, self.epoch, seen]))
        return self.codec.view(self.dataset[seen], rng, augment=self.epoch != VALID_EPOCH), index


def stack(windows: Sequence[Tensor]) -> Tensor:
    """Return windows as one tensor: token rows filled up with -1, pixels stacked."""
    return (
        pad_sequence(list(windows), batch_first=True, padding_value=-1)
        if windows[0].dtype == torch.int64
        else torch.stack(list(windows))
    )


def _collate(rows: list[tuple[Tensor, int]]) -> Batch:
    return Batch(stack([window for window, _ in rows]), torch.tensor([index for _, index in rows]))


def _leave_signals_to_the_parent(worker: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def loader(
    dataset: WindowDataset,
    codec: Codec[Any],
    batches: list[list[int]],
    *,
    seed: int,
    epoch: int,
    workers: int = 0,
) -> DataLoader[Any]:
    """Return a loader of `Batch` for these batches; workers change neither what it yields nor the global RNG."""
    return DataLoader(
        _Views(dataset, codec, seed, epoch),
        batch_sampler=batches,
        collate_fn=_collate,
        num_workers=workers,
        # a terminal and a cluster send them to every process, and the parent needs its batches to finish its step
        worker_init_fn=_leave_signals_to_the_parent,
        generator=torch.Generator(),  # else its base seed would be drawn from the global RNG, and resuming differ
        pin_memory=torch.cuda.is_available(),
    )


def valid_loader(
    dataset: WindowDataset,
    codec: Codec[Any],
    *,
    batch_size: int,
    max_tokens: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader[Any]:
    """Return a loader that shows every window once, the same way for ever; batches are bounded as in `BatchOrder`."""
    order = BatchOrder(dataset.lengths, batch_size, max_tokens, world_size=world_size)
    return loader(dataset, codec, order.epoch(0, rank), seed=VALID_SEED, epoch=VALID_EPOCH)
