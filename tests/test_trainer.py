"""The training loop: resuming, batches that weigh right, and what stops it."""

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from seqvae.harness import checkpoint, conf_dir
from seqvae.harness.config import load, train
from seqvae.harness.options import TrainerOptions
from seqvae.harness.trainer import Trainer, TrainingError

TINY = [
    "model.latent_dim=4",
    "model.embedding_dim=4",
    "model.encoder_hidden_dim=8",
    "model.hidden_dim=8",
    "model.dropout=0.1",
    "model.word_dropout=0.2",
    "data.batch_size=8",
    "data.limit=40",
    "trainer.log_every=1",
    "trainer.keep_last=20",
]


def run(root: Path, run_dir: Path, steps: int, *overrides: str) -> dict[str, float]:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose(
            "train",
            [
                f"data.root={root}",
                f"run_dir={run_dir}",
                f"trainer.max_steps={steps}",
                "trainer.valid_every=3",
                *TINY,
                *overrides,
            ],
        )
    return train(config)


def weights(run_dir: Path, step: int) -> str:
    file = run_dir / "checkpoints" / f"step-{step:09d}" / "model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest()


def losses(run_dir: Path) -> dict[int, float]:
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    return {event.step: event.value for event in events.Scalars("train/loss")}


def forget_after(run_dir: Path, step: int) -> None:
    """Leave a run as a crash at `step` would: what came later is gone."""
    for path in checkpoint.checkpoints(run_dir):
        if int(path.name[5:]) > step:
            for file in path.iterdir():
                file.unlink()
            path.rmdir()


