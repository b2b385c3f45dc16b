"""The command: every subcommand in every modality from a checkpoint alone, and one line for every mistake."""

import argparse
import inspect
import json
import math
import os
import shutil
import subprocess
import sys
import wave
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pretty_midi
import pytest
import torch
from PIL import Image
from sacrebleu import sentence_bleu
from safetensors import safe_open
from safetensors.torch import save

import seqvae.latent
from seqvae.cli import main
from seqvae.cli.prepare import add as add_prepare
from seqvae.cli.writing import shown_line, write_lines
from seqvae.data import SentencePieceTokenizer
from seqvae.data.dataset import WindowDataset
from seqvae.data.image import prepare_image
from seqvae.data.midi import prepare_midi
from seqvae.data.text import prepare_text
from seqvae.harness.config import load
from seqvae.harness.scores import weights_digest
from seqvae.harness.vectors import load_vector, pack_vector
from tests.helpers.commands import ok, refused
from tests.helpers.worlds import MODEL, Run, World

SUFFIX = {"melody": ".mid", "fashion": ".png"}

GetRun = Callable[[str], Run]
GetWorld = Callable[[str], World]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


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
    elif path.suffix == ".html":
        assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    elif path.suffix == ".abc":
        assert path.read_text(encoding="utf-8").startswith("X:1\nT:")
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
    together = [f"sample.{ending}" for ending in ("abc", "html", "mid", "png", "wav")]
    assert list(made("out")) == ["sample-1.mid", "sample-2.mid", *together]


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
    ok("encode", run.path, *reversed(run.world.inputs), "-o", "turned.npy")  # in other company
    turned = np.load("turned.npy", allow_pickle=False)
    half = len(turned) // 2
    np.testing.assert_allclose(np.roll(turned, half, axis=0), rows[: len(turned)], rtol=1e-4, atol=1e-5)
    ok("encode", run.path, run.world.inputs[0], "-o", "one.npy")
    one = np.load("one.npy", allow_pickle=False)
    np.testing.assert_allclose(rows[: len(one)], one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "choice", [["--top-k", 3], ["--top-p", 0.7], ["--beam", 3], ["--beam", 1], ["--temperature", 0.5]]
)
def test_every_way_of_decoding_gives_items(choice: list[object], get_run: GetRun, capsys: Capture) -> None:
    for name in ("melody", "text"):
        run = get_run(name)
        a, b = run.world.inputs
        for command in (["sample", run.path, "-n", 3], ["reconstruct", run.path, a, b, "test:0"]):
            assert len(outputs(run, capsys, *command, *choice)) == 3
        assert len(outputs(run, capsys, "interpolate", run.path, a, b, "--steps", 3, *choice)) == 3
    if choice == ["--beam", 1]:
        greedy = outputs(run, capsys, "reconstruct", run.path, a, b)
        assert outputs(run, capsys, "reconstruct", run.path, a, b, *choice) == greedy


def test_a_length_penalty_is_for_text(get_run: GetRun, capsys: Capture) -> None:
    text, melody = get_run("text"), get_run("melody")
    ok("sample", text.path, "--beam", 3, "--length-penalty", 1)
    error = refused(capsys, "sample", melody.path, "--beam", 3, "--length-penalty", 1, "-o", "out")
    assert "length_penalty is for sequences that end by themselves, got 1.0" in error


def test_pixels_are_not_decoded_token_by_token(get_run: GetRun, capsys: Capture) -> None:
    for choice in (["--top-k", 3], ["--top-p", 0.5], ["--beam", 2]):
        error = refused(capsys, "sample", get_run("fashion").path, *choice, "-o", "out")
        assert "pixels are independent given z" in error


def test_unique_samples_are_all_different(run: Run, capsys: Capture) -> None:
    plain = outputs(run, capsys, "sample", run.path, "-n", 40, "--temperature", 0.01)
    unique = outputs(run, capsys, "sample", run.path, "-n", 40, "--temperature", 0.01, "--unique")
    assert len(set(plain)) < len(plain)
    assert len(set(unique)) == len(unique) <= 40
    assert set(plain) <= set(unique)


