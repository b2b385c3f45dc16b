"""Going on: a run that was stopped anywhere is the run that never stopped, and only some things may change."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from seqvae.cli import main
from seqvae.data.dataset import sha256
from seqvae.harness import checkpoint
from seqvae.harness.checkpoint import CheckpointError
from seqvae.harness.run import train
from tests.helpers.processes import together
from tests.helpers.runs import crashed, curve, position, run_training, step_path, steps, weights
from tests.helpers.worlds import World, configuration

GetWorld = Callable[[str], World]
Capture = pytest.CaptureFixture[str]

TINY = ["data.batch_size=8", "data.limit=28", "trainer.log_every=2", "trainer.save_every=1", "trainer.valid_every=3"]
DROPOUT = ("model.dropout=0.1", "model.word_dropout=0.2")
CURES = (
    *DROPOUT,
    "model.posterior_gamma=0.6",
    "model.encoder_word_dropout=0.2",
    "model.locked_dropout=true",
    "model.weight_drop=0.2",
    "model.z_to_output=true",
    "trainer.aggressive_steps=2",
)
OWN_PAST = ("sampling=scheduled", "sampling.rate.share=1.0", "sampling.passes=2")
GATED_VAMP = ("prior=vamp", "prior.components=3", "model.patches=true", "model.gated=true", "trainer.ema=0.9")
NEVER_BETTER = ("optimizer.lr=1e-30", "trainer.patience=2")  # the third validation ends it


class Row(NamedTuple):
    """One combination: all pairs of modality, workers, processes and features occur in some row."""

    experiment: str
    workers: int
    processes: int
    features: tuple[str, ...]
    steps: int = 9  # epochs of 4 batches in one process, of 2 in two


ROWS = [
    Row("melody", 0, 1, (*DROPOUT, "trainer.ema=0.9")),
    Row("melody", 2, 2, (*DROPOUT, *OWN_PAST, "objective.beta.share=1.0", "trainer.ema=0.9")),
    Row("melody", 0, 1, (*NEVER_BETTER, *DROPOUT, "trainer.accumulate=3")),
    Row("text", 2, 1, (*CURES, "trainer.accumulate=2", "objective.beta.share=1.0", "trainer.ema=0.9")),
    Row("text", 0, 2, (*CURES, *NEVER_BETTER, "trainer.ema=0.9")),
    Row("fashion", 2, 1, ("trainer.ema=0.9", *NEVER_BETTER)),
    Row("fashion", 0, 2, ("trainer.accumulate=3", "objective.beta.share=1.0", *GATED_VAMP)),
]


def run_row(row: Row, world: World, run_dir: Path, *overrides: str) -> None:
    command = [
        *world.overrides,
        *TINY,
        f"run_dir={run_dir}",
        f"trainer.max_steps={30 if 'trainer.patience=2' in row.features else row.steps}",
        "trainer.max_minutes=null",
        "trainer.keep_last=50",
        f"data.workers={row.workers}",
        *row.features,
        *overrides,
    ]
    if row.processes == 1:
        run_training(command)
        return
    output = run_dir.with_suffix(".log")
    codes = together(row.processes, run_training, command, output=output)
    assert codes == [0] * row.processes, output.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.experiment}-{row.workers}-{row.processes}")
def test_a_resumed_run_is_the_run_that_never_stopped(row: Row, get_world: GetWorld, tmp_path: Path) -> None:
    world = get_world(row.experiment)
    whole = tmp_path / "whole"
    run_row(row, world, whole)
    assert steps(whole) == list(range(1, row.steps + 1))  # where patience ends it, too
    for stop in (2, 4, 6):  # within an epoch, at its end, right after a validation
        copied = crashed(whole, stop, tmp_path / f"from-{stop}")
        run_row(row, world, copied, "resume=auto")
        assert steps(copied) == steps(whole)
        for step in range(stop + 1, row.steps + 1):
            assert weights(copied, step) == weights(whole, step)
            assert position(copied, step) == position(whole, step)
            state, expected = (load_file(step_path(run, step) / "training.safetensors") for run in (copied, whole))
            assert state.keys() == expected.keys()
            exact = [name for name in state if row.processes == 1 or not name.startswith("meter.")]
            assert all(torch.equal(state[name], expected[name]) for name in exact)
        for tag in ("train/loss", "valid/objective"):
            mine, theirs = curve(copied, tag), curve(whole, tag)
            assert [step for step, _ in mine] == [step for step, _ in theirs]
            # sums over processes are kept by one of them: the same numbers in another order
            tolerance = 0.0 if row.processes == 1 else 1e-6
            assert [loss for _, loss in mine] == pytest.approx([loss for _, loss in theirs], rel=tolerance, abs=0.0)


def melody(world: World, run_dir: Path, steps: int, *overrides: str) -> None:
    run_row(Row("melody", 0, 1, DROPOUT, steps), world, run_dir, *overrides)


@pytest.fixture(scope="module")
def whole(get_world: GetWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 7 steps, never stopped, saved at every step."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    melody(get_world("melody"), run_dir, 7)
    return run_dir


@pytest.fixture
def stopped(whole: Path, tmp_path: Path) -> Path:
    """That run as a crash after its third step left it."""
    return crashed(whole, 3, tmp_path / "run")


@pytest.mark.parametrize("piece", ["rng.0", "optimizer.0.exp_avg"])
def test_without_a_piece_of_its_state_a_resumed_run_differs(
    piece: str, whole: Path, stopped: Path, get_world: GetWorld
) -> None:
    path = step_path(stopped, 3)
    tensors = load_file(path / "training.safetensors")
    tensors[piece] = torch.Generator().manual_seed(99).get_state() if piece == "rng.0" else 2 * tensors[piece]
    save_file(tensors, path / "training.safetensors")
    manifest = json.loads((path / "MANIFEST.json").read_text())
    manifest["training.safetensors"] = sha256(path / "training.safetensors")
    (path / "MANIFEST.json").write_text(json.dumps(manifest))
    melody(get_world("melody"), stopped, 7, "resume=auto")
    assert weights(stopped, 7) != weights(whole, 7)


def test_how_often_a_run_validates_logs_and_saves_changes_nothing(
    whole: Path, get_world: GetWorld, tmp_path: Path
) -> None:
    melody(get_world("melody"), tmp_path / "run", 7, "trainer.save_every=7", "trainer.valid_every=7", "data.workers=2")
    assert weights(tmp_path / "run", 7) == weights(whole, 7)


def test_time_up_saves_and_ends_and_moves_no_schedule(whole: Path, get_world: GetWorld, tmp_path: Path) -> None:
    melody(get_world("melody"), tmp_path / "run", 7, "trainer.max_minutes=1e-6")
    assert steps(tmp_path / "run") == [1]
    melody(get_world("melody"), tmp_path / "run", 7, "resume=auto")
    assert weights(tmp_path / "run", 7) == weights(whole, 7)


def test_a_run_that_goes_on_longer_keeps_its_schedules(stopped: Path, get_world: GetWorld) -> None:
    melody(get_world("melody"), stopped, 8, "resume=auto")
    assert (position(stopped, 8)["step"], position(stopped, 8)["schedule_steps"]) == (8, 7)


def test_a_run_that_died_before_its_first_checkpoint_begins_again(
    whole: Path, get_world: GetWorld, tmp_path: Path
) -> None:
    copied = crashed(whole, 0, tmp_path / "run")
    melody(get_world("melody"), copied, 7, "resume=auto")
    assert weights(copied, 7) == weights(whole, 7)
    assert curve(copied) == curve(whole)  # each step once


def test_a_finished_run_has_nothing_left_to_do(whole: Path, get_world: GetWorld, tmp_path: Path) -> None:
    copied = crashed(whole, 7, tmp_path / "run")
    melody(get_world("melody"), copied, 7, "resume=auto")
    assert steps(copied) == steps(whole)


def test_the_number_of_processes_cannot_change(stopped: Path, get_world: GetWorld) -> None:
    path = step_path(stopped, 3)
    values = position(stopped, 3)
    (path / "training.json").write_text(json.dumps({**values, "world_size": 2}))
    manifest = json.loads((path / "MANIFEST.json").read_text())
    manifest["training.json"] = sha256(path / "training.json")
    (path / "MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="was trained by 2 processes, cannot go on with 1"):
        melody(get_world("melody"), stopped, 7, "resume=auto")


def command(capsys: Capture, *arguments: str) -> tuple[int, str]:
    capsys.readouterr()
    code = main(["train", *arguments])
    return code, capsys.readouterr().err


def test_resume_takes_the_runs_own_configuration(whole: Path, stopped: Path, capsys: Capture) -> None:
    code, _ = command(capsys, f"resume={stopped}")
    assert code == 0
    assert weights(stopped, 7) == weights(whole, 7)
    assert not list(stopped.glob("config.resume-*"))


def test_changes_are_told_and_kept_and_hold_from_then_on(
    stopped: Path, capsys: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    code, _ = command(capsys, f"resume={stopped}", "trainer.max_steps=4", "optimizer.lr=0.5")
    assert code == 0
    assert "goes on with optimizer.lr: 0.002 -> 0.5, trainer.max_steps: 7 -> 4" in caplog.text
    assert "lr: 0.5" in (stopped / "config.resume-1.yaml").read_text()
    assert "lr: 0.002" in (stopped / "config.yaml").read_text()
    command(capsys, f"resume={stopped}", "trainer.max_steps=5")
    assert "goes on with trainer.max_steps: 4 -> 5" in caplog.text
    assert "lr: 0.5" in (stopped / "config.resume-2.yaml").read_text()
    assert steps(stopped)[-1] == 5
    events = EventAccumulator(str(stopped / "tensorboard"))
    events.Reload()
    shown = [event.tensor_proto.string_val[0].decode() for event in events.Tensors("run/config/text_summary")]
    assert len(shown) == 3
    assert "optimizer.lr: 0.5" in shown[1]


def test_a_changed_learning_rate_takes_effect(whole: Path, stopped: Path, capsys: Capture) -> None:
    assert command(capsys, f"resume={stopped}", "optimizer.lr=0.003")[0] == 0
    assert weights(stopped, 4) != weights(whole, 4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.latent_dim=5", "cannot change model.latent_dim: 4 -> 5"),
        ("data.batch_size=9", "cannot change data.batch_size: 8 -> 9"),
        ("trainer.ema=0.9", "cannot change trainer.ema: None -> 0.9"),
        ("trainer.accumulate=2", "cannot change trainer.accumulate: 1 -> 2"),
        ("trainer.monitor=elbo", "cannot change trainer.monitor: 'objective' -> 'elbo'"),
        ("seed=1", "cannot change seed: 0 -> 1"),
        ("experiment=text", "cannot change experiment: 'melody' -> 'text'"),
        ("model=lstm", "cannot take model=lstm; only values may change: trainer.max_steps"),
        ("trainer=default", "cannot take trainer=default; only values may change"),
        ("debug=smoke", "cannot take debug=smoke; only values may change"),
        ("~trainer.max_minutes", "cannot take ~trainer.max_minutes; only values may change"),
        ("+trainer.nonsense=1", "cannot change trainer.nonsense: None -> 1"),
        ("trainer.max_steps=many", "trainer.max_steps must be a positive int, got 'many'"),
    ],
)
def test_what_no_run_survives_is_refused_by_name_and_nothing_is_touched(
    override: str, message: str, stopped: Path, capsys: Capture
) -> None:
    before = {path: path.stat().st_mtime_ns for path in stopped.rglob("*")}
    code, said = command(capsys, f"resume={stopped}", override)
    assert code == 2
    assert len(said.strip().splitlines()) == 1
    assert message in said
    assert {path: path.stat().st_mtime_ns for path in stopped.rglob("*")} == before


def test_resume_auto_refuses_the_same(whole: Path, get_world: GetWorld) -> None:
    with pytest.raises(ValueError, match=r"already in use; go on with resume=auto or choose another run_dir="):
        melody(get_world("melody"), whole, 7)
    with pytest.raises(ValueError, match=r"cannot change model.latent_dim: 4 -> 5"):
        melody(get_world("melody"), whole, 7, "resume=auto", "model.latent_dim=5")


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no run directory \(no config.yaml\)"):
        train(configuration([f"resume={tmp_path}"]))


def test_other_data_is_refused(stopped: Path, get_world: GetWorld) -> None:
    path = step_path(stopped, 3)
    config = json.loads((path / "config.json").read_text())
    config["data"]["fingerprint"] = "0" * 64
    (path / "config.json").write_text(json.dumps(config))
    manifest = json.loads((path / "MANIFEST.json").read_text())
    manifest["config.json"] = sha256(path / "config.json")
    (path / "MANIFEST.json").write_text(json.dumps(manifest))
    checkpoint.verify(path)
    with pytest.raises(ValueError, match=r"is not the dataset that .* was trained on \(its sha256 differs\)"):
        melody(get_world("melody"), stopped, 7, "resume=auto")
