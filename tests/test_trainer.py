"""The training loop: what it weighs, averages, watches, chooses, shows, and what stops it."""

import json
import logging
import math
from functools import partial
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from torch import nn

from seqvae.data.batching import valid_loader
from seqvae.data.dataset import WindowDataset
from seqvae.harness import checkpoint, conf_dir
from seqvae.harness.config import load
from seqvae.harness.engine import PRECISIONS, Engine
from seqvae.harness.options import TrainerOptions, trainer_options
from seqvae.harness.run import train
from seqvae.harness.trainer import Trainer, TrainingError, TrainingStep
from seqvae.harness.validation import Validation
from seqvae.objectives import Loss
from tests.helpers.runs import curve, position, step_path, steps, weights

TINY = [
    "model.latent_dim=4",
    "model.embedding_dim=4",
    "model.encoder_hidden_dim=8",
    "model.hidden_dim=8",
    "model.num_layers=1",
    "data.batch_size=8",
    "data.limit=40",
    "trainer.log_every=1",
    "trainer.keep_last=20",
    "trainer.max_minutes=null",
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


def tensors(run_dir: Path, step: int, file: str = "model.safetensors") -> dict[str, torch.Tensor]:
    return load_file(step_path(run_dir, step) / file)


@pytest.fixture(scope="module")
def plain(melody_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 steps without anything special, saved at every step."""
    run_dir = tmp_path_factory.mktemp("plain") / "run"
    run(melody_root, run_dir, 6, "trainer.save_every=1")
    return run_dir


def test_another_seed_is_another_run(melody_root: Path, plain: Path, tmp_path: Path) -> None:
    run(melody_root, tmp_path / "run", 6, "seed=1")
    assert weights(tmp_path / "run", 6) != weights(plain, 6)


def test_best_is_chosen_by_the_objective_at_the_end_of_its_schedules(melody_root: Path, tmp_path: Path) -> None:
    run(melody_root, tmp_path / "run", 6, "objective.beta.end=0.5", "objective.beta.share=1.0")
    config = checkpoint.read_config(step_path(tmp_path / "run", 3))
    metrics = config["metrics"]
    assert metrics["beta"] == 0.5  # though beta was half of that at step 3
    assert metrics["objective"] == pytest.approx(-metrics["log_likelihood"] + 0.5 * metrics["kl"], rel=1e-5)
    assert config["score"] == -metrics["objective"]
    scores = {path: checkpoint.read_config(path)["score"] for path in checkpoint.checkpoints(tmp_path / "run")}
    assert load(tmp_path / "run").path == max(scores, key=lambda path: scores[path])


def test_monitor_chooses_by_another_metric(melody_root: Path, tmp_path: Path) -> None:
    run(melody_root, tmp_path / "run", 3, "trainer.monitor=accuracy")
    config = checkpoint.read_config(step_path(tmp_path / "run", 3))
    assert config["score"] == config["metrics"]["accuracy"]
    with pytest.raises(TrainingError, match=r"trainer.monitor must be one of .*, got 'nonsense'"):
        run(melody_root, tmp_path / "other", 3, "trainer.monitor=nonsense")


def test_a_ragged_valid_split_is_averaged_over_examples(melody_root: Path, tmp_path: Path) -> None:
    small = run(melody_root, tmp_path / "a", 3, "data.batch_size=5")
    large = run(melody_root, tmp_path / "b", 3, "data.batch_size=5")
    assert small == large
    trained = load(tmp_path / "a")
    dataset = WindowDataset(melody_root, "valid", 40)
    with torch.no_grad():
        kls = [trained.vae.terms(batch.x).total_kl for batch in valid_loader(dataset, trained.codec, batch_size=1)]
    assert small["kl"] == pytest.approx(float(torch.cat(kls).mean()), rel=1e-4)


def test_the_last_checkpoints_and_the_best_are_kept(
    melody_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([1.0, 3.0, 2.0, 2.5, 0.5])
    monkeypatch.setattr(Validation, "_means", lambda self, interrupted: {"objective": -next(scores)})
    run(melody_root, tmp_path / "run", 5, "trainer.valid_every=1", "trainer.save_every=1", "trainer.keep_last=2")
    assert steps(tmp_path / "run") == [2, 4, 5]
    assert load(tmp_path / "run").path.name == "step-000000002"


def test_the_averaged_weights_are_those_validated_kept_and_used(melody_root: Path, plain: Path, tmp_path: Path) -> None:
    metrics = run(melody_root, tmp_path / "run", 6, "trainer.ema=0.3", "trainer.save_every=1")
    expected: dict[str, torch.Tensor] = {}
    for step in range(1, 7):
        raw = {
            name.removeprefix("raw."): value
            for name, value in tensors(tmp_path / "run", step, "training.safetensors").items()
            if name.startswith("raw.")
        }
        assert all(torch.equal(raw[name], value) for name, value in tensors(plain, step).items())
        decay = {1: 0, 2: 2 / 11, 3: 3 / 12}.get(step, 0.3)  # the first steps count for less
        expected = {name: decay * expected.get(name, value) + (1 - decay) * value for name, value in raw.items()}
        averaged = tensors(tmp_path / "run", step)
        assert averaged.keys() == expected.keys()
        for name, value in averaged.items():
            torch.testing.assert_close(value, expected[name])
    unaveraged = checkpoint.read_config(step_path(plain, 6))["metrics"]
    assert metrics["objective"] != unaveraged["objective"]
    trained = load(step_path(tmp_path / "run", 6))
    dataset = WindowDataset(melody_root, "valid", 40)
    with torch.no_grad():
        kls = [trained.vae.terms(batch.x).total_kl for batch in valid_loader(dataset, trained.codec, batch_size=8)]
    assert metrics["kl"] == pytest.approx(float(torch.cat(kls).mean()), rel=1e-4)


def test_patience_ends_a_run_that_gets_no_better(
    melody_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    scores = iter([1.0, 0.5, 2.0, 1.5, math.nan, 3.0])
    monkeypatch.setattr(Validation, "_means", lambda self, interrupted: {"objective": -next(scores)})
    run(melody_root, tmp_path / "run", 99, "trainer.patience=2", "trainer.valid_every=2")
    assert steps(tmp_path / "run")[-1] == 10  # 0.5 was one without a better one, and then 2.0 was better
    assert load(tmp_path / "run").path.name == "step-000000006"
    assert "ended at step 10 of 99: 2 validations without a better one (trainer.patience)" in caplog.text
    assert json.loads((step_path(tmp_path / "run", 10) / "config.json").read_text())["score"] is None


def poison(monkeypatch: pytest.MonkeyPatch, value: float, where: str, *steps: int) -> None:
    """Make the loss, or the gradient alone, what it must not be in these steps."""
    forward = TrainingStep.forward
    calls = -1  # of which the first is the rehearsal, before any step

    def poisoned(self: TrainingStep, *arguments: Any) -> Loss:
        nonlocal calls
        calls += 1
        loss, metrics = forward(self, *arguments)
        if calls not in steps:
            return Loss(loss, metrics)
        if where == "loss":
            return Loss(loss.detach() * 0 + value + 0 * loss, metrics)
        loss.register_hook(lambda gradient: gradient * value)
        return Loss(loss * 1.0, metrics)

    monkeypatch.setattr(TrainingStep, "forward", poisoned)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_stops_before_the_optimizer_step(
    where: str, value: float, melody_root: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, value, where, 5)
    with pytest.raises(TrainingError, match=rf"^step 5: the {where} is not finite .* first windows of the batch \[\d+"):
        run(melody_root, tmp_path / "run", 6, "trainer.save_every=1")
    newest = checkpoint.last(tmp_path / "run")
    assert newest is not None
    assert newest.name == "step-000000004"
    assert weights(tmp_path / "run", 4) == weights(plain, 4)
    assert all(tensor.isfinite().all() for tensor in tensors(tmp_path / "run", 4).values())


def test_a_few_steps_that_are_not_finite_can_be_passed_over_and_counted(
    melody_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    poison(monkeypatch, math.nan, "loss", 1, 5, 6)
    with pytest.raises(TrainingError, match=r"step 6: the loss is not finite .*; 2 were skipped before"):
        run(melody_root, tmp_path / "run", 13, "trainer.save_every=1", "trainer.skip_nonfinite=2", "trainer.ema=0.9")
    assert steps(tmp_path / "run") == [1, 2, 3, 4, 5]
    for step, skipped in ((1, 1), (4, 1), (5, 2)):
        assert position(tmp_path / "run", step)["skipped"] == skipped
    assert weights(tmp_path / "run", 5) == weights(tmp_path / "run", 4)
    assert weights(tmp_path / "run", 4) != weights(tmp_path / "run", 3)
    assert "step 5: the loss is not finite" in caplog.text
    assert "(2 of at most 2)" in caplog.text
    assert curve(tmp_path / "run", "train/skipped_steps")[-1] == (5, 2.0)
    assert [step for step, _ in curve(tmp_path / "run")] == [2, 3, 4]


def test_weights_that_are_not_finite_are_never_saved(
    melody_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer._step

    def broken(self: Trainer, *arguments: Any) -> Any:
        reports = step(self, *arguments)
        if self.progress.step == 3:
            with torch.no_grad():
                self.vae.decoder.get_parameter("output.bias")[0] = math.inf
        return reports

    monkeypatch.setattr(Trainer, "_step", broken)
    with pytest.raises(TrainingError, match=r"step 3: decoder.output.bias is not finite; the last checkpoint stands"):
        run(melody_root, tmp_path / "run", 13, "trainer.save_every=1")
    assert steps(tmp_path / "run") == [1, 2]


def test_fewer_windows_than_a_batch_train_with_a_warning(
    melody_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(melody_root, tmp_path / "run", 2, "data.limit=3", "data.batch_size=64")
    assert "the train split has 3 windows, fewer than data.batch_size=64" in caplog.text


@pytest.mark.parametrize("parts", [None, ["encoder"], ["decoder", "prior"]])
def test_a_run_begins_with_another_ones_weights(
    parts: list[str] | None, melody_root: Path, plain: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    begins = [f"init_from={plain}@last", *([f"init_parts=[{','.join(parts)}]"] if parts else []), "seed=5"]
    still = ["optimizer.lr=1e-30", "trainer.save_every=1"]
    run(melody_root, tmp_path / "run", 1, *begins, *still)
    run(melody_root, tmp_path / "other", 1, "seed=5", *still)
    ours, theirs, untouched = (
        tensors(folder, step) for folder, step in ((tmp_path / "run", 1), (plain, 6), (tmp_path / "other", 1))
    )
    for name in ours:
        source = theirs if parts is None or name.split(".")[0] in parts else untouched
        assert torch.equal(ours[name], source[name])
        assert not torch.equal(theirs[name], untouched[name])
    chosen = ", ".join(parts or ["encoder", "decoder", "prior"])
    assert f"begins with {chosen} of {step_path(plain, 6)}" in caplog.text
    run(melody_root, tmp_path / "run", 2, *begins, *still, "resume=auto")  # goes on with its own weights
    assert steps(tmp_path / "run") == [1, 2]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.hidden_dim=9"],
            r"does not fit: decoder.initial_state.bias is \[16\] there and \[18\] here; init_parts=",
        ),
        (["model.num_layers=2"], r"does not fit: decoder.initial_state.bias is \[16\] there and \[32\] here"),
        (["init_parts=[decoder,codec]"], r"init_parts must be of encoder, decoder, prior, got 'codec'"),
        (["init_parts=encoder"], r"init_parts must be a list such as \[encoder,decoder\], got 'encoder'"),
        (
            ["init_from=/nowhere"],
            r"init_from=/nowhere has no weights to begin with \(checkpoint /nowhere: no such file or directory\)",
        ),
    ],
)
def test_a_beginning_that_does_not_fit_is_refused(
    overrides: list[str], message: str, melody_root: Path, plain: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run(melody_root, tmp_path / "run", 1, f"init_from={plain}", *overrides)
    assert not (tmp_path / "run").exists()


def test_a_part_that_fits_can_begin_a_model_whose_rest_does_not(melody_root: Path, plain: Path, tmp_path: Path) -> None:
    run(melody_root, tmp_path / "run", 1, f"init_from={plain}", "init_parts=[encoder]", "model.hidden_dim=9")
    assert steps(tmp_path / "run") == [1]


def bfloat16_lstm_works() -> bool:
    try:
        with torch.autocast("cpu", torch.bfloat16):
            nn.LSTM(4, 4)(torch.zeros(1, 1, 4))[0].sum().backward()
    except RuntimeError:
        return False
    return True


def test_a_precision_this_machine_cannot_use_is_one_clear_line(melody_root: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available() or bfloat16_lstm_works():
        run(melody_root, tmp_path / "run", 1, "trainer.precision=bf16-mixed")
        assert {tensor.dtype for tensor in tensors(tmp_path / "run", 1).values()} == {torch.float32}
        return
    with pytest.raises(
        ValueError, match=r"^trainer.precision=bf16-mixed does not work .*; use trainer.precision=32-true$"
    ):
        run(melody_root, tmp_path / "run", 1, "trainer.precision=bf16-mixed")
    assert not (tmp_path / "run").exists()


def test_a_precision_fails_in_one_line_whatever_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refuses(nn.Module):
        def forward(self, x: torch.Tensor, progress: float) -> Loss:
            raise RuntimeError("could not create a primitive\nand more")

    with pytest.raises(ValueError, match=r"trainer.precision=bf16-mixed .* \(cpu: could not create a primitive\); use"):
        Engine(1, "bf16-mixed").rehearse(Refuses(), torch.zeros(1))
    with pytest.raises(ValueError, match=r"trainer.precision must be one of .*, got '8-bit'"):
        Engine(1, "8-bit")


def test_double_precision_is_double(melody_root: Path, tmp_path: Path) -> None:
    run(melody_root, tmp_path / "run", 1, "trainer.precision=64-true")
    assert {tensor.dtype for tensor in tensors(tmp_path / "run", 1).values()} == {torch.float64}
    assert "64-true" in PRECISIONS


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo looks at every one
def test_a_compiled_run_has_the_same_names_and_nearly_the_same_weights(
    melody_root: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # tracing without a C++ compiler
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the checks of shapes cannot be traced
    run(melody_root, tmp_path / "run", 6, "trainer.compile=true")
    compiled, expected = tensors(tmp_path / "run", 6), tensors(plain, 6)
    assert compiled.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-3, atol=1e-4)


def test_the_deterministic_switch_switches(melody_root: Path, plain: Path, tmp_path: Path) -> None:
    try:
        run(melody_root, tmp_path / "run", 6, "trainer.deterministic=true")
        assert torch.are_deterministic_algorithms_enabled()
        assert weights(tmp_path / "run", 6) == weights(plain, 6)  # a CPU is, anyway
    finally:
        torch.use_deterministic_algorithms(False)
    run(melody_root, tmp_path / "other", 1)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.filterwarnings("ignore:Profiler")
def test_the_profile_preset_writes_a_trace_of_a_few_steps(melody_root: Path, tmp_path: Path) -> None:
    run(melody_root, tmp_path / "run", 5, "debug=profile", "trainer.profile=2")
    (trace,) = (tmp_path / "run").glob("trace-*.json")
    events = json.loads(trace.read_text())["traceEvents"]
    recorded = {event["name"] for event in events if event.get("name", "").startswith("ProfilerStep")}
    assert recorded == {"ProfilerStep#2", "ProfilerStep#3"}


def test_tensorboard_holds_scalars_media_and_the_projector(plain: Path) -> None:
    events = EventAccumulator(str(plain / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"train/loss", "train/kl", "train/tokens_per_second", "valid/elbo", "valid/note_f1"} <= set(tags["scalars"])
    assert {"valid/truth", "valid/reconstruction", "valid/sample"} <= set(tags["images"])
    assert {"valid/reconstruction_audio", "valid/sample_audio"} <= set(tags["audio"])
    assert not set(tags["images"]) & set(tags["audio"])  # of one tag TensorBoard would show the pictures alone
    assert (plain / "tensorboard" / "projector_config.pbtxt").is_file()


def test_the_configuration_and_its_hyperparameters_are_in_the_same_run(plain: Path) -> None:
    assert len(list((plain / "tensorboard").rglob("events*"))) == 1  # no second run beside it
    events = EventAccumulator(str(plain / "tensorboard"))
    events.Reload()
    (text,) = events.Tensors("run/config/text_summary")
    assert "model.latent_dim: 4" in text.tensor_proto.string_val[0].decode()
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    shown = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert shown["model.latent_dim"].number_value == 4
    assert shown["optimizer.lr"].number_value == 2e-3
    assert shown["experiment"].string_value == "melody"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 0}, "trainer.max_steps must be a positive int, got 0"),
        ({"max_steps": "many"}, "trainer.max_steps must be a positive int, got 'many'"),
        ({"clip_norm": -1}, "trainer.clip_norm must be a positive number, got -1"),
        ({"clip_norm": math.nan}, "trainer.clip_norm must be a positive number, got nan"),
        ({"max_minutes": 0}, "trainer.max_minutes must be a positive number or null, got 0"),
        ({"accumulate": 0}, "trainer.accumulate must be a positive int, got 0"),
        ({"ema": 1.0}, "trainer.ema must be a number between 0 and 1, or null, got 1.0"),
        ({"patience": 0}, "trainer.patience must be a positive int or null, got 0"),
        ({"skip_nonfinite": -1}, "trainer.skip_nonfinite must be an int >= 0, got -1"),
        ({"profile": True}, "trainer.profile must be an int >= 0, got True"),
        ({"compile": "yes"}, "trainer.compile must be true or false, got 'yes'"),
    ],
)
def test_trainer_options_are_checked_by_the_key_a_person_typed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainerOptions(**{"max_steps": 1, **options})


def test_an_option_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="trainer has no option 'max_step'; it has: accumulate, "):
        trainer_options({"max_step": 1})