def test_what_was_dropped_is_counted(get_run: GetRun, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seqvae.latent.sampling, "MOST_DRAWS", 1)
    ok("sample", get_run("text").path, "-n", 40, "--unique", "--novel", "--temperature", 0.01)
    out, err = capsys.readouterr()
    found = len(out.splitlines())
    assert found < 40
    assert f"dropped {40 - found} repeats and 0 copies of training items; only {found} of 40 found" in err


def test_copies_of_training_items_are_dropped(run: Run, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    train = WindowDataset(run.world.root, "train")

    def copying(
        vae: object, n: int, strategy: object, keep: Callable[[torch.Tensor], bool], law: object
    ) -> Iterator[torch.Tensor]:
        return (window for window in (train[place] for place in range(n)) if keep(window))

    monkeypatch.setattr(seqvae.latent, "stream", copying)
    more = ["-o", "out"]
    ok("sample", run.path, "-n", 5, "--unique", *more)
    assert "0 copies" in capsys.readouterr().err
    ok("sample", run.path, "-n", 5, "--novel", *more)
    assert "dropped 0 repeats and 5 copies of training items; only 0 of 5 found" in capsys.readouterr().err


def test_a_file_of_lines_is_whole_or_not_there() -> None:
    def broken() -> Iterator[str]:
        yield "one"
        assert [path.name for path in Path().iterdir()] == [f".out.txt.{os.getpid()}.tmp"]
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        write_lines(broken(), "out.txt")
    assert not list(Path().iterdir())


def test_lines_are_written_as_they_come(capsys: Capture) -> None:
    def watched() -> Iterator[str]:
        yield "one"
        assert capsys.readouterr().out == "one\n"
        yield "two"

    write_lines(watched(), "-")


def test_an_item_is_one_line_that_no_terminal_obeys() -> None:
    assert (
        shown_line("a\tna\u00efve \u05e9 \U0001f469\u200d\U0001f680")
        == "a\tna\u00efve \u05e9 \U0001f469\u200d\U0001f680"
    )
    assert shown_line("a\nb\r\nc \x1b[2J \x00 \x9b") == "a b c \ufffd[2J \ufffd \ufffd"


def test_no_command_that_writes_lines_can_break_one_or_move_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["-1.00\ta\nb", "\x1b[2J"]
    write_lines(lines, "-")
    write_lines(lines, str(tmp_path / "lines.txt"))
    assert capsys.readouterr().out == (tmp_path / "lines.txt").read_text() == "-1.00\ta b\n\ufffd[2J\n"


@pytest.mark.parametrize(
    ("arguments", "buffered"),
    [
        ("completion bash", True),
        ("list", True),
        ("list", False),
        ("--help", True),
        ("sample --help", True),
        ("train --help", True),
        ("train --help", False),
        ("train --cfg all", False),
    ],
)
def test_a_reader_that_leaves_is_no_error(arguments: str, buffered: bool) -> None:
    code = f"import sys; from seqvae.cli import main; sys.exit(main({arguments.split()}))"
    reader, writer = os.pipe()
    os.close(reader)
    try:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        command = [sys.executable, *([] if buffered else ["-u"]), "-c", code]
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=240, env=environment)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def vector(run: Run, *more: object) -> str:
    """Make an attribute vector of the run's two inputs."""
    a, b = run.world.inputs
    ok("attribute", run.path, "--with", a, "--without", b, "-o", "v.safetensors", *more)
    return "v.safetensors"


def test_an_edit_of_strength_zero_is_the_reconstruction(run: Run, capsys: Capture) -> None:
    a, b = run.world.inputs
    v = vector(run)
    plain = outputs(run, capsys, "reconstruct", run.path, a, b)
    assert outputs(run, capsys, "edit", run.path, a, b, "--attribute", v, "--strength", 0) == plain
    rows = outputs(run, capsys, "edit", run.path, a, b, "--attribute", v, "--strength", -30, 0, 30)
    assert len(rows) == 6
    assert [rows[1], rows[4]] == plain
    assert any(row != rows[1] for row in rows[:3])
    there = outputs(run, capsys, "edit", run.path, b, "--attribute", v)  # b + (a - b)
    assert there == plain[:1] or run.world.experiment == "melody"  # whose program and tempo are those of b
    if run.world.experiment != "text":
        for path in Path("out").iterdir():
            parse(path)


