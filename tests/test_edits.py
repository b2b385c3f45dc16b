"""The benchmark of edits: its numbers are what they say, and it runs on a tiny dataset."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import edits
from seqvae import latent
from seqvae.data.dataset import WindowDataset
from seqvae.harness.config import load
from tests.helpers.commands import refused
from tests.helpers.worlds import Run

GetRun = Callable[[str], Run]


class Bright(nn.Module):
    """Says 1 where the upper half is brighter than the lower, else 0."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        difference = pixels[:, :, :4].mean((1, 2, 3)) - pixels[:, :, 4:].mean((1, 2, 3))
        return torch.stack([-difference, difference, torch.full_like(difference, -9)], dim=1)


def test_the_classifier_tells_lying_from_standing_bars_and_is_a_function_of_its_seed(get_run: GetRun) -> None:
    run = get_run("fashion")
    train, test = (WindowDataset(run.world.root, split) for split in ("train", "test"))
    pixels, shown = (torch.stack([split[place] for place in range(len(split))]) for split in (train, test))
    labels = torch.from_numpy(train.column("label"))
    assert pixels.dtype == torch.uint8
    model, again = (edits.train_classifier(pixels, labels, 2, 30, seed=3) for _ in range(2))
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    assert (edits.classify(model, pixels) == labels).all()
    torch.testing.assert_close(edits.logits_of(model, shown), edits.logits_of(model, shown.float() / 255))
    assert (edits.classify(model, shown) == torch.from_numpy(test.column("label"))).sum() >= 5  # of six


@torch.no_grad()
def test_the_measures_are_those_of_each_edited_picture(get_run: GetRun) -> None:
    run = get_run("fashion")
    trained, test = load(run.path), WindowDataset(run.world.root, "test")
    codec, vae = trained.codec, trained.vae
    windows, vector = [test[place] for place in range(len(test))], torch.tensor([3.0, -2.0, 0.5, 1.0])
    brightness, odds = edits.Quality("brightness"), edits.Quality("a:b", (0, 1))
    found = list(edits.measure(trained, Bright(), windows, (0, 1), vector, (0.0, 2.0), brightness))
    assert (found[0].distance, found[0].change) == (0, 0)
    z = latent.encode(vae, codec, windows)
    plain, moved = vae.decoder.sample(z), vae.decoder.sample(z + 2 * vector)
    upper, lower = (half.mean((1, 2, 3)) for half in moved.split(4, dim=2))
    assert found[1].target == pytest.approx(float((upper > lower).float().mean()))
    assert found[1].target + found[1].source == pytest.approx(1)
    assert found[1].other == 0
    assert found[1].distance == pytest.approx(
        sum(float((a - b).norm()) / 8 for a, b in zip(moved, plain, strict=True)) / len(windows), rel=1e-4
    )
    assert found[1].change == pytest.approx(float(moved.mean() - plain.mean()), abs=1e-6)
    _, other = edits.measure(trained, Bright(), windows, (0, 1), vector, (0.0, 2.0), odds)
    before = (plain[:, :, :4] - plain[:, :, 4:]).mean()
    assert other.change == pytest.approx(float(2 * ((upper - lower).mean() - before)), abs=1e-6)  # Bright's two logits
    assert other._replace(change=None) == found[1]._replace(change=None)
    again = latent.encode(vae, codec, [codec.windows(codec.join([window]))[0] for window in moved])
    assert found[1].kept == pytest.approx(float(F.cosine_similarity(again - 2 * vector, z).mean()), rel=1e-4)


def test_a_pairs_direction_is_the_vector_of_that_pair_and_leaves_nothing_of_its_own(
    get_run: GetRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = get_run("fashion")
    trained, train = load(run.path), WindowDataset(run.world.root, "train")
    sets = [[train[place] for place in edits.labelled(train, label)] for label in (0, 1)]
    expected = latent.attribute(trained.vae, trained.codec, sets[0], sets[1])
    assert torch.equal(edits.Quality("lying:standing", (1, 0)).direction(trained, train, 99), expected)
    monkeypatch.delattr(edits, "train_classifier")
    options = ["--pairs", "standing:lying", "--orthogonal-to", "lying:standing"]
    assert "nothing is left of the attribute" in refused(capsys, run.path, *options, command=edits.main)


def test_a_share_has_the_standard_error_of_a_mean_of_zeros_and_ones() -> None:
    values = torch.tensor([1.0] * 30 + [0.0] * 70)
    error = 100 * float(values.std(correction=0)) / 10
    assert edits.percent(0.3, 100) == f"30.0 +- {error:.1f} %"
    assert edits.percent(1.0, 9) == "100.0 +- 0.0 %"


def test_the_table_has_a_row_a_strength_for_the_plain_and_the_orthogonal_vector(
    get_run: GetRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = get_run("fashion")
    options = ["--pairs", "standing:lying", "-n", "3", "--epochs", "1", "--orthogonal-to", "brightness"]
    assert edits.main([str(run.path), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "is right on" in lines[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert rows[0][-1] == "brightness"
    assert [row[1:3] for row in rows[2:]] == [
        ["none", "0"],
        *([kind, f"{strength:g}"] for kind in ("plain", "without brightness") for strength in edits.STRENGTHS),
    ]
    for row in rows[2:]:
        assert row[0] == "standing -> lying"
        assert sum(float(cell.partition(" +- ")[0]) for cell in row[3:6]) == pytest.approx(100, abs=0.2)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fashion", ["--pairs", "standing:sitting"], "a pair is A:B, two of standing, lying, got 'standing:sitting'"),
        ("fashion", ["--pairs", "standing:standing"], "a pair is A:B, two of standing, lying, got 'standing:standing'"),
        (
            "fashion",
            ["--pairs", "standing:lying", "--orthogonal-to", "weight"],
            "the attribute must be one of brightness, contrast, got 'weight'",
        ),
        (
            "fashion",
            ["--pairs", "standing:lying", "--orthogonal-to", "standing:sitting"],
            "a pair is A:B, two of standing, lying, got 'standing:sitting'",
        ),
        ("fashion", ["--pairs", "standing:lying", "-n", "0"], "n must be positive, got 0"),
        ("text", ["--pairs", "a:b"], "has no pictures: its codec is a SentencePieceTokenizer"),
    ],
)
def test_a_mistake_is_one_line_before_the_classifier_is_trained(
    name: str,
    options: list[str],
    message: str,
    get_run: GetRun,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(edits, "train_classifier")
    assert message in refused(capsys, get_run(name).path, *options, command=edits.main)
