"""Runs beside each other: what is told apart, what is paired, and what is refused to be paired."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from seqvae.cli import main
from seqvae.data.batching import valid_loader
from seqvae.data.dataset import WindowDataset
from seqvae.harness import scoring
from seqvae.harness.comparison import compare
from seqvae.harness.config import load
from seqvae.harness.scores import Scores, Subset, paired_differences, scores_path
from tests.helpers.worlds import Run, World, train_tiny

GetRun = Callable[[str], Run]
GetWorld = Callable[[str], World]
Capture = pytest.CaptureFixture[str]

CHANCE = np.random.default_rng(0)
HARD = CHANCE.normal(-90.0, 20.0, 500)  # how hard each example is, for any model


def scored(**changes: Any) -> Scores:
    columns = {"elbo": HARD, "log_likelihood": HARD + 3, "kl": np.full(500, 3.0), "nll": -HARD - 1}
    return replace(Scores("test", "d", "s", "w", 50, np.arange(500), **columns), **changes)


@pytest.fixture(scope="module")
def twins(get_world: GetWorld, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two text runs that differ in two keys, without any scores."""
    folder = tmp_path_factory.mktemp("twins")
    world = get_world("text")
    one = train_tiny(world, folder / "one")
    other = train_tiny(world, folder / "other", "model.latent_dim=3", "optimizer.lr=0.01")
    return one.path, other.path