def test_strengths_and_grids_are_rows_and_columns_of_the_picture(get_run: GetRun) -> None:
    run = get_run("fashion")
    a, b = run.world.inputs
    ok("edit", run.path, a, b, "--attribute", vector(run), "--strength", -1, 0, 1, "-o", "out")
    ok("interpolate", run.path, a, b, b, a, "--grid", "4x3", "-o", "out")
    for name, rows in (("edit", 2), ("grid", 4)):
        with Image.open(f"out/{name}.png") as picture:
            assert picture.size == (3 * 98 - 2, rows * 98 - 2)


def test_the_opposite_vector_and_an_orthogonal_one(run: Run) -> None:
    a, b = run.world.inputs
    weights, latent_dim = weights_digest(run.path / "checkpoints" / "step-000000004"), 4
    plain = load_vector(Path(vector(run)), weights, latent_dim)
    ok("attribute", run.path, "--with", b, "--without", a, "-o", "w.safetensors")
    assert torch.equal(load_vector(Path("w.safetensors"), weights, latent_dim), -plain)
    ok("attribute", run.path, "--with", "test:0", "train:1", "--without", "test:all", "-o", "o.safetensors")
    ok("attribute", run.path, "--with", a, "--without", b, "--orthogonal-to", "o.safetensors", "-o", "p.safetensors")
    other, free = (load_vector(Path(f"{name}.safetensors"), weights, latent_dim) for name in "op")
    assert abs(float(plain @ other)) > 1e-4 * float(plain.norm() * other.norm())
    assert abs(float(free @ other)) < 1e-5 * float(free.norm() * other.norm())


def test_a_vector_tells_what_it_was_made_of(get_run: GetRun, capsys: Capture) -> None:
    run = get_run("fashion")
    capsys.readouterr()
    command = ["attribute", run.path, "--with", "train:label=lying", "--without", "train:label=0"]
    ok(*command, "--limit", 9, "-o", "v.safetensors")
    assert "with: 9 of 14 items used, 9 windows\nwithout: 9 of 14 items used" in capsys.readouterr().err
    with safe_open("v.safetensors", "pt") as file:
        facts = file.metadata()
    assert facts["weights"] == weights_digest(run.path / "checkpoints" / "step-000000004")
    assert (facts["with"], facts["with_items"], facts["without_windows"]) == ('["train:label=lying"]', "9", "9")
    assert "labels are standing, lying" in refused(capsys, *command[:3], "train:label=red", *command[4:], "-o", "w")
    error = refused(capsys, *command, "--limit", 0, "-o", "w")
    assert "limit must be positive, got 0" in error
    assert not Path("w").exists()


def test_a_label_is_the_windows_that_have_it(get_run: GetRun) -> None:
    run = get_run("fashion")
    ok("encode", run.path, "test:label=standing", "-o", "z.npy")
    labels = WindowDataset(run.world.root, "test").column("label")
    expected = [f"test:{place}" for place in (labels == 0).nonzero()[0]]
    assert Path("z.names.txt").read_text().split() == expected
    ok("encode", run.path, "test:label=0", "-o", "other.npy")
    assert Path("z.npy").read_bytes() == Path("other.npy").read_bytes()


def test_a_folder_is_all_its_files(get_run: GetRun, capsys: Capture) -> None:
    for name in ("melody", "fashion"):
        run = get_run(name)
        folder = Path(name)
        (folder / "more").mkdir(parents=True)
        for place, path in zip(("a", "more/b"), run.world.inputs, strict=True):
            shutil.copy(path, folder / f"{place}{SUFFIX[name]}")
        (folder / "notes.txt").write_text("no tune")
        ok("encode", run.path, folder, "-o", "z.npy")
        ok("encode", run.path, *run.world.inputs, "-o", "other.npy")
        assert Path("z.npy").read_bytes() == Path("other.npy").read_bytes()
        shutil.copy(run.world.broken, folder / f"c{SUFFIX[name]}")
        ok("encode", run.path, folder, "-o", "z.npy")  # many can do without one, which is named
        assert Path("z.npy").read_bytes() == Path("other.npy").read_bytes()
        error = refused(capsys, "encode", run.path, *run.world.inputs, run.world.broken, "-o", "w")
        assert Path(run.world.broken).name in error
        ok("attribute", run.path, "--with", folder, "--without", "test:0", "-o", "v")  # a set can do without one
        assert "with: 2 of 3 items used" in capsys.readouterr().err
        error = refused(capsys, "attribute", run.path, "--with", run.world.broken, "--without", folder, "-o", "w")
        assert Path(run.world.broken).name in error