@pytest.fixture(scope="module")
def whole(melody_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 13 steps (epochs of 5), never stopped, saved at every step."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    run(melody_root, run_dir, 13, "trainer.save_every=1")
    return run_dir


@pytest.mark.parametrize("stop", [2, 3, 5, 7])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_is_the_run_that_never_stopped(
    melody_root: Path, whole: Path, tmp_path: Path, stop: int, workers: int
) -> None:
    copied = _copy(whole, tmp_path / "run")
    forget_after(copied, stop)
    run(melody_root, copied, 13, "trainer.save_every=1", "resume=auto", f"data.workers={workers}")
    for step in range(stop, 14):
        assert weights(copied, step) == weights(whole, step)
    assert losses(copied) == losses(whole)  # each step once, too


def test_without_the_random_state_a_resumed_run_differs(melody_root: Path, whole: Path, tmp_path: Path) -> None:
    copied = _copy(whole, tmp_path / "run")
    forget_after(copied, 3)
    path = checkpoint.last(copied)
    assert path is not None
    tensors = load_file(path / "training.safetensors")
    tensors["rng.0"] = torch.Generator().manual_seed(99).get_state()
    save_file(tensors, path / "training.safetensors")
    manifest = json.loads((path / "MANIFEST.json").read_text())
    manifest["training.safetensors"] = hashlib.sha256((path / "training.safetensors").read_bytes()).hexdigest()
    (path / "MANIFEST.json").write_text(json.dumps(manifest))
    run(melody_root, copied, 13, "trainer.save_every=1", "resume=auto")
    assert weights(copied, 13) != weights(whole, 13)


def test_how_often_a_run_validates_and_saves_changes_nothing(melody_root: Path, whole: Path, tmp_path: Path) -> None:
    run(melody_root, tmp_path / "run", 13, "trainer.save_every=13", "trainer.valid_every=13")
    assert weights(tmp_path / "run", 13) == weights(whole, 13)


def test_another_seed_is_another_run(melody_root: Path, whole: Path, tmp_path: Path) -> None:
    run(melody_root, tmp_path / "run", 13, "seed=1")
    assert weights(tmp_path / "run", 13) != weights(whole, 13)


def test_best_is_chosen_by_the_objective_at_the_end_of_its_schedules(melody_root: Path, tmp_path: Path) -> None:
    run(melody_root, tmp_path / "run", 6, "objective.beta.end=0.5", "objective.beta.share=1.0")
    config = checkpoint.read_config(tmp_path / "run" / "checkpoints" / "step-000000003")
    metrics = config["metrics"]
    assert metrics["beta"] == 0.5  # though beta was half of that at step 3
    assert metrics["objective"] == pytest.approx(-metrics["log_likelihood"] + 0.5 * metrics["kl"], rel=1e-5)
    assert config["score"] == -metrics["objective"]
    scores = {path: checkpoint.read_config(path)["score"] for path in checkpoint.checkpoints(tmp_path / "run")}
    assert load(tmp_path / "run").path == max(scores, key=lambda path: scores[path])


def test_monitor_chooses_by_another_metric(melody_root: Path, tmp_path: Path) -> None:
    run(melody_root, tmp_path / "run", 3, "trainer.monitor=accuracy")
    config = checkpoint.read_config(tmp_path / "run" / "checkpoints" / "step-000000003")
    assert config["score"] == config["metrics"]["accuracy"]
    with pytest.raises(TrainingError, match=r"trainer.monitor must be one of .*, got 'nonsense'"):
        run(melody_root, tmp_path / "other", 3, "trainer.monitor=nonsense")


def test_a_ragged_valid_split_is_averaged_over_examples(melody_root: Path, tmp_path: Path) -> None:
    small = run(melody_root, tmp_path / "a", 3, "data.batch_size=5")
    large = run(melody_root, tmp_path / "b", 3, "data.batch_size=5")
    assert small == large
    trained = load(tmp_path / "a")
    from seqvae.data.batching import valid_loader
    from seqvae.data.dataset import WindowDataset

    dataset = WindowDataset(melody_root, "valid", 40)
    with torch.no_grad():
        kls = [trained.vae.terms(batch.x).total_kl for batch in valid_loader(dataset, trained.codec, batch_size=1)]
    assert small["kl"] == pytest.approx(float(torch.cat(kls).mean()), rel=1e-4)


def test_a_gradient_that_is_not_finite_stops_before_the_optimizer_step(
    melody_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer._step

    def poisoned(self: Trainer, batch: Any) -> Any:
        if self.step == 4:
            with torch.no_grad():
                self.vae.decoder.get_parameter("output.bias")[0] = math.nan
        return step(self, batch)

    monkeypatch.setattr(Trainer, "_step", poisoned)
    with pytest.raises(TrainingError, match=r"step 5: the gradient is not finite .* first windows of the batch"):
        run(melody_root, tmp_path / "run", 13, "trainer.save_every=1")
    newest = checkpoint.last(tmp_path / "run")
    assert newest is not None
    assert newest.name == "step-000000004"
    assert all(tensor.isfinite().all() for tensor in load_file(newest / "model.safetensors").values())


def test_time_up_saves_and_ends_and_moves_no_schedule(melody_root: Path, whole: Path, tmp_path: Path) -> None:
    run(melody_root, tmp_path / "run", 13, "trainer.max_minutes=1e-6")
    assert [path.name for path in checkpoint.checkpoints(tmp_path / "run")] == ["step-000000001"]
    run(melody_root, tmp_path / "run", 13, "resume=auto")
    assert weights(tmp_path / "run", 13) == weights(whole, 13)


def test_a_run_that_goes_on_longer_keeps_its_schedules(melody_root: Path, tmp_path: Path) -> None:
    run(melody_root, tmp_path / "run", 4)
    run(melody_root, tmp_path / "run", 6, "resume=auto")
    values = checkpoint.read_training(tmp_path / "run" / "checkpoints" / "step-000000006").values
    assert (values["step"], values["schedule_steps"]) == (6, 4)


def test_a_run_in_use_and_a_changed_model_are_refused(melody_root: Path, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"already in use; go on with resume=auto or choose another run_dir="):
        run(melody_root, whole, 13)
    with pytest.raises(ValueError, match=r"another configuration .*model.latent_dim: 4 -> 5"):
        run(melody_root, whole, 13, "resume=auto", "model.latent_dim=5")


def test_fewer_windows_than_a_batch_train_with_a_warning(
    melody_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(melody_root, tmp_path / "run", 2, "data.limit=3", "data.batch_size=64")
    assert "the train split has 3 windows, fewer than data.batch_size=64" in caplog.text


def test_tensorboard_holds_scalars_media_and_the_projector(whole: Path) -> None:
    events = EventAccumulator(str(whole / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"train/loss", "train/kl", "train/tokens_per_second", "valid/elbo", "valid/note_f1"} <= set(tags["scalars"])
    assert {"valid/truth", "valid/reconstruction", "valid/sample"} <= set(tags["images"])
    assert {"valid/reconstruction", "valid/sample"} <= set(tags["audio"])
    assert (whole / "tensorboard" / "projector_config.pbtxt").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 0}, "trainer.max_steps must be a positive int, got 0"),
        ({"max_steps": "many"}, "trainer.max_steps must be a positive int, got 'many'"),
        ({"max_steps": 1, "clip_norm": -1}, "trainer.clip_norm must be a positive number, got -1"),
        ({"max_steps": 1, "max_minutes": 0}, "trainer.max_minutes must be a positive number, got 0"),
    ],
)
def test_trainer_options_are_checked_by_the_key_a_person_typed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainerOptions(**options)


def _copy(source: Path, target: Path) -> Path:
    def files() -> Iterator[Path]:
        return (path for path in source.rglob("*") if path.is_file())

    for path in files():
        copied = target / path.relative_to(source)
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_bytes(path.read_bytes())
    return target
