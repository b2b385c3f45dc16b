"""Every shipped experiment: it composes, says what it promises, runs, and its model can learn a batch by heart."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from seqvae.harness import conf_dir
from seqvae.harness.config import load
from seqvae.harness.run import train
from tests.helpers.worlds import MODEL, World, configuration

FOLDER = conf_dir() / "experiment"
EXPERIMENTS = {path.relative_to(FOLDER).with_suffix("").as_posix(): path for path in sorted(FOLDER.rglob("*.yaml"))}

SMALLER = ("latent_dim", "embedding_dim", "encoder_hidden_dim", "conductor_dim", "hidden_dim", "width", "features")

GetWorld = Callable[[str], World]


def world_name(experiment: str) -> str:
    """Return which tiny world has the data of an experiment, by the data group it chooses."""
    chosen = {"midi": "melody", "drums": "drums", "trio": "trio", "text": "text", "image": "fashion"}
    text = EXPERIMENTS[experiment].read_text(encoding="utf-8")
    (kind,) = (line.split(":")[1].strip() for line in text.splitlines() if "override /data:" in line)
    return chosen[kind]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_promises_a_command_minutes_and_numbers(experiment: str) -> None:
    lines = EXPERIMENTS[experiment].read_text(encoding="utf-8").splitlines()
    header = " ".join(line for line in lines if line.startswith("#") and "@package" not in line)
    assert f"seqvae train experiment={experiment}" in header
    assert "minutes" in header
    assert any(character.isdigit() for character in header.replace(experiment, ""))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_composes_under_its_own_name(experiment: str) -> None:
    config = configuration([f"experiment={experiment}"])
    assert config.run_dir == f"runs/{config.experiment}"
    assert config.experiment == experiment.rpartition("/")[2]


def predecessor(experiment: str) -> str | None:
    """Return the experiment whose weights this one begins with, by the run directory it names."""
    begins = configuration([f"experiment={experiment}"]).init_from
    return None if begins is None else str(begins).removeprefix("runs/")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_begins_with_nothing_or_with_the_run_of_a_shipped_one(experiment: str) -> None:
    before = predecessor(experiment)
    if before is not None:
        assert configuration([f"experiment={before}"]).run_dir == f"runs/{before}"
        command = f"seqvae train experiment={before} && seqvae train experiment={experiment}"
        assert command in EXPERIMENTS[experiment].read_text(encoding="utf-8")


def run_smoke(experiment: str, world: World, folder: Path) -> tuple[Path, dict[str, float]]:
    """Train four steps of an experiment, after those of the one it begins with; return its run and its metrics."""
    composed = configuration([f"experiment={experiment}"])
    sizes = [
        f"model.{name}=8" for name in SMALLER if name in composed.model and not composed.model.get("tie_embeddings")
    ]
    before = predecessor(experiment)
    begins = [] if before is None else [f"init_from={run_smoke(before, world, folder)[0]}"]
    run_dir = folder / experiment
    overrides = ["debug=smoke", f"data.root={world.root}", f"run_dir={run_dir}", *sizes, *begins]
    return run_dir, train(configuration([f"experiment={experiment}", *overrides]))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_runs(experiment: str, get_world: GetWorld, tmp_path: Path) -> None:
    run_dir, metrics = run_smoke(experiment, get_world(world_name(experiment)), tmp_path)
    assert all(torch.isfinite(torch.tensor(value)) for value in metrics.values())
    trained = load(f"{run_dir}@last")
    assert trained.config["step"] == 4
    assert trained.config["metrics"] == metrics


def test_a_pretrained_vae_begins_with_the_autoencoders_encoder_and_variances_near_one(
    get_world: GetWorld, tmp_path: Path
) -> None:
    world = get_world("text")
    still = [*world.overrides[1:], "debug=smoke", "trainer.save_every=1", "model.tie_embeddings=true"]
    paths = {name: tmp_path / name for name in ("autoencoder", "begun", "untouched")}
    train(
        configuration(["experiment=text_autoencoder", *still, f"run_dir={paths['autoencoder']}", "optimizer.lr=1e-2"])
    )
    for name, begins in (("begun", paths["autoencoder"]), ("untouched", "null")):
        overrides = [f"init_from={begins}", "optimizer.lr=0", f"run_dir={paths[name]}"]
        train(configuration(["experiment=text_pretrained", *still, *overrides]))
    autoencoder, begun, untouched = (load(path).vae for path in paths.values())
    theirs, ours, fresh = (vae.state_dict() for vae in (autoencoder, begun, untouched))
    for name, value in ours.items():
        assert torch.equal(value, theirs[name] if name.startswith("encoder.") else fresh[name]), name
    for name in ("encoder.head.mean.weight", "decoder.output.bias"):
        assert not torch.equal(theirs[name], fresh[name])
    # what no loss has trained is as it was drawn
    assert torch.equal(theirs["encoder.head.log_variance.weight"], fresh["encoder.head.log_variance.weight"])
    assert begun.encoder(torch.randint(0, 20, (16, 6))).log_variance.abs().max() < 1.5


SIZES = {
    "melody": ["model.latent_dim=16", "model.embedding_dim=32", "model.encoder_hidden_dim=64", "model.hidden_dim=128"],
    "text": ["model.latent_dim=16", "model.embedding_dim=32", "model.encoder_hidden_dim=32", "model.hidden_dim=32"],
    "fashion": ["model.latent_dim=16", "model.width=8", "model.features=64"],
}
SIZES |= {"drums": [*SIZES["melody"], "trainer.max_steps=1200"], "trio": SIZES["melody"]}  # 512 classes take longer
WITHOUT_DROPOUT = {"text": ["model.dropout=0"]}
MOST_NATS = {"melody": 1.0, "drums": 1.0, "trio": 2.0, "text": 1.0, "fashion": 2.0}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODEL)
def test_a_model_learns_one_batch_by_heart(name: str, get_world: GetWorld, tmp_path: Path) -> None:
    losses = overfit(name, get_world(name), tmp_path / "run", [*SIZES[name], *WITHOUT_DROPOUT.get(name, [])])
    assert losses[-1] < 0.05 * losses[0]
    assert losses[-1] < MOST_NATS[name]


def overfit(name: str, world: World, run_dir: Path, sizes: list[str]) -> list[float]:
    """Return the train loss of an example at each step that was logged."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(
        configuration(
            [
                f"experiment={name}",
                "debug=overfit",
                f"data.root={world.root}",
                f"run_dir={run_dir}",
                "trainer.log_every=10",
                "trainer.max_minutes=null",
                *sizes,
            ]
        )
    )
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    return [float(event.value) for event in events.Scalars("train/loss")]
