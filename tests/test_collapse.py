"""The collapse alarm: what a validation says of the latents, and the one warning when they say nothing."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from seqvae.data.batching import VALID_SEED, stack
from seqvae.data.dataset import WindowDataset
from seqvae.evaluation import active_units, mutual_information
from seqvae.harness import validation
from seqvae.harness.config import load
from seqvae.objectives import IWAE, Autoencoder, BetaELBO, CapacityELBO, DReG, Objective, TargetRate
from seqvae.schedules import Constant, Cyclical, Linear
from tests.helpers.runs import position, step_path
from tests.helpers.worlds import World, train_tiny

GetWorld = Callable[[str], World]

FULL_PRICE = ("objective.beta.start=1", "objective.beta.end=1", "objective.free_nats=0")


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [text for text in map(logging.LogRecord.getMessage, caplog.records) if "the posterior has collapsed" in text]


def test_a_validation_says_how_much_the_latents_say(get_world: GetWorld, tmp_path: Path) -> None:
    world = get_world("text")
    several = "data.batch_size=4"  # so that windows are encoded in several parts
    run = train_tiny(world, tmp_path / "run", "optimizer.lr=0.1", "data.limit=null", several)
    trained, dataset = load(f"{run.path}@last"), WindowDataset(world.root, "valid")
    x = stack([dataset[index] for index in range(len(dataset))])
    with torch.no_grad():
        terms = trained.vae.terms(x)
    metrics = trained.config["metrics"]
    assert metrics["mutual_information_cap"] == pytest.approx(torch.tensor(len(dataset)).log().item())
    oracle = mutual_information(terms.posterior, torch.Generator().manual_seed(VALID_SEED))
    assert metrics["mutual_information"] == pytest.approx(oracle, rel=1e-4)
    assert metrics["active_units"] == active_units(terms.posterior)
    events = EventAccumulator(str(run.path / "tensorboard"), size_guidance={"histograms": 0})
    events.Reload()
    last = events.Histograms("valid/kl_per_dimension")[-1]
    assert last.step == 4
    assert terms.kl is not None
    assert last.histogram_value.num == 4
    assert last.histogram_value.sum == pytest.approx(float(terms.kl.sum(1).mean()), rel=1e-4)
    assert last.histogram_value.max == pytest.approx(float(terms.kl.mean(0).max()), rel=1e-4)


def test_a_collapse_is_told_once_a_training_whoever_goes_on_with_it(
    get_world: GetWorld, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = get_world("text")
    train_tiny(world, tmp_path / "run", *FULL_PRICE, "trainer.max_steps=4", "trainer.valid_every=1")
    (told,) = warnings_of(caplog)
    assert told.startswith("step 1: the latents say 0")
    for cure in (
        "objective.free_nats=",
        "objective=target_rate",
        "model.posterior_gamma=",
        "experiment=text_pretrained",
    ):
        assert cure in told
    assert position(tmp_path / "run", 4)["collapse_told"]
    train_tiny(world, tmp_path / "run", *FULL_PRICE, "trainer.max_steps=6", "trainer.valid_every=1", "resume=auto")
    assert len(warnings_of(caplog)) == 1


def test_no_collapse_is_told_while_the_price_still_rises(
    get_world: GetWorld, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rising = ("objective.beta.share=1", "objective.free_nats=0", "trainer.valid_every=1")
    train_tiny(get_world("text"), tmp_path / "run", *rising)
    (told,) = warnings_of(caplog)
    assert told.startswith("step 4:")


@pytest.mark.parametrize("overrides", [["model.language_model=true"], ["objective=autoencoder"]], ids=str)
def test_what_has_no_latent_or_no_kl_cannot_collapse(
    overrides: list[str], get_world: GetWorld, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if "objective=autoencoder" in overrides:
        overrides = ["experiment=text_autoencoder"]
    train_tiny(get_world("text"), tmp_path / "run", *overrides, "optimizer.lr=0")
    assert not warnings_of(caplog)
    metrics = load(f"{tmp_path / 'run'}@last").config["metrics"]
    assert "mutual_information" not in metrics
    assert ("active_units" in metrics) == (overrides[0] != "model.language_model=true")
    assert step_path(tmp_path / "run", 4).is_dir()


def test_latents_that_say_something_are_no_collapse(
    get_world: GetWorld, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "mutual_information", lambda posterior, generator: 0.11)
    train_tiny(get_world("text"), tmp_path / "run", *FULL_PRICE)
    assert not warnings_of(caplog)


def test_of_a_single_window_no_collapse_is_told(
    get_world: GetWorld, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for limit, told in ((2, 1), (1, 0)):
        caplog.clear()
        train_tiny(get_world("text"), tmp_path / str(limit), *FULL_PRICE, f"data.limit={limit}", "optimizer.lr=0")
        assert len(warnings_of(caplog)) == told


@pytest.mark.parametrize(
    ("objective", "annealed"),
    [
        (BetaELBO(Linear(0, 1, share=0.5)), [False, True, True]),
        (BetaELBO(Constant(0.3)), [True, True, True]),
        (BetaELBO(Cyclical(cycles=2, rise=0.9)), [False, False, True]),
        (CapacityELBO(Linear(0, 20, share=0.5)), [False, True, True]),
        (IWAE(Linear(0, 1, share=1.0)), [False, False, True]),
        (DReG(Linear(0, 1, share=1.0)), [False, False, True]),
        (TargetRate(5.0), [True, True, True]),
        (Autoencoder(), [False, False, False]),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, list) else "",
)
def test_an_objective_knows_when_its_price_is_final(objective: Objective, annealed: list[bool]) -> None:
    assert [objective.annealed(progress) for progress in (0.1, 0.6, 1.0)] == annealed