@pytest.fixture
def pair(twins: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Copies of the two in the working directory."""
    for path in twins:
        shutil.copytree(path, tmp_path / path.name)
    monkeypatch.chdir(tmp_path)
    return "one", "other"


def said(capsys: Capture, *arguments: object) -> str:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def test_a_paired_difference_is_the_mean_of_the_differences_with_its_standard_error() -> None:
    gain = CHANCE.normal(0.3, 1.0, 500)
    found = paired_differences(scored(), scored(elbo=HARD + gain))["elbo"]
    assert found.mean == pytest.approx(gain.mean())
    assert found.error == pytest.approx(gain.std(ddof=1) / math.sqrt(500))
    unpaired = math.sqrt(2) * HARD.std(ddof=1) / math.sqrt(500)
    assert found.error < unpaired / 10  # what pairing is for: 0.3 nats would drown in this


def test_one_example_has_no_standard_error() -> None:
    one = {name: np.ones(1) for name in ("elbo", "log_likelihood", "kl", "nll")}
    scores = scored(index=np.arange(1), **one)
    assert math.isnan(paired_differences(scores, scores)["elbo"].error)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "valid"}, "one scored the valid split, the other the test split"),
        ({"data": "other"}, "different datasets"),
        ({"index": np.arange(1, 501)}, "different examples"),
        ({"seen": "other"}, r"saw the examples differently \(data\.view\)"),
    ],
    ids=["split", "data", "index", "seen"],
)
def test_scores_of_other_examples_are_not_paired(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"cannot be paired: .*{message}"):
        paired_differences(scored(), scored(**changes))


def test_an_nll_of_other_importance_samples_is_left_out() -> None:
    assert "nll" in paired_differences(scored(), scored())
    assert "nll" not in paired_differences(scored(), scored(importance_samples=500))
    assert "nll" not in paired_differences(scored(), scored(importance_samples=0, nll=None))


def test_an_exact_nll_pairs_with_any_estimate() -> None:
    exact, estimate = scored(importance_samples=0, nll=-HARD), scored(importance_samples=500)
    assert paired_differences(exact, estimate)["nll"].mean == pytest.approx(-1.0)
    assert paired_differences(estimate, exact)["nll"].mean == pytest.approx(1.0)


def test_a_language_model_is_compared_with_a_vae_by_their_nll(
    pair: tuple[str, str], get_world: GetWorld, capsys: Capture
) -> None:
    vae, _ = pair
    lm = train_tiny(get_world("text"), Path("lm"), "model=lstm_lm").path
    found = {}
    for name, samples in ((vae, 5), (lm, 0), (lm, 3)):
        said(capsys, "evaluate", name, "--importance-samples", samples)
        found[name, samples] = json.loads(said(capsys, "evaluate", name, "--json", "--importance-samples", samples))
    for samples in (0, 3):  # which change nothing
        metrics = found[lm, samples]["metrics"]
        assert metrics["nll"] == pytest.approx(-metrics["elbo"])
        assert metrics["kl"] == metrics["mutual_information"] == metrics["active_units"] == metrics["latent_dim"] == 0
        assert not {"importance_samples", "effective_samples_median"} & metrics.keys()
        assert metrics["nll"] == pytest.approx(found[lm, 0]["metrics"]["nll"], rel=1e-6)
    difference = compare([str(lm), vae]).paired[vae]["nll"].mean  # of the scores kept last
    assert difference == pytest.approx(found[vae, 5]["metrics"]["nll"] - found[lm, 3]["metrics"]["nll"], abs=1e-6)


def test_a_subset_is_the_same_windows_for_every_run(pair: tuple[str, str], capsys: Capture) -> None:
    one, other = pair
    subset = ["--split", "train", "--subset", 20, "--subset-seed", 3]
    told = compare([one, other], "train", Subset(20, 3)).unpaired["other"]
    command = "seqvae evaluate one --split train --subset 20 --subset-seed 3"
    assert told == f"one has no scores of 20 windows drawn with seed 3 of its train split; run: {command}"
    found = [
        json.loads(said(capsys, "evaluate", name, *subset, "--json", "--importance-samples", samples))
        for name, samples in ((one, 2), (other, 2))
    ]
    assert found[0]["subset"] == {"size": 20, "seed": 3}
    assert "train split, 20 windows drawn with seed 3" in said(capsys, "evaluate", one, *subset)
    kept = [Scores.load(Path(report["scores"])) for report in found]
    np.testing.assert_array_equal(kept[0].index, kept[1].index)
    assert len(set(kept[0].index.tolist())) == 20
    assert kept[0].index.tolist() != list(range(20))
    assert compare([one, other], "train").paired == {}  # they are no scores of the whole split
    compared = json.loads(said(capsys, "compare", *pair, *subset, "--json"))
    difference = found[1]["metrics"]["nll"] - found[0]["metrics"]["nll"]
    assert compared["paired"]["other"]["nll"]["mean"] == pytest.approx(difference, abs=1e-9)
    assert "other" in compare([one, other], "train", Subset(20, 4)).unpaired
    said(capsys, "evaluate", one, "--split", "train")
    path = scores_path(load(one).path, "train")
    assert path is not None
    whole = Scores.load(path)
    np.testing.assert_allclose(whole.kl[kept[0].index], kept[0].kl, rtol=1e-5)


def test_a_smaller_subset_is_part_of_a_larger_one(get_world: GetWorld) -> None:
    dataset = WindowDataset(get_world("text").root, "train")
    small, large = (set(scoring.random_subset(dataset, size, 5).tolist()) for size in (10, 20))
    assert small < large
    assert set(scoring.random_subset(dataset, len(dataset), 5).tolist()) == set(range(len(dataset)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--subset", "0"], "subset must be between 1 and the 3 windows of the split, got 0"),
        (["--subset", "4"], "subset must be between 1 and the 3 windows of the split, got 4"),
        (["--subset", "2", "--limit", "2"], "--limit is the split's first windows, --subset are some of all"),
        (["--max-tokens", "0"], "max_tokens must be positive, got 0"),
    ],
)
def test_a_subset_that_there_is_not_is_one_line(
    options: list[str], message: str, get_run: GetRun, capsys: Capture
) -> None:
    assert main(["evaluate", str(get_run("text").path), *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("of_one_length", [False, True])
def test_every_window_is_in_one_batch_and_none_is_filled_up_where_each_is_decoded_often(of_one_length: bool) -> None:
    lengths = CHANCE.integers(2, 12, 400)
    places = CHANCE.permutation(400)[:300]
    batches = scoring._cut(lengths, places, 50, 200, of_one_length)
    assert sorted(place for batch in batches for place in batch) == sorted(places.tolist())
    assert max(map(len, batches)) <= 50
    assert all(len(batch) * max(lengths[batch]) <= 200 for batch in batches)
    filled = [len(set(lengths[batch])) > 1 for batch in batches]
    assert any(filled) != of_one_length


def test_the_seconds_and_the_speed_of_an_evaluation_belong_together(get_run: GetRun, capsys: Capture) -> None:
    metrics = json.loads(said(capsys, "evaluate", get_run("text").path, "--json"))["metrics"]
    assert metrics["examples_per_second"] == pytest.approx(metrics["examples"] / metrics["seconds"])


def test_scores_come_back_as_they_were_saved(tmp_path: Path) -> None:
    for name, scores in {"with.npz": scored(), "without.npz": scored(importance_samples=0, nll=None)}.items():
        scores.save(tmp_path / "new" / name)
        back = Scores.load(tmp_path / "new" / name)
        assert (back.split, back.data, back.seen, back.weights) == ("test", "d", "s", "w")
        np.testing.assert_array_equal(back.elbo, scores.elbo)
        assert (back.nll is None) == (scores.nll is None)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["with.npz", "without.npz"]


def test_what_is_no_file_of_scores_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.npz"
    good = scored(nll=None)

    def whole(**changes: Any) -> None:
        columns = {**vars(good), **changes}
        np.savez(path, **{name: value for name, value in columns.items() if value is not None})

    whole()
    Scores.load(path)  # else the rows below would prove nothing
    content = path.read_bytes()
    hostile: list[Callable[[], Any]] = [
        lambda: path.write_bytes(content[:-100]),
        lambda: path.write_bytes(b""),
        lambda: path.write_text("no archive"),
        lambda: whole(elbo=np.array([print], dtype=object)),  # would have to be unpickled
        lambda: whole(elbo=HARD[:-1]),
        lambda: whole(elbo=np.full(500, "x")),
        lambda: whole(kl=None),
        lambda: whole(more=HARD),
        lambda: whole(importance_samples=np.arange(2)),
    ]
    for damage in hostile:
        damage()
        with pytest.raises(ValueError, match=r"scores\.npz cannot be read as the scores of an evaluation"):
            Scores.load(path)


def test_compare_tells_the_differing_keys_and_the_best_checkpoints_metrics(pair: tuple[str, str]) -> None:
    comparison = compare(pair)
    assert comparison.differing == ["model.latent_dim", "optimizer.lr"]
    for run in comparison.runs:
        trained = load(run.name)
        assert run.checkpoint == str(trained.path)
        assert run.metrics == trained.config["metrics"]
        assert run.config["model.latent_dim"] == trained.vae.encoder.latent_dim
    header, one, other = comparison.table().splitlines()[:3]
    assert header.split()[:4] == ["run", "model.latent_dim", "optimizer.lr", "step"]
    assert one.split()[:4] == ["one", "4", "0.004", "4"]
    assert other.split()[:3] == ["other", "3", "0.01"]


def test_compare_works_on_checkpoints_alone(pair: tuple[str, str]) -> None:
    for name in pair:
        shutil.copytree(load(name).path, f"alone-{name}")
    assert compare(["alone-one", "alone-other"]).differing == ["model.latent_dim"]


def test_compare_asks_for_scores_and_pairs_those_that_evaluate_keeps(pair: tuple[str, str], capsys: Capture) -> None:
    assert "other: not paired, one has no scores of its test split; run: seqvae evaluate one --split test" in said(
        capsys, "compare", *pair
    )
    means = [
        json.loads(said(capsys, "evaluate", name, "--json", "--importance-samples", 3))["metrics"] for name in pair
    ]
    found = json.loads(said(capsys, "compare", *pair, "--json"))
    assert found["unpaired"] == {}
    for name in ("elbo", "kl", "log_likelihood", "nll"):
        assert found["paired"]["other"][name]["mean"] == pytest.approx(means[1][name] - means[0][name], abs=1e-9)
        assert found["runs"][1]["metrics"][f"test/{name}"] == pytest.approx(means[1][name])
    table = said(capsys, "compare", *pair)
    assert "minus one on the same 3 test examples:" in table
    assert f"{found['paired']['other']['elbo']['mean']:+.4g} +- " in table


def test_a_quick_evaluation_does_not_replace_a_thorough_one(pair: tuple[str, str], capsys: Capture) -> None:
    path = scores_path(load(pair[0]).path, "test")
    assert path is not None

    def kept(*options: object) -> bytes:
        said(capsys, "evaluate", pair[0], *options)
        return path.read_bytes()

    thorough = kept("--importance-samples", 3)
    assert kept() == thorough
    assert kept("--limit", 2) == thorough
    assert kept("--importance-samples", 4) != thorough
    path.write_bytes(thorough[:100])
    kept()
    assert Scores.load(path).importance_samples == 0  # damaged ones are no better


def test_evaluate_adds_nothing_to_a_verified_checkpoint(pair: tuple[str, str], capsys: Capture, tmp_path: Path) -> None:
    before = load(pair[0]).path
    files = sorted(before.iterdir())
    kept = json.loads(said(capsys, "evaluate", pair[0], "--json"))["scores"]
    assert Path(kept).resolve() == scores_path(before.resolve(), "test")
    assert sorted(before.iterdir()) == files
    alone = shutil.copytree(before, "alone")
    assert json.loads(said(capsys, "evaluate", alone, "--json"))["scores"] is None
    said(capsys, "evaluate", alone, "--scores", "own.npz")
    assert Scores.load(Path("own.npz")).split == "test"
    assert sorted(path.name for path in Path("alone").iterdir()) == [path.name for path in files]


def test_a_run_that_cannot_be_written_is_evaluated_all_the_same(
    pair: tuple[str, str], capsys: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    (Path(pair[0]) / "scores").write_text("in the way")
    assert json.loads(said(capsys, "evaluate", pair[0], "--json"))["scores"] is None
    assert "could not be kept" in caplog.text
    assert main(["evaluate", pair[0], "--scores", "one/scores/own.npz"]) == 2


def test_scores_of_weights_that_no_longer_stand_there_are_not_used(pair: tuple[str, str], capsys: Capture) -> None:
    for name in pair:
        said(capsys, "evaluate", name)
    assert compare(pair).unpaired == {}
    path = scores_path(load(pair[1]).path, "test")
    assert path is not None
    replace(Scores.load(path), weights="of an earlier training").save(path)
    assert compare(pair).unpaired == {
        "other": "other has no scores of its test split; run: seqvae evaluate other --split test"
    }


def test_runs_on_other_data_are_shown_but_not_paired(pair: tuple[str, str], get_run: GetRun, capsys: Capture) -> None:
    melody = shutil.copytree(get_run("melody").path, "melody")
    for name in (pair[0], melody):
        said(capsys, "evaluate", name)
    comparison = compare([pair[0], str(melody)])
    assert comparison.paired == {}
    assert "different datasets" in comparison.unpaired["melody"]
    assert "data.root" in comparison.differing


def test_compare_names_what_is_no_run(pair: tuple[str, str], capsys: Capture) -> None:
    assert main(["compare", pair[0], "nowhere"]) == 2
    assert capsys.readouterr().err == "seqvae compare: checkpoint nowhere: no such file or directory\n"
    Path(pair[1], "config.yaml").write_text("a: [1, 2")
    assert main(["compare", *pair]) == 2
    assert "config.yaml cannot be read" in capsys.readouterr().err


def test_what_was_seen_does_not_depend_on_how_it_was_cut_into_batches(get_run: GetRun) -> None:
    run = get_run("fashion")
    trained = load(run.path)
    dataset = WindowDataset(run.world.root, "test")

    def seen(*, samples: int = 0, **view: Any) -> str:
        codec = trained.codec.replace(**view)
        return scoring.evaluate(trained.vae, codec, dataset, importance_samples=samples).seen

    first = scoring.evaluate(trained.vae, trained.codec, dataset)
    batches = [(x, index) for x, index in _batches(trained.codec, dataset, size=4)]
    assert scoring._digest(batches) == scoring._digest(batches[::-1]) == first.seen == seen(samples=2)
    assert seen(binarize=False) != first.seen
    torch.testing.assert_close(first.examples["index"], torch.arange(len(dataset)))


def _batches(codec: Any, dataset: WindowDataset, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(batch.x, batch.index) for batch in valid_loader(dataset, codec, batch_size=size)]
