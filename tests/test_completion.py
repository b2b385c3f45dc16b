"""Tab completion: what could stand next, and that the shells ask for it."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from seqvae.cli import main, parser
from seqvae.cli.completion import SCRIPTS, candidates
from tests.helpers.worlds import MODEL, configuration

SECONDS = 30.0  # for a shell to answer on a busy machine


@pytest.fixture(autouse=True)
def _two_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for run in ("runs/melody", "runs/text/seed=1", "elsewhere/melody"):
        Path(run, "checkpoints").mkdir(parents=True)
    Path("mine/experiment").mkdir(parents=True)
    Path("mine/experiment/own.yaml").write_text("# @package _global_\nexperiment: own\nextra:\n  flag: true\n")


def after(line: str) -> list[str]:
    return candidates(parser(), line.split(" "))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ev", ["evaluate"]),
        ("re", ["reconstruct"]),
        ("prepare ", ["image", "midi", "text"]),
        ("prepare text --mo", ["--model-type"]),
        ("prepare text x --engine ", ["dask", "loky", "sequential"]),
        ("evaluate runs/melody --split t", ["test", "train"]),
        ("evaluate runs/melody --split=t", []),
        ("ed", ["edit"]),
        ("attribute runs/m", ["runs/melody"]),
        ("attribute runs/melody --with", ["--with", "--without"]),
        ("attribute runs/melody --with ", []),
        ("similar runs/melody a.mid --noise ", ["posterior", "prior"]),
        ("neighbors runs/melody a.mid --metric c", ["cosine"]),
        ("sample runs/melody --to", ["--top-k", "--top-p"]),
        ("export runs/m", ["runs/melody"]),
        ("export runs/melody --format ", ["magenta-js", "onnx"]),
        ("export runs/melody --format onnx -o ", []),
        ("completion ", ["bash", "fish", "zsh"]),
        ("info ", ["runs/melody", "runs/text/seed=1"]),
        ("info runs/m", ["runs/melody"]),
        ("info elsewhere/", ["elsewhere/melody"]),
        ("info runs/melody@", ["runs/melody@best", "runs/melody@last"]),
        ("compare runs/melody runs/t", ["runs/text/seed=1"]),
        ("sample runs/melody -o ", []),  # a file: the shell's own
        ("encode runs/melody --data ", []),
        ("nonsense x", []),
        ("train exp", ["experiment="]),
        (
            "train experiment=me",
            ["experiment=melody", "experiment=melody_16bar", "experiment=melody_16bar_hierarchical"],
        ),
        ("train experiment=melody,dr", ["experiment=melody,drums"]),
        ("train --config-dir mine experiment=o", ["experiment=own"]),
        ("train --config-dir ", []),
        ("train --cfg ", ["all", "hydra", "job"]),
        ("train --mu", ["--multirun"]),
        ("train see", ["seed="]),
        ("train mod", ["model.", "model="]),
        ("train model=", ["model=conv", "model=hierarchical", "model=lstm", "model=lstm_lm"]),
        ("train model.latent", ["model.latent_dim="]),
        ("train model.wid", ["model.width="]),
        ("train model=conv model.wid", ["model.width="]),
        ("train model=lstm model.wid", []),
        ("train trainer.max_st", ["trainer.max_steps="]),
        ("train objective.be", ["objective.beta."]),
        ("train objective.beta.sh", ["objective.beta.share="]),
        ("train schedule@learning_rate=l", ["schedule@learning_rate=linear"]),
        ("train data.fresh_views=", ["data.fresh_views=false", "data.fresh_views=true"]),
        ("train resume=", ["resume=auto", "resume=runs/melody", "resume=runs/text/seed=1"]),
        ("train data.root=", []),
        ("train seed=", []),
        ("train extra.", []),
        ("train --config-dir mine experiment=own extra.", ["extra.flag="]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_could_stand_next(line: str, expected: list[str]) -> None:
    assert after(line) == expected


def test_every_command_and_experiment_is_offered() -> None:
    assert {
        "prepare",
        "train",
        "list",
        "doctor",
        "compare",
        "interpolate",
        "attribute",
        "edit",
        "similar",
        "neighbors",
        "export",
    } <= set(after(""))
    assert {f"experiment={name}" for name in MODEL} <= set(after("train experiment="))


def test_every_key_that_is_offered_is_one_that_hydra_knows() -> None:
    def leaves(typed: str) -> Iterator[str]:
        for candidate in after(f"train model=lstm objective=beta_elbo prior=standard_normal {typed}"):
            if candidate.endswith("."):
                yield from leaves(candidate)
            elif "@" not in candidate and candidate not in ("experiment=", "debug="):
                yield candidate.removesuffix("=")

    config = configuration(
        ["model=lstm", "sampling=scheduled", *(f"schedule@{key}=linear" for key in ("objective.beta", "learning_rate"))]
    )
    other = (
        "objective.beta.",
        "learning_rate.",
        "sampling.rate.",
        "data.view.",
        "data.max_tokens",
    )  # of other files of their groups
    known = [key for key in set(leaves("")) if not key.startswith(other)]
    assert len(known) > 40
    for key in known:
        assert _has(config, key), key


def _has(node: object, key: str) -> bool:
    for part in key.split("."):
        if part not in node:  # type: ignore[operator]
            return False
        node = node[part]  # type: ignore[index]
    return True


def test_an_answer_waits_for_no_heavy_import() -> None:
    code = """
