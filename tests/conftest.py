"""What all tests share: one thread, and tiny worlds with a trained run each, made once a session when first wanted."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from seqvae.harness import validation
from tests.helpers.worlds import WORLDS, Run, World, train_tiny

torch.set_num_threads(1)

validation.PREVIEWS = 1  # a preview is mostly sound, and sound is slow

GetWorld = Callable[[str], World]
GetRun = Callable[[str], Run]


@pytest.fixture(scope="session")
def get_world(tmp_path_factory: pytest.TempPathFactory) -> GetWorld:
    """Return the tiny dataset of an experiment's modality."""
    made: dict[str, World] = {}

    def get(name: str) -> World:
        if name not in made:
            made[name] = WORLDS[name](tmp_path_factory.mktemp(name))
        return made[name]

    return get


@pytest.fixture(scope="session")
def get_run(get_world: GetWorld, tmp_path_factory: pytest.TempPathFactory) -> GetRun:
    """Return the tiny trained run of an experiment's modality; copy it before changing it."""
    made: dict[str, Run] = {}

    def get(name: str) -> Run:
        if name not in made:
            made[name] = train_tiny(get_world(name), tmp_path_factory.mktemp("runs") / name)
        return made[name]

    return get


@pytest.fixture(scope="session", params=["melody", "text", "fashion"])
def run(request: pytest.FixtureRequest, get_run: GetRun) -> Run:
    """The tiny trained run of each modality."""
    return get_run(request.param)


@pytest.fixture(scope="session")
def melody_root(get_world: GetWorld) -> Path:
    """The tiny prepared melody dataset."""
    return get_world("melody").root