@pytest.fixture
def _lines() -> None:
    """A file of six lines: two of them cannot be encoded, and one is empty."""
    text = f"\n\n{TEXT}\n{'a ' * 100}\na dog ate the bread\n{'b' * 100_000}\n\n"
    Path("lines.txt").write_text(text, encoding="utf-8")


@pytest.mark.usefixtures("_lines")
def test_a_file_can_do_without_lines_that_cannot_be_encoded(
    get_run: GetRun, capsys: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    run = get_run("text")
    ok("encode", run.path, "@lines.txt", "-o", "z.npy")
    told = "INPUT: 2 of 4 items cannot be encoded and are left out: @lines.txt:4, @lines.txt:6 (the first: 'a a"
    assert [message.startswith(told) for message in caplog.messages] == [True]
    assert Path("z.names.txt").read_text().splitlines() == ["@lines.txt:3", "@lines.txt:5"]
    ok("encode", run.path, TEXT, "a dog ate the bread", "-o", "other.npy")
    np.testing.assert_allclose(np.load("z.npy"), np.load("other.npy"), rtol=1e-5, atol=1e-6)
    assert len(outputs(run, capsys, "reconstruct", run.path, "@lines.txt")) == 2
    assert len(neighbors(capsys, run.path, "@lines.txt", "--corpus", "@lines.txt", "-k", 1)) == 2
    for command in (["encode", run.path, "-o", "w"], ["reconstruct", run.path], ["neighbors", run.path]):
        assert "tokens, max_length is 24" in refused(capsys, *command[:2], "@lines.txt", "a " * 100, *command[2:])


@pytest.mark.usefixtures("_lines")
def test_reconstructions_come_with_their_scores_in_a_table(get_run: GetRun, capsys: Capture) -> None:
    run = get_run("text")
    plain = [line.decode() for line in outputs(run, capsys, "reconstruct", run.path, "@lines.txt")]
    ok("reconstruct", run.path, "@lines.txt", "--scores", "-o", "scores.tsv")
    header, *rows = (line.split("\t") for line in Path("scores.tsv").read_text(encoding="utf-8").splitlines())
    assert header == ["input", "accuracy", "exact_match", "bleu", "log_likelihood", "sentence", "reconstruction"]
    table = [dict(zip(header, row, strict=True)) for row in rows]
    assert [row["input"] for row in table] == ["@lines.txt:3", "@lines.txt:5"]
    assert [row["sentence"] for row in table] == [TEXT, "a dog ate the bread"]
    assert [row["reconstruction"] for row in table] == plain
    trained = load(run.path)
    for row in table:
        (x,) = trained.codec.windows(row["sentence"])
        z = trained.vae.encoder(x.unsqueeze(0)).mean
        nats = trained.vae.decoder.log_prob(x.unsqueeze(0), z).item()
        assert float(row["log_likelihood"]) == pytest.approx(nats, rel=1e-3)
        assert float(row["bleu"]) == pytest.approx(
            sentence_bleu(row["reconstruction"], [row["sentence"]]).score, rel=1e-3, abs=1e-3
        )
    melody = get_run("melody")
    error = refused(capsys, "reconstruct", melody.path, melody.world.inputs[0], "--scores", "-o", "out")
    assert "--scores is a table of sentences" in error


def test_a_vector_of_another_model_is_refused(run: Run, get_run: GetRun, capsys: Capture) -> None:
    other = get_run("melody" if run.world.experiment == "text" else "text")
    v = vector(other)
    error = refused(capsys, "edit", run.path, run.world.inputs[0], "--attribute", v, "-o", "out")
    assert "v.safetensors was made with another model" in error
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such attribute vector: v"),
        (b"", "v cannot be read as an attribute vector"),
        (b"\x08\0\0\0\0\0\0\0notjson!", "v cannot be read as an attribute vector"),
        (save({"attribute": torch.zeros(4)}), "v is no attribute vector"),
        (save({"other": torch.zeros(4)}, {"weights": "0" * 64}), "v is no attribute vector"),
        (save({"attribute": torch.zeros(4, 2)}, {"weights": "0" * 64}), "v is no attribute vector"),
        (save({"attribute": torch.zeros(4)}, {"weights": "0" * 64}), "v was made with another model"),
        ("nan", "v holds numbers that are not finite"),
        ("longer", "v was made with another model (5 latent dimensions"),
    ],
)
def test_a_file_that_is_no_vector_of_ours_is_refused(
    content: bytes | str | None, message: str, get_run: GetRun, capsys: Capture
) -> None:
    run = get_run("text")
    weights = weights_digest(run.path / "checkpoints" / "step-000000004")
    made = {"nan": torch.full((4,), math.nan), "longer": torch.zeros(5)}
    if content is not None:
        Path("v").write_bytes(content if isinstance(content, bytes) else pack_vector(made[content], weights, {}))
    assert message in refused(capsys, "edit", run.path, TEXT, "--attribute", "v")


