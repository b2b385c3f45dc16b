"""The one door from names to objects, and the shipped nodes that go through it."""

import contextlib
import functools
import inspect
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from seqvae import data, models, objectives, priors, schedules
from seqvae.harness import conf_dir
from seqvae.harness.config import REGISTRY, _public, build
from tests.helpers.hostile import HARMFUL, HOSTILE, SPECIAL, Row, _locate, call, lay, node

CONF = conf_dir()
GROUPS = ("model", "likelihood", "prior", "objective", "sampling", "schedule", "optimizer")
NODES = sorted(path for group in GROUPS for path in (CONF / group).rglob("*.yaml"))
LINEAR = "seqvae.schedules.Linear"
OBJECTIVE = "seqvae.objectives.BetaELBO"
BUILT = (models, objectives, priors, schedules)


def name(row: Any) -> str:
    return ascii(row[0])[:50] if isinstance(row, tuple) else ""


@pytest.mark.parametrize("row", HOSTILE, ids=name)
def test_build_admits_no_name_outside_its_list(row: Row, tmp_path: Path) -> None:
    marker = lay(tmp_path)
    with pytest.raises(ValueError, match="cannot be built; it must be one of seqvae"):
        build(node(row, marker))
    assert not marker.exists()


@pytest.mark.parametrize("row", HOSTILE, ids=name)
def test_build_admits_no_name_outside_its_list_inside_another_node(row: Row, tmp_path: Path) -> None:
    marker = lay(tmp_path)
    hostile = node(row, marker)
    for value in (hostile, [[hostile]], {"_target_": LINEAR, "start": hostile}):
        with pytest.raises(ValueError, match="cannot be built"):
            build({"_target_": OBJECTIVE, "beta": value})
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("row", HARMFUL, ids=name)
def test_a_door_without_a_list_would_do_the_harm(row: Row, tmp_path: Path) -> None:
    marker = lay(tmp_path)
    if row[0] == "seqvae.models.lstm.__globals__":  # its harm is what it gives away
        assert "torch" in inspect.unwrap(_locate("seqvae.models.lstm.lstm")).__globals__
        return
    with contextlib.suppress(RuntimeError):  # torch.load complains, but only after the unpickling
        result = call(row, marker)
        for method in ("wait", "close"):  # a process or a file
            getattr(result, method, lambda: None)()
    assert marker.exists() or marker.is_symlink() or marker.with_suffix(".npy").exists()


@pytest.mark.parametrize("extra", SPECIAL, ids=lambda extra: next(iter(extra)))
def test_build_refuses_an_argument_the_builder_does_not_have(extra: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{LINEAR} has no argument '{next(iter(extra))}'; it has: start"):
        build({"_target_": LINEAR, **extra})


def test_the_list_is_the_public_builders_and_the_optimizers() -> None:
    public = {f"{module.__name__}.{name}" for module in (data, *BUILT) for name in module.__all__}
    assert {*REGISTRY} - public == {"torch.optim.Adam", "torch.optim.AdamW", "torch.optim.SGD"}
    assert public <= {*REGISTRY}
    for target, builder in REGISTRY.items():
        assert inspect.isclass(builder) or inspect.isfunction(builder)
        assert builder.__module__.startswith(("seqvae.", "torch.optim."))
        assert builder.__name__ == target.rpartition(".")[2]


@pytest.mark.parametrize(
    "value",
    [torch.load, os, os.system, torch.nn.Linear, print, Path, 3, functools.partial(print)],
    ids=lambda value: type(value).__name__ + getattr(value, "__name__", ""),
)
def test_a_module_cannot_make_public_what_is_not_its_own(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedules, "value", value, raising=False)
    monkeypatch.setattr(schedules, "__all__", [*schedules.__all__, "value"])
    with pytest.raises(AssertionError, match=r"seqvae\.schedules: value is"):
        _public(schedules)


def test_a_value_of_a_strange_kind_is_one_error() -> None:
    conv = {"_target_": "seqvae.models.conv", "likelihood": {"_target_": "seqvae.schedules.Constant"}}
    with pytest.raises(ValueError, match=r"seqvae\.models\.conv cannot be built of these values"):
        build(conv, image_shape=[1, 8, 8], levels=2)


@pytest.mark.parametrize("value", [None, "seqvae.schedules.Linear", 3, [], {}, {"start": 0.0}], ids=repr)
def test_build_refuses_what_is_no_node(value: Any) -> None:
    with pytest.raises(ValueError, match="expected a mapping with a _target_"):
        build(value)


def test_build_names_a_missing_argument() -> None:
    with pytest.raises(ValueError, match="StandardNormal needs latent_dim"):
        build({"_target_": "seqvae.priors.StandardNormal"})


def test_build_refuses_a_configuration_that_says_what_the_data_says() -> None:
    with pytest.raises(ValueError, match="latent_dim is given by the data"):
        build({"_target_": "seqvae.priors.StandardNormal", "latent_dim": 3}, latent_dim=4)


def test_build_refuses_a_model_that_does_not_fit_the_data() -> None:
    with pytest.raises(ValueError, match=r"seqvae\.models\.conv does not fit this data: it takes no vocab_size"):
        build({"_target_": "seqvae.models.conv"}, vocab_size=10, max_length=3)


def test_build_makes_nodes_within_nodes() -> None:
    objective = build({"_target_": OBJECTIVE, "beta": {"_target_": LINEAR, "start": 0.0, "end": 2.0, "share": 1.0}})
    assert objective.beta == schedules.Linear(0.0, 2.0, 1.0)
    optimizer = build({"_target_": "torch.optim.SGD", "lr": 0.5}, params=[torch.nn.Parameter(torch.zeros(1))])
    assert optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("path", NODES, ids=lambda path: path.relative_to(CONF).as_posix())
def test_every_shipped_node_fits_its_builder(path: Path) -> None:
    check(yaml.safe_load(path.read_text(encoding="utf-8")), path)


def check(value: Any, path: Path) -> None:
    if not isinstance(value, dict) or "_target_" not in value:
        return
    assert value["_target_"] in REGISTRY, path
    parameters = inspect.signature(REGISTRY[value["_target_"]]).parameters
    unknown = value.keys() - parameters.keys() - {"_target_", "defaults"}
    assert not unknown, f"{path}: {value['_target_']} has no {unknown}"
    for part in value.values():
        check(part, path)


@pytest.mark.parametrize(
    "name",
    [f"{module.__name__}.{name}" for module in BUILT for name in module.__all__],
)
def test_every_builder_has_a_shipped_node(name: str) -> None:
    assert any(f"_target_: {name}\n" in path.read_text(encoding="utf-8") for path in NODES)
