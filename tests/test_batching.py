"""The order of windows is a pure function of (seed, epoch), and every example weighs the same."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqvae.data import load_codec
from seqvae.data.batching import BatchOrder, loader, stack, valid_loader
from seqvae.data.dataset import WindowDataset
from seqvae.data.midi import MelodyTokenizer
from seqvae.harness.config import load
from seqvae.harness.engine import Engine
from seqvae.harness.validation import Validation
from seqvae.objectives import BetaELBO
from seqvae.schedules import Constant
from tests.helpers.worlds import Run, World

GetWorld = Callable[[str], World]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=80),
    st.integers(1, 9),
    st.one_of(st.none(), st.integers(1, 60)),
    st.integers(1, 3),
    st.integers(0, 3),
)
def test_every_window_is_seen_once_an_epoch_by_one_of_the_ranks(
    lengths: list[int], batch_size: int, max_tokens: int | None, world_size: int, epoch: int
) -> None:
    order = BatchOrder(np.array(lengths), batch_size, max_tokens, seed=1, world_size=world_size)
    ranks = [order.epoch(epoch, rank) for rank in range(world_size)]
    assert {len(batches) for batches in ranks} == {order.steps}  # no rank waits for another
    batches = [batch for rank in ranks for batch in rank if batch != [-1]]
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert sum(map(len, batches)) / len(batches) == pytest.approx(order.mean_batch_size)
    for batch in batches:
        assert len(batch) <= batch_size
        longest = max(lengths[index] for index in batch)
        assert max_tokens is None or len(batch) == 1 or len(batch) * longest <= max_tokens


def test_epochs_and_seeds_differ_and_repeat() -> None:
    def epoch(seed: int, number: int) -> list[list[int]]:
        return BatchOrder(np.full(50, 4), 8, seed=seed).epoch(number)

    assert epoch(0, 0) == epoch(0, 0)
    assert epoch(0, 0) != epoch(0, 1)
    assert epoch(0, 0) != epoch(1, 0)


def test_sequences_of_one_length_share_a_batch_where_there_are_enough() -> None:
    lengths = np.repeat([5, 6, 9], 100)
    for batch in BatchOrder(lengths, 10).epoch(3):
        assert len({int(lengths[index]) for index in batch}) == 1


def test_fewer_windows_than_a_batch_make_one_smaller_batch() -> None:
    assert [sorted(batch) for batch in BatchOrder(np.full(3, 4), 64).epoch(0)] == [[0, 1, 2]]


def test_rows_are_filled_with_nothing() -> None:
    assert stack([torch.tensor([1, 2]), torch.tensor([3])]).tolist() == [[1, 2], [3, -1]]
    assert stack([torch.zeros(1, 2, 2, dtype=torch.uint8)] * 2).shape == (2, 1, 2, 2)


@pytest.mark.parametrize("bad", [0, "8", True])
def test_a_batch_size_that_is_none_is_refused(bad: object) -> None:
    with pytest.raises(ValueError, match="batch_size must be a positive int"):
        BatchOrder(np.full(3, 4), bad)  # type: ignore[arg-type]


def seen(dataset: WindowDataset, *, epoch: int, workers: int = 0) -> list[list[int]]:
    batches = BatchOrder(dataset.lengths, 8).epoch(0)
    codec = MelodyTokenizer(transpose=5)
    return [row for b in loader(dataset, codec, batches, seed=3, epoch=epoch, workers=workers) for row in b.x.tolist()]


def test_views_differ_between_epochs_and_not_between_workers(melody_root: Path) -> None:
    dataset = WindowDataset(melody_root, "train")
    assert seen(dataset, epoch=0) != seen(dataset, epoch=1)  # augmentation is not frozen by a cache
    assert seen(dataset, epoch=1) == seen(dataset, epoch=1, workers=2)


def test_validation_is_never_augmented(melody_root: Path) -> None:
    dataset = WindowDataset(melody_root, "valid")
    codec = MelodyTokenizer(transpose=5)
    for batch in valid_loader(dataset, codec, batch_size=4):
        for row, index in zip(batch.x, batch.index.tolist(), strict=True):
            assert torch.equal(row, dataset[index])


def test_validation_keeps_to_the_token_budget(get_world: GetWorld) -> None:
    root = get_world("text").root
    dataset, codec = WindowDataset(root, "train"), load_codec(root / "codec")
    budget = 2 * int(dataset.lengths.max()) + 1

    def tokens(max_tokens: int | None) -> list[int]:
        batches = list(valid_loader(dataset, codec, batch_size=64, max_tokens=max_tokens))
        assert sorted(index for batch in batches for index in batch.index.tolist()) == list(range(len(dataset)))
        return [batch.x.numel() for batch in batches]

    assert max(tokens(None)) > budget
    assert max(tokens(budget)) <= budget


@pytest.mark.parametrize("max_tokens", [None, 1, 25, 60])
def test_windows_that_a_validation_scores_keep_to_the_bounds_and_their_order(
    max_tokens: int | None, get_run: Callable[[str], Run]
) -> None:
    run = get_run("text")
    trained, dataset = load(run.path), WindowDataset(run.world.root, "train")
    validation = Validation(
        engine=Engine(1),
        vae=trained.vae,
        codec=trained.codec,
        objective=BetaELBO(Constant(1.0)),
        valid=dataset,
        batch_size=7,
        max_tokens=max_tokens,
    )
    chosen = list(range(0, len(dataset), 2))
    batches = validation._cut(chosen)
    assert [index for batch in batches for index in batch] == chosen
    assert len({int(dataset.lengths[index]) for index in chosen}) > 1
    for batch, following in zip(batches, [*batches[1:], []], strict=True):
        sizes = [len(some) * int(dataset.lengths[some].max()) for some in (batch, [*batch, *following[:1]])]
        assert len(batch) <= 7
        assert max_tokens is None or len(batch) == 1 or sizes[0] <= max_tokens
        if following:  # no room was left
            assert len(batch) == 7 or (max_tokens is not None and sizes[1] > max_tokens)


def test_a_loader_does_not_touch_the_global_random_numbers(melody_root: Path) -> None:
    dataset = WindowDataset(melody_root, "train")
    before = torch.get_rng_state()
    list(seen(dataset, epoch=0))
    assert torch.equal(torch.get_rng_state(), before)