def test_similar_items_are_as_many_as_asked_and_the_reconstruction_without_noise(run: Run, capsys: Capture) -> None:
    a = run.world.inputs[0]
    plain = outputs(run, capsys, "reconstruct", run.path, a)
    assert outputs(run, capsys, "similar", run.path, a, "-n", 3, "--strength", 0) == plain * 3
    for noise in ("prior", "posterior"):
        far = ["similar", run.path, a, "-n", 6, "--strength", 50, "--noise", noise, "--seed"]
        first, again, other = (outputs(run, capsys, *far, seed) for seed in (1, 1, 2))
        assert first == again
        assert first != other
        assert len(first) == 6


def neighbors(capsys: Capture, *arguments: object) -> list[list[str]]:
    """Return each query with its neighbours, as lines."""
    capsys.readouterr()
    ok("neighbors", *arguments)
    found: list[list[str]] = []
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("  "):
            found[-1].append(line)
        else:
            found.append([line])
    return found


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_neighbors_come_nearest_first_and_an_item_is_its_own(run: Run, metric: str, capsys: Capture) -> None:
    a, b = run.world.inputs
    found = neighbors(capsys, run.path, a, "test:1", "--corpus", a, b, "test:all", "-k", 4, "--metric", metric)
    for query in found:
        distances = [float(line.split()[0]) for line in query[1:]]
        assert distances == sorted(distances)
        assert distances[0] == pytest.approx(0, abs=1e-4)
        assert len(distances) == 4
    assert f"  {a}" in found[0][1]
    if run.world.experiment == "text":
        sentence = SentencePieceTokenizer.load(run.world.root / "codec").join(
            [WindowDataset(run.world.root, "test")[1]]
        )
        assert found[-1] == [f"test:1  {sentence}", *found[-1][1:]]
        assert found[-1][1] == f"  0.0000  test:1  {sentence}"
    else:
        assert "test:1  " in found[-1][1]


def test_a_corpus_is_a_dataset_or_latents_that_were_saved(run: Run, tmp_path: Path, capsys: Capture) -> None:
    a = run.world.inputs[0]
    by_default = neighbors(capsys, run.path, a)
    moved = Path(shutil.copytree(run.world.root, tmp_path / "moved"))
    assert neighbors(capsys, run.path, a, "--corpus", moved) == by_default
    assert len(by_default[0]) == 6
    ok("encode", run.path, "train:all", "-o", "z.npy")
    saved = neighbors(capsys, run.path, a, "--corpus", "z.npy")
    for query, other in zip(saved, by_default, strict=True):
        for line, expected in zip(query[1:], other[1:], strict=True):
            assert expected.startswith(line)  # the name alone: what stood there is not in the file
    np.save("w.npy", np.zeros((3, 4), np.float32))
    assert "w.npy cannot be read as latents" in refused(capsys, "neighbors", run.path, a, "--corpus", "w.npy")
    Path("w.names.txt").write_text("a\nb\n")
    error = refused(capsys, "neighbors", run.path, a, "--corpus", "w.npy")
    assert "w.npy holds (3, 4), not 2 named latents of 4 dimensions" in error
    assert "k must be between 1 and the 1 rows" in refused(capsys, "neighbors", run.path, a, "--corpus", a)


