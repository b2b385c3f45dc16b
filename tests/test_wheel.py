"""The wheel: built, installed into a fresh environment, and every command run from an empty directory."""

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from dataclasses import dataclass
from email import message_from_bytes
from pathlib import Path
from tempfile import gettempdir

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import seqvae
from tests.helpers.worlds import MODEL

ROOT = Path(__file__).parent.parent
SITE_PACKAGES = Path(sysconfig.get_path("purelib"))  # the fresh environment borrows what seqvae depends on

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel of this checkout with the installed hatchling."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (found,) = folder.glob("*.whl")
    return found


@dataclass(frozen=True)
class Installed:
    """A fresh environment with the wheel, and an empty directory to work in."""

    environment: Path
    here: Path

    def run(self, *command: str, typed: str = "") -> str:
        """Return the output of a program of the environment, in a process that knows no checkout."""
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [str(self.environment / "bin" / command[0]), *command[1:]],
            cwd=self.here,
            env={**variables, "OMP_NUM_THREADS": "1"},
            input=typed,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    environment = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True, timeout=120)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*pip, "--disable-pip-version-check", str(wheel)], check=True, capture_output=True, timeout=120)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "borrowed.pth").write_text(f"{SITE_PACKAGES}\n")  # after its own; editable installs there stay unseen
    return Installed(environment, tmp_path_factory.mktemp("empty"))


def test_the_wheel_holds_the_package_and_its_configuration_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    info = f"seqvae-{seqvae.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"seqvae", info}
    shipped = {path.relative_to(ROOT).as_posix() for path in (ROOT / "conf").rglob("*.yaml")}
    assert shipped == {name.removeprefix("seqvae/") for name in names if name.endswith(".yaml")}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "seqvae").rglob("*.py")}
    assert modules == {name for name in names if name.endswith(".py")}
    assert "seqvae/py.typed" in names
    assert {Path(name).suffix for name in names if name.startswith("seqvae/")} == {".py", ".yaml", ".typed", ".html"}


def test_the_wheel_names_no_place_of_this_machine(wheel: Path) -> None:
    places = (str(ROOT), str(SITE_PACKAGES), gettempdir())
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            assert not any(place in archive.read(name).decode() for place in places), name


def test_the_wheel_asks_for_what_the_project_asks_for(wheel: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    with zipfile.ZipFile(wheel) as archive:
        info = f"seqvae-{seqvae.__version__}.dist-info"
        metadata = message_from_bytes(archive.read(f"{info}/METADATA"))
        scripts = archive.read(f"{info}/entry_points.txt").decode()
    needed = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    asked = {canonicalize_name(one.name) for one in needed if one.marker is None}
    assert asked == {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}
    assert set(metadata.get_all("Provides-Extra", [])) == project["optional-dependencies"].keys()
    assert "seqvae = seqvae.cli:main" in scripts


OWN = """\
# @package _global_
# My own.
defaults:
  - text
  - override /schedule@objective.beta: sigmoid
  - _self_

experiment: own
model:
  latent_dim: 3
"""

WHO = ("the cat", "a dog", "my horse", "the old king", "a small bird", "her son")
WHAT = ("the bread", "a stone", "the red house", "some water", "a ring")
SIZES = ("embedding_dim", "encoder_hidden_dim", "hidden_dim")

IN_ONE_PROCESS = """\
import json, sys
from pathlib import Path
import seqvae
from seqvae.cli import main
assert Path(seqvae.__file__).is_relative_to(sys.prefix), seqvae.__file__  # not the checkout
for command in json.load(sys.stdin):
    assert main(command) == 0, command
"""


def test_every_command_works_from_an_empty_directory(installed: Installed) -> None:
    here = installed.here
    assert installed.run("seqvae", "--version") == f"seqvae {seqvae.__version__}\n"
    assert set(MODEL) <= set(installed.run("seqvae", "list").split())
    assert "experiment=melody" in installed.run("seqvae", "__complete", "train", "experiment=").split()
    (here / "lines.txt").write_text("".join(f"{who} saw {what}\n" for who in WHO for what in WHAT), encoding="utf-8")
    (here / "mine" / "experiment").mkdir(parents=True)
    (here / "mine" / "experiment" / "own.yaml").write_text(OWN)
    prepare = ["prepare", "text", "lines.txt", "--root", "data/lines", "--vocab-size", "50", "--engine", "sequential"]
    sizes = [
        "data.root=data/lines",
        "debug=smoke",
        *(f"model.{name}=8" for name in SIZES),
        "model.tie_embeddings=false",
    ]
    installed.run("seqvae", *prepare)
    installed.run("seqvae", "train", "experiment=text", "model.latent_dim=4", *sizes)
    commands = [
        ["train", "--config-dir", "mine", "experiment=own", *sizes],
        ["train", "-m", "experiment=text", "model.latent_dim=2,3", "seed=1", *sizes],
        ["info", "runs/smoke-text"],
        ["sample", "runs/smoke-text", "-n", "3", "-o", "samples.txt"],
        ["evaluate", "runs/smoke-text", "--importance-samples", "2"],
        ["evaluate", "runs/smoke-own"],
        ["compare", "runs/smoke-text", "runs/smoke-own"],
        ["encode", "runs/smoke-text@last", "@lines.txt", "test:0", "-o", "z.npy"],
        ["interpolate", "runs/smoke-own", "the cat saw a ring", "a dog saw the bread", "-o", "way.txt"],
        ["reconstruct", "runs/smoke-own", "the cat saw a ring", "-o", "again.txt"],
        ["doctor"],
        ["completion", "bash"],
    ]
    out = installed.run("python", "-c", IN_ONE_PROCESS, typed=json.dumps(commands))  # torch is imported once
    assert "latent_dim 4" in out
    assert "minus runs/smoke-text on the same" in out
    saved = json.loads((here / "runs/smoke-own/checkpoints/step-000000004/config.json").read_text(encoding="utf-8"))
    assert saved["experiment"] == "own"
    assert saved["model"]["latent_dim"] == 3
    assert saved["objective"]["beta"]["_target_"] == "seqvae.schedules.Sigmoid"
    for name, lines in {
        "samples.txt": 3,
        "way.txt": 7,
        "again.txt": 1,
        "z.names.txt": len(WHO) * len(WHAT) + 1,
    }.items():
        assert len((here / name).read_text(encoding="utf-8").splitlines()) == lines, name
    made = {"data", "lines.txt", "mine", "runs", "z.npy", "samples.txt", "way.txt", "again.txt", "z.names.txt"}
    assert {path.name for path in here.iterdir()} == made