import sys
from seqvae.cli import main
assert main(["__complete", "train", "experiment=dru"]) == 0
heavy = {"torch", "numpy", "hydra", "omegaconf"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "experiment=drums\n"), done.stderr


@pytest.fixture
def seqvae_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command = tmp_path / "bin" / "seqvae"
    command.parent.mkdir()
    code = "from seqvae.cli import main; raise SystemExit(main())"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{code}" "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    for shell in SCRIPTS:
        capsys.readouterr()
        assert main(["completion", shell]) == 0
        (tmp_path / f"script.{shell}").write_text(capsys.readouterr().out)


@contextmanager
def terminal(*command: str) -> Iterator[int]:
    """Run a shell in a terminal of its own; yield the file descriptor of what is typed and shown."""
    keyboard, screen = pty.openpty()
    environment = {**os.environ, "TERM": "dumb", "PS1": "$ "}
    shell = subprocess.Popen(
        command, stdin=screen, stdout=screen, stderr=screen, env=environment, start_new_session=True
    )
    os.close(screen)
    try:
        yield keyboard
    finally:
        shell.kill()
        shell.wait()
        os.close(keyboard)


def shown(keyboard: int, expected: str) -> str:
    """Return what the terminal shows until `expected` is seen, or time is up."""
    text, deadline = "", time.monotonic() + SECONDS
    while expected not in text and time.monotonic() < deadline:
        if select.select([keyboard], [], [], 0.1)[0]:
            text += os.read(keyboard, 65536).decode()
    return text


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.usefixtures("seqvae_on_path")
def test_bash_completes_at_the_tab_key() -> None:
    with terminal("bash", "--norc", "-i") as keyboard:
        os.write(keyboard, b"source script.bash; echo rea''dy\n")
        assert "ready" in shown(keyboard, "ready")
        for typed, expected in [
            ("seqvae ev", "seqvae evaluate "),
            ("seqvae train experiment=dr", "seqvae train experiment=drums "),
            ("seqvae train model.lat", "seqvae train model.latent_dim="),
            ("seqvae train schedule@learning_rate=co", "seqvae train schedule@learning_rate=constant "),
            ("seqvae info runs/melody@l", "seqvae info runs/melody@last "),
            ("seqvae info runs/text/s", "seqvae info runs/text/seed=1 "),
            ("seqvae train data.root=els", "seqvae train data.root=elsewhere/"),  # bash's own files
        ]:
            os.write(keyboard, f"{typed}\t".encode())
            assert expected in shown(keyboard, expected)
            os.write(keyboard, b"\x15")  # clears the line


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
@pytest.mark.usefixtures("seqvae_on_path")
def test_fish_completes() -> None:
    for typed, expected in [
        ("seqvae ev", "evaluate\n"),
        ("seqvae train experiment=dr", "experiment=drums\n"),
        ("seqvae train data.root=els", "data.root=elsewhere/\n"),
    ]:
        command = ["fish", "--no-config", "-c", f"source script.fish; complete -C '{typed}'"]
        assert subprocess.run(command, capture_output=True, text=True, timeout=SECONDS).stdout == expected


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
@pytest.mark.usefixtures("seqvae_on_path")
def test_zsh_completes_at_the_tab_key() -> None:
    with terminal("zsh", "-f", "-i") as keyboard:
        os.write(keyboard, b"autoload -U compinit; compinit -u -D; source script.zsh; echo rea''dy\n")
        assert "ready" in shown(keyboard, "ready")
        for typed, expected in [
            ("seqvae ev", "seqvae evaluate "),
            ("seqvae train experiment=dr", "seqvae train experiment=drums "),
            ("seqvae train data.root=els", "seqvae train data.root=elsewhere/"),
        ]:
            os.write(keyboard, f"{typed}\t".encode())
            assert expected in shown(keyboard, expected)
            os.write(keyboard, b"\x15")