def test_a_grid_has_the_reconstructions_in_its_corners(run: Run, capsys: Capture) -> None:
    a, b = run.world.inputs
    corners = [a, b, "test:0", "test:1"]
    made = outputs(run, capsys, "interpolate", run.path, *corners, "--grid", "3x4")
    assert len(made) == 12
    plain = [content for corner in corners for content in outputs(run, capsys, "reconstruct", run.path, corner)]
    assert [made[0], made[3], made[8], made[11]] == plain


def test_a_file_of_sentences_gives_a_row_a_line(get_run: GetRun) -> None:
    Path("lines.txt").write_text("the cat saw a ring\n\na dog ate the bread\n", encoding="utf-8")
    ok("encode", get_run("text").path, "@lines.txt", "-o", "z.npy")
    assert Path("z.names.txt").read_text(encoding="utf-8") == "@lines.txt:1\n@lines.txt:3\n"


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


@pytest.mark.parametrize(
    "arguments", [["--help"], ["sample", "--help"], ["attribute", "--help"], ["list"], ["train", "--help"]]
)
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
        vector(replace(run, path=alone))
        outputs(run, capsys, "edit", alone, a, "--attribute", "v.safetensors")
        outputs(run, capsys, "similar", alone, a, "-n", 2)
        neighbors(capsys, alone, a, "--corpus", a, b, "-k", 2)
        outputs(run, capsys, "interpolate", alone, a, b, a, b, "--grid", "2x2")
        for command in (
            ["evaluate", alone],
            ["encode", alone, "test:0", "-o", "z.npy"],
            ["neighbors", alone, a],
            ["sample", alone, "--novel", "-o", "out"],
        ):
            assert "say where it is with --data ROOT" in refused(capsys, *command)
        ok("evaluate", alone, "--data", hidden)
        ok("encode", alone, "test:0", "-o", "z.npy", "--data", hidden)
        ok("sample", alone, "-n", 2, "--novel", "-o", "novel", "--data", hidden)
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
        (["interpolate", "{run}", TEXT], "2 INPUTs are wanted (A and B), got 1"),
        (["interpolate", "{run}", TEXT, TEXT, TEXT], "2 INPUTs are wanted (A and B), got 3"),
        (["interpolate", "{run}", TEXT, "test:all"], "test:all must be one item, got"),
        (["interpolate", "{run}", TEXT, TEXT, "--grid", "3x3"], "4 INPUTs are wanted"),
        (["interpolate", "{run}", *4 * [TEXT], "--grid", "3"], "grid must be ROWSxCOLUMNS such as 5x5, got '3'"),
        (["interpolate", "{run}", *4 * [TEXT], "--grid", "1x3"], "at least 2 rows and 2 columns"),
        (["interpolate", "{run}", *4 * [TEXT], "--grid", "2x2", "--steps", "3"], "--steps is for the way from A to B"),
        (["sample", "{run}", "--beam", "2", "--temperature", "1"], "--beam draws nothing, so --temperature would"),
        (["sample", "{run}", "--beam", "2", "--top-k", "1", "--top-p", "1"], "so --top-k and --top-p would change"),
        (["sample", "{run}", "--top-k", "2", "--top-p", "0.5"], "--top-k and --top-p are two ways"),
        (["sample", "{run}", "--length-penalty", "1"], "it needs --beam N"),
        (["sample", "{run}", "--beam", "0"], "beam width must be a positive int, got 0"),
        (["sample", "{run}", "--top-k", "0"], "top-k must be a positive int, got 0"),
        (["sample", "{run}", "--top-p", "1.5"], "top-p must be above 0 and at most 1, got 1.5"),
        (["sample", "{run}", "--novel", "--data", "nowhere"], "the dataset is not at nowhere"),
        (["similar", "{run}", TEXT, "-n", "0"], "n must be positive, got 0"),
        (["similar", "{run}", TEXT, "--strength", "-1"], "strength must be 0 or more, got -1.0"),
        (["similar", "{run}", "test:all"], "test:all must be one item, got"),
        (["edit", "{run}", TEXT, "--attribute", "nowhere"], "no such attribute vector: nowhere"),
        (["edit", "{run}", TEXT, "--attribute", "v", "--strength", "1", "inf"], "strength must be finite, got 1.0 inf"),
        (["attribute", "{run}", "--with", TEXT, "--without", "", "-o", "v"], "holds no text"),
        (["attribute", "{run}", "--with", TEXT, "--without", TEXT, "--orthogonal-to", "v", "-o", "v"], "no such attri"),
        (["attribute", "{run}", "--with", "train:label=a", "--without", TEXT, "-o", "v"], "has no column 'label'"),
        (["neighbors", "{run}", TEXT, "--corpus", "nowhere.npy"], "nowhere.npy cannot be read as latents"),
        (["neighbors", "{run}", TEXT, "-k", "0"], "k must be between 1 and the"),
        (["attribute", "{run}", "--with", TEXT, "--without", TEXT, "-o", "v"], "have the same mean latent"),
        (["encode", "{run}", TEXT, "-o", "nowhere/z.npy"], "nowhere/z.npy cannot be written: No such file"),
        (["encode", "{run}", TEXT, "-o", "empty"], "empty cannot be written: Is a directory"),
        (["sample", "{run}", "--seed", "-1"], "seed must be from 0 to 9223372036854775807, got -1"),
        (["sample", "{run}", "--seed", str(10**20)], "seed must be from 0 to 9223372036854775807, got 1"),
        (["evaluate", "{run}", "--limit", "0"], "limit must be a positive int, got 0"),
        (["evaluate", "{run}", "--rows", "0"], "rows must be"),
        (["evaluate", "{run}", "--importance-samples", "-1"], "importance_samples must be"),
        (["quality", "{run}", "--lm-steps", "0"], "lm-steps must be positive, got 0"),
        (["quality", "{run}", "--lm", "nowhere"], "checkpoint nowhere: no such file or directory"),
        (["quality", "{run}", "-n", "0"], "n must be positive, got 0"),
        (["evaluate", "{run}", "--data", "."], "is not a prepared dataset"),
        (["prepare", "midi", "empty", "--root", "d"], "no files"),
        (["prepare", "image", "empty", "--root", "d"], "no files"),
        (["prepare", "text", "empty", "--root", "d"], "no files"),
        (["prepare", "midi", "nowhere", "--root", "d"], "no such file or folder: nowhere"),
        (["prepare", "text", "nowhere", "--root", "d"], "no such file or folder: nowhere"),
        (["prepare", "text", "a.csv", "--root", "d"], "a.csv ends in .csv: say which column holds the text (--column)"),
        (["prepare", "text", "a.csv", "--root", "d", "--column", "c"], "(1 x no column 'c': it has id, text)"),
        (["prepare", "midi", "webpages", "--root", "d", "--engine", "sequential"], "every item was rejected"),
        (["prepare", "midi", "webpages", "--root", "d", "--bars", "0"], "bars must be a positive int, got 0"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str, get_run: GetRun, capsys: Capture) -> None:
    Path("empty").mkdir()
    Path("webpages").mkdir()
    Path("webpages/tune.mid").write_text("<html>404</html>")
    Path("a.csv").write_text("id,text\n1,one\n")
    error = refused(capsys, *(argument.format(run=get_run("text").path) for argument in arguments))
    assert message in error
    assert error.startswith(f"seqvae {arguments[0]}: ")


