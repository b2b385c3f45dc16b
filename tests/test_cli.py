"""The command: every subcommand in every modality from a checkpoint alone, and one line for every mistake."""

import json
import math
import shutil
import subprocess
import sys
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pretty_midi
import pytest
import torch
from PIL import Image

import seqvae
from seqvae.cli import main
from tests.helpers.worlds import MODEL, Run, World

SUFFIX = {"melody": ".mid", "fashion": ".png"}

GetRun = Callable[[str], Run]
GetWorld = Callable[[str], World]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def ok(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def refused(capsys: Capture, *arguments: object) -> str:
    """Return the one line of a command that failed as it should."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.strip().splitlines()) == 1, err
    assert "Traceback" not in err
    return err


def made(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def outputs(run: Run, capsys: Capture, *arguments: object) -> list[bytes]:
    """Return each item a command wrote, in order, without its pictures of all of them, sounds and originals."""
    capsys.readouterr()
    if run.world.experiment == "text":
        ok(*arguments)
        return [line.encode() for line in capsys.readouterr().out.splitlines()]
    shutil.rmtree("out", ignore_errors=True)
    ok(*arguments, "-o", "out")
    suffix = SUFFIX[run.world.experiment]
    return [
        content for name, content in made("out").items() if "-" in name and name.endswith(suffix) and name[0] != "o"
    ]


def parse(path: Path) -> None:
    """Read a file as what its ending says it is."""
    if path.suffix == ".mid":
        pretty_midi.PrettyMIDI(str(path))
    elif path.suffix == ".png":
        with Image.open(path) as picture:
            picture.load()
            assert min(picture.size) >= 8
    else:
        assert path.suffix == ".wav"
        with wave.open(str(path)) as sound:
            assert sound.getnchannels() == 1


@pytest.mark.parametrize("samples", [0, 3])
def test_evaluate_prints_finite_numbers_as_json(run: Run, samples: int, capsys: Capture) -> None:
    ok("evaluate", run.path, "--json", "--importance-samples", samples)
    report = json.loads(capsys.readouterr().out)
    assert report["split"] == "test"
    metrics = report["metrics"]
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["elbo"] == pytest.approx(metrics["log_likelihood"] - metrics["kl"], rel=1e-4)
    assert ("nll" in metrics) == (samples > 0)
    for scores in report["reconstruction"].values():
        assert all(math.isfinite(value) for value in scores.values())


def test_evaluate_prints_a_table_of_the_same_numbers(run: Run, capsys: Capture) -> None:
    ok("evaluate", run.path, "--split", "valid", "--limit", 2)
    table = capsys.readouterr().out
    ok("evaluate", run.path, "--split", "valid", "--limit", 2, "--json")
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert metrics["examples"] == 2
    shown = {line.split()[0]: float(line.split()[1]) for line in table.splitlines()[1:] if line.split()[0] in metrics}
    assert shown["elbo"] == pytest.approx(metrics["elbo"], rel=1e-4)
    assert shown.keys() == {name for name in metrics if not name.endswith("_error")}


def test_sample_writes_as_many_items_as_asked(run: Run, capsys: Capture) -> None:
    assert len(outputs(run, capsys, "sample", run.path, "-n", 3)) == 3
    if run.world.experiment != "text":
        for path in Path("out").iterdir():
            parse(path)


def test_text_is_printed_or_written_as_lines(get_run: GetRun, capsys: Capture) -> None:
    ok("sample", get_run("text").path, "-n", 4, "-o", "out.txt")
    assert capsys.readouterr().out == ""
    ok("sample", get_run("text").path, "-n", 4, "-o", "-")
    assert capsys.readouterr().out == Path("out.txt").read_text(encoding="utf-8")
    assert Path("out.txt").read_text(encoding="utf-8").count("\n") == 4
    assert [path.name for path in Path().iterdir()] == ["out.txt"]


def test_melodies_come_with_a_tune_of_all_a_picture_and_sound(get_run: GetRun) -> None:
    ok("sample", get_run("melody").path, "-n", 2, "-o", "out")
    assert list(made("out")) == ["sample-1.mid", "sample-2.mid", "sample.mid", "sample.png", "sample.wav"]


def test_the_seed_decides_the_samples(run: Run, capsys: Capture) -> None:
    first, again, other = (outputs(run, capsys, "sample", run.path, "-n", 4, "--seed", seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("temperature", [None, 0.5])
def test_reconstruct_gives_an_item_for_each_input(run: Run, temperature: float | None, capsys: Capture) -> None:
    more = [] if temperature is None else ["--temperature", temperature]
    assert len(outputs(run, capsys, "reconstruct", run.path, *run.world.inputs, "test:1", *more)) == 3
    if run.world.experiment != "text":
        assert sum(name.startswith("original-") for name in made("out")) == 3
        for path in Path("out").iterdir():
            parse(path)


@pytest.mark.parametrize("method", ["slerp", "lerp"])
def test_both_ends_of_an_interpolation_are_reconstructions(run: Run, method: str, capsys: Capture) -> None:
    a, b = run.world.inputs
    way = outputs(run, capsys, "interpolate", run.path, a, b, "--steps", 5, "--method", method)
    assert len(way) == 5
    assert way[:1] == outputs(run, capsys, "reconstruct", run.path, a)
    assert way[-1:] == outputs(run, capsys, "reconstruct", run.path, b)


def test_encode_writes_a_row_and_a_name_a_window(run: Run) -> None:
    ok("encode", run.path, *run.world.inputs, "test:0", "-o", "z.npy")
    rows = np.load("z.npy", allow_pickle=False)
    names = Path("z.names.txt").read_text(encoding="utf-8").splitlines()
    assert rows.shape == (len(names), 4)
    assert names[-1] == "test:0"
    assert np.isfinite(rows).all()
    ok("encode", run.path, run.world.inputs[0], "-o", "one.npy")
    one = np.load("one.npy", allow_pickle=False)
    np.testing.assert_allclose(rows[: len(one)], one, rtol=1e-4, atol=1e-5)


def test_a_file_of_sentences_gives_a_row_a_line(get_run: GetRun) -> None:
    Path("lines.txt").write_text("the cat saw a ring\n\na dog ate the bread\n", encoding="utf-8")
    ok("encode", get_run("text").path, "@lines.txt", "-o", "z.npy")
    assert Path("z.names.txt").read_text(encoding="utf-8") == "@lines.txt:1\n@lines.txt:2\n"


def test_info_tells_what_a_checkpoint_holds(run: Run, capsys: Capture) -> None:
    ok("info", run.path, "--json")
    facts = json.loads(capsys.readouterr().out)
    assert facts["experiment"] == run.world.experiment
    assert facts["verified"] is True
    assert facts["model"]["latent_dim"] == 4
    assert facts["parameters"]["encoder"] > 0
    ok("info", f"{run.path}@last")
    assert "step           4" in capsys.readouterr().out


def test_list_shows_every_experiment(capsys: Capture) -> None:
    ok("list")
    assert set(MODEL) <= set(capsys.readouterr().out.split())


def test_train_help_lists_the_experiments(capsys: Capture) -> None:
    ok("train", "--help")
    assert set(MODEL) <= set(capsys.readouterr().out.split())


def test_version(capsys: Capture) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"seqvae {seqvae.__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["sample", "--help"], ["list"], ["train", "--help"]])
def test_help_imports_no_torch(arguments: list[str]) -> None:
    code = f"""
import sys
from seqvae.cli import main
try:
    code = main({arguments!r})
except SystemExit as end:
    code = end.code
assert code == 0, code
heavy = {{"torch", "numpy", "hydra", "pretty_midi"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_checkpoint_works_alone(run: Run, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = tmp_path / "alone" / "model"
    shutil.copytree(run.path / "checkpoints" / "step-000000004", alone)
    config = json.loads((alone / "config.json").read_text(encoding="utf-8"))
    assert config["data"]["root"] == str(run.world.root)
    hidden = run.world.root.with_name("hidden")
    run.world.root.rename(hidden)
    try:
        a, b = run.world.inputs
        outputs(run, capsys, "sample", alone, "-n", 1)
        outputs(run, capsys, "interpolate", alone, a, b)
        outputs(run, capsys, "reconstruct", alone, a)
        ok("encode", alone, a, "-o", "z.npy")
        ok("info", alone)
        for command in (["evaluate", alone], ["encode", alone, "test:0", "-o", "z.npy"]):
            assert "say where it is with --data ROOT" in refused(capsys, *command)
        ok("evaluate", alone, "--data", hidden)
        ok("encode", alone, "test:0", "-o", "z.npy", "--data", hidden)
    finally:
        hidden.rename(run.world.root)


def test_another_dataset_is_refused(get_run: GetRun, get_world: GetWorld, capsys: Capture) -> None:
    error = refused(capsys, "evaluate", get_run("text").path, "--data", get_world("melody").root)
    assert "is not the dataset this checkpoint was trained on" in error


def test_a_damaged_checkpoint_is_named(run: Run, tmp_path: Path, capsys: Capture) -> None:
    copy = Path(shutil.copytree(run.path / "checkpoints" / "step-000000004", tmp_path / "copy"))
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-5] ^= 0x10
    (copy / "model.safetensors").write_bytes(content)
    error = refused(capsys, "info", copy)
    assert str(copy) in error
    assert "model.safetensors is not what was written" in error


def test_an_unreadable_input_is_named(run: Run, capsys: Capture) -> None:
    error = refused(capsys, "reconstruct", run.path, run.world.broken, "-o", "out")
    assert Path(run.world.broken).name in error
    assert not Path("out").exists()


TEXT = "the cat saw a ring"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "nowhere"], "checkpoint nowhere: no such file or directory"),
        (["info", "."], "neither a checkpoint"),
        (["info", "{run}@newest"], "@newest names no checkpoint"),
        (["info", "{run}", "--device", "toaster"], "device 'toaster' cannot be used"),
        (["info", "{run}", "--device", "cuda:99"], "device 'cuda:99' cannot be used"),
        (["sample", "{run}", "-n", "0"], "n must be positive, got 0"),
        (["sample", "{run}", "-n", "-3"], "n must be positive, got -3"),
        (["sample", "{run}", "--temperature", "0"], "temperature must be"),
        (["sample", "{run}", "--temperature", "nan"], "temperature must be"),
        (["sample", "{run}", "-o", "nowhere/out.txt"], "nowhere"),
        (["reconstruct", "{run}", "a " * 100], "tokens, max_length is 24"),
        (["reconstruct", "{run}", "a" * 100_000], "too many for max_length"),
        (["reconstruct", "{run}", ""], "holds no text"),
        (["reconstruct", "{run}", "@nowhere.txt"], "nowhere.txt cannot be read"),
        (["reconstruct", "{run}", "test:9999"], "test:9999: the test split has windows 0 to"),
        (["interpolate", "{run}", TEXT, TEXT, "--steps", "1"], r"steps must be at least 2 (both ends count), got 1"),
        (["encode", "{run}", TEXT, "-o", "nowhere/z.npy"], "nowhere"),
        (["evaluate", "{run}", "--limit", "0"], "limit must be a positive int, got 0"),
        (["evaluate", "{run}", "--rows", "0"], "rows must be"),
        (["evaluate", "{run}", "--importance-samples", "-1"], "importance_samples must be"),
        (["evaluate", "{run}", "--data", "."], "is not a prepared dataset"),
        (["prepare", "midi", "empty", "--root", "d"], "no files"),
        (["prepare", "image", "empty", "--root", "d"], "no files"),
        (["prepare", "text", "empty", "--root", "d"], "no files"),
        (["prepare", "text", "nowhere", "--root", "d"], "no such file or folder: nowhere"),
        (["prepare", "midi", "webpages", "--root", "d", "--engine", "sequential"], "every item was rejected"),
        (["prepare", "midi", "webpages", "--root", "d", "--bars", "0"], "bars must be a positive int, got 0"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str, get_run: GetRun, capsys: Capture) -> None:
    Path("empty").mkdir()
    Path("webpages").mkdir()
    Path("webpages/tune.mid").write_text("<html>404</html>")
    error = refused(capsys, *(argument.format(run=get_run("text").path) for argument in arguments))
    assert message in error
    assert error.startswith(f"seqvae {arguments[0]}: ")


def test_items_that_are_files_need_a_directory(get_run: GetRun, capsys: Capture) -> None:
    assert "-o OUT is needed" in refused(capsys, "sample", get_run("melody").path, "-n", 1)


def test_train_trains_and_refuses_a_run_directory_in_use(get_world: GetWorld, capsys: Capture) -> None:
    command = ["train", *get_world("text").overrides, "debug=smoke"]
    ok(*command)
    assert "is already in use; go on with resume=auto" in refused(capsys, *command)
    ok(*command, "resume=auto", "trainer.max_steps=5")
    assert Path("runs/smoke-text/checkpoints/step-000000005").is_dir()
    ok(*command, "resume=auto", "trainer.max_steps=5")  # nothing left to do
    assert "cannot change" in refused(capsys, "train", "resume=runs/smoke-text", "model.latent_dim=5")
    ok("train", "resume=runs/smoke-text", "trainer.max_steps=6")
    assert Path("runs/smoke-text/checkpoints/step-000000006").is_dir()
    error = refused(capsys, *command, "resume=auto", "model.latent_dim=5")
    assert "model.latent_dim: 4 -> 5" in error


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["experiment=nowhere"], "nowhere"),
        (["model.latent_dimm=3"], "latent_dimm"),
        (["trainer.max_step=3"], "max_step"),
        (["model.latent_dim=abc"], "latent_dim must be a positive int, got 'abc'"),
        (["model.latent_dim=0"], "latent_dim must be a positive int, got 0"),
        (["trainer.max_steps=abc"], "trainer.max_steps must be a positive int, got 'abc'"),
        (["trainer.precision=8"], "trainer.precision must be one of"),
        (["trainer.devices=none"], "trainer.devices must be a positive int or auto"),
        (["trainer.monitor=beauty"], "trainer.monitor must be one of"),
        (["data.root=nowhere"], "is not a prepared dataset"),
        (["data.batch_size=0"], "batch_size must be"),
        (["data.batch_size=abc"], "batch_size must be"),
        (["data.limit=0"], "data.limit must be a positive int, got 0"),
        (["+data.view.flip=true"], "has no view option 'flip'"),
        (["model=conv"], "seqvae.models.conv does not fit this data: it takes no vocab_size"),
        (["model._target_=os.system"], "'os.system' cannot be built"),
        (["optimizer.lr=-1"], "learning rate"),
        (["resume=nowhere"], "is no run directory"),
        (["run_dir=file/run"], "file"),
        (["=="], "=="),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, list) else "",
)
def test_a_mistake_in_training_is_one_line_and_touches_nothing(
    overrides: list[str], message: str, get_world: GetWorld, capsys: Capture
) -> None:
    Path("file").touch()
    world = get_world("text")
    sizes = [] if "model=conv" in overrides else world.overrides[2:]
    error = refused(capsys, "train", *world.overrides[:2], *sizes, "debug=smoke", *overrides)
    assert error.startswith("seqvae train: ")
    assert message.lower() in error.lower()
    if "monitor" not in overrides[0]:  # known only after the first validation
        assert [path.name for path in Path().iterdir()] == ["file"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_command_runs_on_the_gpu_too(run: Run, capsys: Capture) -> None:
    a, b = run.world.inputs
    for command in (["sample", run.path], ["reconstruct", run.path, a], ["interpolate", run.path, a, b]):
        assert outputs(run, capsys, *command, "--device", "cuda")
    ok("evaluate", run.path, "--importance-samples", 2, "--device", "cuda")
    ok("encode", run.path, a, "-o", "z.npy", "--device", "cuda")
