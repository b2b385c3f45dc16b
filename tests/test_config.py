"""The one door from names to objects, and the shipped nodes that go through it."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from seqvae import models, objectives, priors, schedules
from seqvae.harness import conf_dir
from seqvae.harness.config import REGISTRY, build

CONF = conf_dir()
GROUPS = ("model", "likelihood", "prior", "objective", "schedule", "optimizer")
NODES = sorted(path for group in GROUPS for path in (CONF / group).rglob("*.yaml"))
LINEAR = "seqvae.schedules.Linear"
OBJECTIVE = "seqvae.objectives.BetaELBO"

HOSTILE: list[tuple[Any, dict[str, Any]]] = [
    ("os.system", {"command": "touch {marker}"}),
    ("logging.os.system", {"command": "touch {marker}"}),
    ("posix.system", {"command": "touch {marker}"}),
    ("subprocess.Popen", {"args": ["touch", "{marker}"]}),
    ("subprocess.run", {"args": ["touch", "{marker}"]}),
    ("builtins.open", {"file": "{marker}", "mode": "w"}),
    ("builtins.eval", {"source": "open('{marker}', 'w')"}),
    ("builtins.exec", {"source": "open('{marker}', 'w')"}),
    ("builtins.__import__", {"name": "antigravity"}),
    ("open", {"file": "{marker}", "mode": "w"}),
    ("pathlib.Path.touch", {"self": "{marker}"}),
    ("pathlib.Path", {}),
    ("torch.load", {"f": "{marker}"}),
    ("torch.hub.load", {"repo_or_dir": "{marker}", "model": "m"}),
    ("torch.optim.LBFGS", {"params": []}),
    ("torch.nn.Linear", {"in_features": 1, "out_features": 1}),
    ("hydra.utils.instantiate", {"config": {}}),
    ("hydra.utils.get_method", {"path": "os.system"}),
    ("seqvae.models.torch.load", {"f": "{marker}"}),
    ("seqvae.harness.config.train", {"config": {}}),
    ("seqvae.harness.checkpoint.shutil.rmtree", {"path": "{marker}"}),
    ("seqvae.data.load_codec", {"directory": "{marker}"}),
    ("seqvae.models", {}),
    ("seqvae.models.lstm.__globals__", {}),
    (" seqvae.schedules.Linear", {}),
    ("seqvae.schedules.linear", {}),
    ("", {}),
    (None, {}),
    (7, {}),
    (["seqvae.schedules.Linear"], {}),
    ({"_target_": "os.system"}, {}),
    (True, {}),
]


def fill(value: Any, marker: Path) -> Any:
    if isinstance(value, str):
        return value.replace("{marker}", str(marker))
    if isinstance(value, list):
        return [fill(part, marker) for part in value]
    return {name: fill(part, marker) for name, part in value.items()} if isinstance(value, dict) else value


@pytest.mark.parametrize(("target", "arguments"), HOSTILE, ids=lambda value: repr(value)[:40])
def test_build_admits_no_name_outside_its_list(target: Any, arguments: dict[str, Any], tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    with pytest.raises(ValueError, match="cannot be built"):
        build(fill({"_target_": target, **arguments}, marker))
    assert not marker.exists()


@pytest.mark.parametrize(("target", "arguments"), HOSTILE, ids=lambda value: repr(value)[:40])
@pytest.mark.parametrize("deep", [False, True], ids=["argument", "list"])
def test_build_admits_no_name_outside_its_list_inside_another_node(
    target: Any, arguments: dict[str, Any], deep: bool, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    node = fill({"_target_": target, **arguments}, marker)
    with pytest.raises(ValueError, match="cannot be built"):
        build({"_target_": OBJECTIVE, "beta": [[node]] if deep else node})
    assert not marker.exists()


def test_the_marker_of_the_hostile_rows_would_appear_if_a_row_were_called(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    target, arguments = HOSTILE[5]
    assert target == "builtins.open"
    open(**fill(arguments, marker)).close()  # noqa: PTH123 - what the row would do
    assert marker.exists()


@pytest.mark.parametrize(
    "extra",
    [
        {"_partial_": True},
        {"_args_": [1.0]},
        {"_recursive_": False},
        {"_convert_": "all"},
        {"_mode_": "eager"},
        {"__class__": "x"},
        {"self": 1},
        {"strat": 0.0},
    ],
    ids=lambda extra: next(iter(extra)),
)
def test_build_refuses_an_argument_the_builder_does_not_have(extra: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{LINEAR} has no argument '{next(iter(extra))}'; it has: start"):
        build({"_target_": LINEAR, **extra})


@pytest.mark.parametrize("node", [None, "seqvae.schedules.Linear", 3, [], {}, {"start": 0.0}], ids=repr)
def test_build_refuses_what_is_no_node(node: Any) -> None:
    with pytest.raises(ValueError, match="expected a mapping with a _target_"):
        build(node)


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


def check(node: Any, path: Path) -> None:
    if not isinstance(node, dict) or "_target_" not in node:
        return
    assert node["_target_"] in REGISTRY, path
    parameters = inspect.signature(REGISTRY[node["_target_"]]).parameters
    unknown = node.keys() - parameters.keys() - {"_target_", "defaults"}
    assert not unknown, f"{path}: {node['_target_']} has no {unknown}"
    for value in node.values():
        check(value, path)


@pytest.mark.parametrize(
    "name",
    [f"{module.__name__}.{name}" for module in (models, objectives, priors, schedules) for name in module.__all__],
)
def test_every_builder_has_a_shipped_node(name: str) -> None:
    assert any(f"_target_: {name}\n" in path.read_text(encoding="utf-8") for path in NODES)