def test_items_that_are_files_need_a_directory(get_run: GetRun, capsys: Capture) -> None:
    assert "-o OUT is needed" in refused(capsys, "sample", get_run("melody").path, "-n", 1)
    Path("a.txt").write_text("mine")
    for output in ("a.txt", "a.txt/b"):
        error = refused(capsys, "sample", get_run("melody").path, "-n", 1, "-o", output)
        assert f"-o OUT must be a directory for the files, and {output} cannot be one" in error
    assert Path("a.txt").read_text() == "mine"


def test_an_input_without_music_is_named(get_run: GetRun, capsys: Capture) -> None:
    run = get_run("melody")
    kit = pretty_midi.Instrument(0, is_drum=True)
    kit.notes.append(pretty_midi.Note(90, 36, 0.0, 0.5))
    midi = pretty_midi.PrettyMIDI()
    midi.instruments.append(kit)
    midi.write("beat.mid")
    tune = run.world.inputs[0]
    for command in (["reconstruct", tune, "beat.mid"], ["interpolate", tune, "beat.mid"], ["similar", "beat.mid"]):
        error = refused(capsys, command[0], run.path, *command[1:], "-o", "out")
        assert "beat.mid: no melody to encode: no instrument but drums plays" in error


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
    v = vector(run)
    for command in (
        ["sample", run.path],
        ["reconstruct", run.path, a],
        ["interpolate", run.path, a, b],
        ["similar", run.path, a],
        ["edit", run.path, a, "--attribute", v],
    ):
        assert outputs(run, capsys, *command, "--device", "cuda")
    assert neighbors(capsys, run.path, a, "--device", "cuda")
    ok("evaluate", run.path, "--importance-samples", 2, "--device", "cuda")
    ok("encode", run.path, a, "-o", "z.npy", "--device", "cuda")


