"""Parts exchanged by one override: objective, prior, likelihood; through the command, the checkpoint and back."""

import json
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from seqvae.aggregate import fit_aggregate
from seqvae.cli import main
from seqvae.data.batching import valid_loader
from seqvae.data.dataset import WindowDataset
from seqvae.evaluation import score_examples
from seqvae.harness import plots
from seqvae.harness.aggregate import read_aggregate
from seqvae.harness.comparison import compare
from seqvae.harness.config import load
from seqvae.harness.trainer import Trainer
from tests.helpers.worlds import Run, World, train_tiny

GetWorld = Callable[[str], World]
Capture = pytest.CaptureFixture[str]

GREY = ("data.view.binarize=false", "likelihood@model.likelihood=discretized_logistic")
OBJECTIVES = ("capacity", "iwae", "dreg", "target_rate", "autoencoder")


def train_by_command(world: World, run_dir: Path, *overrides: str) -> Run:
    assert main(["train", *world.overrides, "debug=smoke", f"run_dir={run_dir}", *overrides]) == 0
    return Run(world, run_dir)


def refused_by_command(world: World, run_dir: Path, capsys: Capture, *overrides: str) -> str:
    assert main(["train", *world.overrides, "debug=smoke", f"run_dir={run_dir}", *overrides]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert not run_dir.exists()
    return line


@pytest.mark.parametrize("experiment", ["text", "fashion"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_objective_is_one_override_of_any_experiment(
    objective: str, experiment: str, get_world: GetWorld, tmp_path: Path
) -> None:
    run = train_by_command(get_world(experiment), tmp_path / "run", f"objective={objective}")
    metrics = load(run.path).config["metrics"]
    assert {"objective", "elbo", "log_likelihood", "kl"} <= metrics.keys()
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["elbo"] == pytest.approx(metrics["log_likelihood"] - metrics["kl"], rel=1e-5)


def test_what_an_experiment_says_of_an_exchanged_part_is_left_out_and_what_was_typed_is_not(
    get_world: GetWorld, tmp_path: Path, capsys: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    world = get_world("text")
    with caplog.at_level(logging.INFO):
        train_by_command(world, tmp_path / "run", "objective=iwae")
    assert "objective.free_nats is left out: seqvae.objectives.IWAE has no such argument" in caplog.text
    capsys.readouterr()
    line = refused_by_command(world, tmp_path / "typed", capsys, "objective=iwae", "objective.free_nats=0.5")
    assert "seqvae.objectives.IWAE has no argument 'free_nats'" in line


def test_another_schedule_is_one_override_too(get_world: GetWorld, tmp_path: Path) -> None:
    run = train_by_command(get_world("text"), tmp_path / "run", "schedule@objective.beta=constant")
    assert load(run.path).config["objective"]["beta"] == {"_target_": "seqvae.schedules.Constant", "value": 1.0}


@pytest.mark.parametrize("name", ["mixture", "vamp"])
def test_a_learned_prior_trains_and_comes_back_from_its_checkpoint_alone(
    name: str, get_world: GetWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = get_world("fashion")
    run = train_tiny(world, tmp_path / "run", f"prior={name}", "prior.components=3", "optimizer.lr=1e-2")
    first, last = (load(run.path / "checkpoints" / f"step-{step:09d}") for step in (2, 4))
    for parameter, value in last.vae.prior.state_dict().items():
        assert not torch.equal(value, first.vae.prior.state_dict()[parameter]), parameter
    moved = tmp_path / "elsewhere"
    shutil.move(last.path, moved)
    shutil.rmtree(run.path)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    again = load(moved)
    x = torch.randint(0, 2, (5, 1, 8, 8), dtype=torch.uint8)
    scores = [
        score_examples(vae, [x], importance_samples=20, generator=torch.Generator().manual_seed(0))
        for vae in (last.vae, again.vae)
    ]
    assert scores[0].iw_bound is not None
    assert scores[1].iw_bound is not None
    assert torch.equal(scores[0].iw_bound, scores[1].iw_bound)
    assert main(["sample", str(moved), "-n", "2", "-o", "out"]) == 0


def test_a_vamp_prior_begins_with_noise_or_with_pictures_of_the_train_split(
    get_world: GetWorld, tmp_path: Path
) -> None:
    world = get_world("fashion")
    train = WindowDataset(world.root, "train")
    every = torch.stack([train[place] for place in range(len(train))]).float() / 255
    for from_data in (False, True):
        options = ("prior=vamp", f"prior.components={len(train) + 3}", f"prior.from_data={str(from_data).lower()}")
        run = train_tiny(world, tmp_path / str(from_data), *options, "optimizer.lr=1e-30")
        learned = torch.sigmoid(load(run.path).vae.prior.get_parameter("pictures"))
        distances = (learned[:, None] - every.clamp(0.05, 0.95)).abs().amax((2, 3, 4))
        closest, places = distances.min(1)
        assert bool((closest < 1e-5).all()) == from_data
        assert not from_data or set(places.tolist()) == {*range(len(train))}


def test_a_vamp_prior_is_refused_for_tokens(get_world: GetWorld, tmp_path: Path, capsys: Capture) -> None:
    line = refused_by_command(get_world("text"), tmp_path / "run", capsys, "prior=vamp")
    assert "a VampPrior learns pictures to encode" in line
    assert "prior=mixture" in line


def test_a_mixture_prior_is_refused_with_free_nats_for_each_dimension(
    get_world: GetWorld, tmp_path: Path, capsys: Capture
) -> None:
    world = get_world("text")
    assert main(["train", *world.overrides, "debug=smoke", f"run_dir={tmp_path / 'run'}", "prior=mixture"]) == 2
    assert "free_nats needs a KL for each dimension" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("prior", ["mixture", "vamp"])
def test_a_learned_prior_is_refused_with_an_autoencoder(
    prior: str, get_world: GetWorld, tmp_path: Path, capsys: Capture
) -> None:
    parts = ("objective=autoencoder", f"prior={prior}")
    line = refused_by_command(get_world("fashion"), tmp_path / "run", capsys, *parts)
    assert "an autoencoder has no KL to train a" in line
    assert "use prior=standard_normal" in line


def test_no_picture_or_mixture_uses_the_variances_that_an_autoencoder_has_not_trained(
    get_world: GetWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    pytest.importorskip("matplotlib")
    world = get_world("fashion")
    run = train_by_command(world, tmp_path / "run", "objective=autoencoder")
    trained, train = load(run.path), WindowDataset(world.root, "train")
    (batch,) = valid_loader(train, trained.codec, batch_size=len(train))
    with torch.no_grad():
        posterior = trained.vae.encoder(batch.x)
    z, kept = torch.randn(9, 4), read_aggregate(trained)
    assert kept is not None
    torch.testing.assert_close(kept.log_prob(z), fit_aggregate(posterior.without_noise()).log_prob(z))
    assert (kept.log_prob(z) - fit_aggregate(posterior).log_prob(z)).abs().min() > 1
    capsys.readouterr()
    assert main(["evaluate", str(run.path), "--json"]) == 0
    assert not [name for name in json.loads(capsys.readouterr().out)["metrics"] if "mutual" in name]
    figures: list[Any] = []
    plain = plots.png

    def watched(figure: Any) -> bytes:
        figures.append(figure)
        return plain(figure)

    monkeypatch.setattr(plots, "png", watched)
    for kind in ("scatter", "prior"):
        assert main(["plot", str(run.path), kind, "-o", str(tmp_path / "x.png")]) == 0
    told = [figures[0].axes[0].get_xlabel(), *(axes.get_title() for axes in figures[1].axes[:-1])]
    assert all(", variance " in text for text in told)
    command = ["similar", str(run.path), world.inputs[0], "--noise", "posterior", "-o", str(tmp_path / "out")]
    assert main(command) == 2
    assert "was trained without noise: its posteriors have no width; --noise prior" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["continuous_bernoulli", "discretized_gaussian", "discretized_logistic", "mixture_of_logistics"]
)
def test_a_likelihood_is_one_override_and_an_evaluation_says_what_its_nats_are(
    name: str, get_world: GetWorld, tmp_path: Path, capsys: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    run = train_by_command(
        get_world("fashion"), tmp_path / "run", "data.view.binarize=false", f"likelihood@model.likelihood={name}"
    )
    capsys.readouterr()
    assert main(["evaluate", str(run.path), "--json", "--importance-samples", "3"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    if name == "continuous_bernoulli":
        assert "log_density" in metrics
        assert not [key for key in metrics if "nll" in key or "per_dim" in key]
        assert "p(x|z) is a density: its nats are no NLL" in caplog.text
        assert metrics["log_density"] > metrics["elbo"] - 1.0  # a bound from below: higher is better
    else:
        assert metrics["bits_per_dim"] == pytest.approx(metrics["nll"] / 64 / math.log(2))
        assert "log_density" not in metrics


def test_a_density_is_not_paired_with_a_probability(get_world: GetWorld, tmp_path: Path, capsys: Capture) -> None:
    paths = []
    for name in ("continuous_bernoulli", "discretized_logistic", "discretized_gaussian"):
        overrides = ("data.view.binarize=false", f"likelihood@model.likelihood={name}", "trainer.max_steps=2")
        run = train_tiny(get_world("fashion"), tmp_path / name, *overrides)
        assert main(["evaluate", str(run.path)]) == 0
        paths.append(str(run.path))
    capsys.readouterr()
    assert main(["compare", *paths[1:], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["unpaired"] == {}
    assert main(["compare", *paths[:2], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [run["density"] for run in found["runs"]] == ["ContinuousBernoulli", None]
    assert "one gives a density and one a probability" in found["unpaired"][paths[1]]
    header, *rows = (line.split() for line in compare(paths[:2]).table().splitlines()[:3])
    assert [row[header.index("density")] for row in rows] == ["ContinuousBernoulli", "-"]
    assert "density" not in compare(paths[1:]).table().splitlines()[0]


def test_tensorboard_shows_the_nats_of_a_density_in_charts_of_their_own(get_world: GetWorld, tmp_path: Path) -> None:
    tags = {}
    for name in ("continuous_bernoulli", "discretized_logistic"):
        overrides = ("data.view.binarize=false", f"likelihood@model.likelihood={name}")
        run = train_tiny(get_world("fashion"), tmp_path / name, *overrides)
        events = EventAccumulator(str(run.path / "tensorboard"))
        events.Reload()
        tags[name] = set(events.Tags()["scalars"])
    density, probability = tags.values()
    of_nats = {f"{split}/{name}" for split in ("train", "valid") for name in ("elbo", "log_likelihood")}
    of_nats |= {"train/loss", "valid/objective"}
    assert probability - density == of_nats
    assert density - probability == {f"{tag}_of_density" for tag in of_nats}


def test_a_likelihood_of_other_pixels_is_refused_before_the_run_begins(
    get_world: GetWorld, tmp_path: Path, capsys: Capture
) -> None:
    world = get_world("fashion")
    line = refused_by_command(world, tmp_path / "run", capsys, "likelihood@model.likelihood=mixture_of_logistics")
    assert "needs pixels of 256 levels (data.view.binarize=false), got 2" in line


RATE = ("objective=target_rate", "objective.nats=0.5", "objective.gain=0.3", "trainer.save_every=1")


def test_a_target_rates_state_goes_on_from_a_checkpoint_exactly(
    get_world: GetWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = get_world("fashion")
    overrides = (*GREY, *RATE, "trainer.max_steps=5", "trainer.keep_last=10")
    whole = tmp_path / "whole"
    train_by_command(world, whole, *overrides)

    def gone_on(name: str) -> dict[str, torch.Tensor]:
        copy = tmp_path / name
        shutil.copytree(whole, copy)
        for step in (3, 4, 5):
            shutil.rmtree(copy / "checkpoints" / f"step-{step:09d}")
        train_by_command(world, copy, *overrides, "resume=auto")
        return load_file(copy / "checkpoints" / "step-000000005" / "model.safetensors")

    last = whole / "checkpoints" / "step-000000005"
    weights, state = load_file(last / "model.safetensors"), load_file(last / "training.safetensors")
    assert "objective.log_beta" in state
    assert not any("objective" in name or "log_beta" in name for name in weights)
    again = gone_on("again")
    assert all(torch.equal(weights[name], again[name]) for name in weights)

    # the test can fail: a controller that begins anew goes another way
    restore = Trainer._restore

    def forgetful(self: Trainer, path: Path) -> None:
        before = self.objective.log_beta.clone()  # type: ignore[attr-defined]
        restore(self, path)
        self.objective.log_beta.copy_(before)  # type: ignore[attr-defined]

    monkeypatch.setattr(Trainer, "_restore", forgetful)
    other = gone_on("forgetful")
    assert not all(torch.equal(weights[name], other[name]) for name in weights)