def test_a_picture_of_reconstructions_shows_the_truth_above_each(get_run: GetRun) -> None:
    run = get_run("fashion")
    ok("reconstruct", run.path, *run.world.inputs, "test:0", "-o", "out")
    with Image.open("out/reconstruction.png") as shown, Image.open("out/original-1.png") as original:
        side = (shown.height - 2) // 2
        assert shown.size == (3 * side + 4, 2 * side + 2)
        corner = np.asarray(shown.crop((0, 0, side, side)).convert("L"))
        np.testing.assert_array_equal(corner, np.asarray(original.resize((side, side), Image.Resampling.NEAREST)))


@pytest.mark.parametrize("builder", [prepare_text, prepare_midi, prepare_image], ids=lambda builder: builder.__name__)
def test_every_option_of_a_preparation_is_a_parameter_of_its_builder(builder: Callable[..., Any]) -> None:
    """And the other way round, with the same default: what a command line says could get lost nowhere."""
    parser = argparse.ArgumentParser()
    add_prepare(parser.add_subparsers())
    kind = builder.__name__.removeprefix("prepare_")
    options = vars(parser.parse_args(["prepare", kind, "SOURCE", "--root", "DIR"]))
    for name in ("run", "kind", "source", "root"):
        options.pop(name, None)
    parameters = inspect.signature(builder).parameters.values()
    defaults = {p.name: str(p.default) for p in parameters if p.default is not p.empty and p.name != "earlier"}
    said = {name: str(value) for name, value in options.items()}
    assert said == defaults | {"engine": "loky"}  # a person's own files are worth several processes


def test_the_choices_of_a_preparation_reach_its_tokenizer() -> None:
    lines = ("a ﬁne day", "one two three", "four five six", "no", "seven eight nine")
    Path("s.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    choices = ("--normalization", "identity", "--character-coverage", 0.99, "--min-length", 5, "--vocab-size", 60)
    ok("prepare", "text", "s.txt", "--root", "d", "--model-type", "char", "--engine", "sequential", *choices)
    report = json.loads(Path("d/report.json").read_text(encoding="utf-8"))
    assert report["rejected"] == {"shorter than 5 tokens": 1}
    codec = json.loads(Path("d/codec/codec.json").read_text(encoding="utf-8"))
    assert codec["options"]["normalization"] == "identity"
    assert json.loads(Path("d/dataset.json").read_text(encoding="utf-8"))["options"]["character_coverage"] == 0.99
