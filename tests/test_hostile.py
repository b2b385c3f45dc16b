"""Hostile files and hostile names through the doors that people use: one clear error each, and nothing is executed."""

import copy
import json
import math
import os
import pickle
import resource
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save
from torch import Tensor

from seqvae.cli import main
from seqvae.data.codec import MOST_JSON, MOST_LEVELS
from seqvae.harness import checkpoint
from seqvae.harness.checkpoint import CheckpointError
from seqvae.harness.config import load
from tests.helpers.damage import MANIFEST, replace, rewrite
from tests.helpers.hostile import HARMFUL, HOSTILE, SPECIAL, Bomb, Row, lay, node, nodes, put
from tests.helpers.worlds import Run, World

GetRun = Callable[[str], Run]
GetWorld = Callable[[str], World]
Capture = pytest.CaptureFixture[str]

WEIGHTS, TRAINING = "model.safetensors", "training.safetensors"
JSON = ("config.json", "codec.json", "training.json")


def copied(run: Run, folder: Path) -> Path:
    return Path(shutil.copytree(run.path / "checkpoints" / "step-000000004", folder / "step-000000004"))


@pytest.fixture
def path(get_run: GetRun, tmp_path: Path) -> Path:
    """A text checkpoint that may be changed."""
    return copied(get_run("text"), tmp_path)


@pytest.fixture
def any_path(run: Run, tmp_path: Path) -> Path:
    """A checkpoint of each modality that may be changed."""
    return copied(run, tmp_path)


def refused(path: Path, message: str | None = None) -> str:
    """Return the one line that a checkpoint is refused with."""
    with pytest.raises(CheckpointError, match=message) as error:
        load(path)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


# names in a manifest


@pytest.mark.parametrize("name", ["../../../config.yaml", "/etc/passwd", "sub/file", "..", ".", "", "a\nb", "\x1b[2J"])
def test_a_manifest_that_names_a_file_elsewhere_is_refused(name: str, path: Path) -> None:
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    (path / MANIFEST).write_text(json.dumps({**manifest, name: "0" * 64}), encoding="utf-8")
    assert "\x1b" not in refused(path, "is missing")


def test_a_manifest_opens_no_file_elsewhere(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path.parent / "secret").write_text("secret")
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    (path / MANIFEST).write_text(json.dumps({**manifest, "../secret": "0" * 64}), encoding="utf-8")
    opened: list[Path] = []
    original = Path.open

    def spy(self: Path, *arguments: Any, **options: Any) -> Any:
        opened.append(self)
        return original(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", spy)
    refused(path, r"'\.\./secret' is missing")
    assert {file.name for file in opened} == {MANIFEST}


@pytest.mark.parametrize("manifest", ["[]", "{}", "null", "{", '{"model.safetensors": "0"}', "\x00", "7", '"x"'])
def test_a_manifest_that_is_none_is_refused(manifest: str, path: Path) -> None:
    (path / MANIFEST).write_text(manifest, encoding="utf-8")
    refused(path, r"MANIFEST\.json")


@pytest.mark.parametrize("digest", [None, 7, "", [], {}, "0" * 64, True])
def test_a_digest_that_is_none_is_refused(digest: Any, path: Path) -> None:
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    (path / MANIFEST).write_text(json.dumps({**manifest, WEIGHTS: digest}), encoding="utf-8")
    refused(path, rf"{WEIGHTS} is not what was written")


def test_a_link_to_a_checkpoint_is_one(path: Path) -> None:
    link = path.parent / "favourite"
    link.symlink_to(path)
    assert load(link).path == link


# names in config.json


@pytest.mark.parametrize("part", ["model", "prior"])
@pytest.mark.parametrize("row", HOSTILE, ids=lambda row: ascii(row[0])[:50])
def test_a_smuggled_target_is_refused_and_nothing_happens(row: Row, part: str, path: Path, tmp_path: Path) -> None:
    marker = lay(tmp_path)
    rewrite(path, lambda config: config.update({part: node(row, marker)}))
    refused(path, "cannot be built; it must be one of seqvae")
    assert not marker.exists()


def test_a_target_smuggled_to_any_depth_is_refused_or_never_read(run: Run, tmp_path: Path) -> None:
    marker = lay(tmp_path)
    sound = copied(run, tmp_path)
    config = json.loads((sound / "config.json").read_text(encoding="utf-8"))
    built = 0
    for place, where in enumerate(nodes(config)):
        hostile = node(HARMFUL[place % len(HARMFUL)], marker)
        for value in (hostile, [hostile], {"part": [{"part": hostile}]}):
            changed = copy.deepcopy(config)
            put(changed, where, value)
            rewrite(sound, lambda content, changed=changed: (content.clear(), content.update(changed)))  # type: ignore[misc]
            try:
                load(sound)
            except CheckpointError:
                built += 1
            assert not marker.exists()
    assert built > 30


@pytest.mark.parametrize("extra", SPECIAL, ids=lambda extra: next(iter(extra)))
@pytest.mark.parametrize("part", ["model", "prior"])
def test_an_instruction_in_a_node_is_refused(part: str, extra: dict[str, Any], path: Path) -> None:
    rewrite(path, lambda config: config[part].update(extra))
    refused(path, f"has no argument '{next(iter(extra))}'")


@pytest.mark.parametrize("name", [row[0] for row in HOSTILE], ids=lambda name: ascii(name)[:50])
def test_a_codec_of_another_name_is_refused(name: Any, path: Path) -> None:
    rewrite(path, lambda saved: saved.update(codec=name), "codec.json")
    refused(path, r"codec\.json names the codec")


@pytest.mark.parametrize(
    "name", ["model", "path", "model_file", "model_proto", "directory", "self", "__class__", "../x"]
)
def test_an_option_that_the_codec_does_not_have_is_refused(name: str, any_path: Path) -> None:
    rewrite(any_path, lambda saved: saved["options"].update({name: "../../../etc/passwd"}), "codec.json")
    refused(any_path, "unexpected keyword argument|multiple values for argument")


def test_a_newer_format_is_refused(path: Path) -> None:
    rewrite(path, lambda config: config.update(format=checkpoint.FORMAT + 1))
    refused(path, r"has format 2, this seqvae reads up to 1")


@pytest.mark.parametrize("key", ["format", "model", "prior", "data"])
def test_a_config_that_lacks_a_part_is_refused(key: str, path: Path) -> None:
    rewrite(path, lambda config: config.pop(key))
    refused(path, key)


# tensors


@pytest.mark.parametrize("name", [WEIGHTS, TRAINING])
def test_a_pickle_in_place_of_tensors_is_refused_though_the_manifest_fits(
    name: str, path: Path, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    bomb = pickle.dumps(Bomb(marker))
    pickle.loads(bomb)
    assert marker.exists()  # the bomb works
    marker.unlink()
    replace(path, name, bomb)
    checkpoint.verify(path)
    with pytest.raises(CheckpointError, match=f"{name} cannot be read"):
        checkpoint.read_training(path) if name == TRAINING else load(path)
    assert not marker.exists()


def header(content: Any, data: bytes = b"") -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


HEADERS: dict[str, bytes] = {
    "nothing": b"",
    "seven bytes": b"\0" * 7,
    "a length of 0": struct.pack("<Q", 0),
    "a length of 2^60": struct.pack("<Q", 1 << 60) + b"{}",
    "a length of 2^64-1": struct.pack("<Q", (1 << 64) - 1) + b"{}",
    "a length beyond the end": struct.pack("<Q", 100) + b"{}",
    "no JSON": header(b"no JSON"),
    "not UTF-8": header(b'{"\xff": 1}'),
    "a list": header([]),
    "deep": header(b'{"x":' + b"[" * 100_000),
    "no offsets": header({"x": {"dtype": "F32", "shape": [1]}}),
    "an unknown dtype": header(entry(dtype="PICKLE"), b"\0" * 8),
    "a dtype that is none": header(entry(dtype=7), b"\0" * 8),
    "a negative shape": header(entry(shape=[-2]), b"\0" * 8),
    "a shape that overflows": header(entry(shape=[1 << 62, 1 << 62]), b"\0" * 8),
    "a shape that does not fit": header(entry(shape=[3]), b"\0" * 8),
    "a shape that is none": header(entry(shape="ab"), b"\0" * 8),
    "offsets beyond the end": header(entry(offsets=[0, 1 << 40]), b"\0" * 8),
    "offsets the wrong way": header(entry(offsets=[8, 0]), b"\0" * 8),
    "negative offsets": header(entry(offsets=[-8, 0]), b"\0" * 8),
    "a hole": header(entry(offsets=[8, 16]), b"\0" * 16),
    "bytes of no tensor": header(entry(), b"\0" * 24),
    "two tensors on one place": header({**entry(), "y": entry()["x"]}, b"\0" * 8),
    "an HTML page": b"<html><body>404 Not Found</body></html>",
    "a zip": b"PK\x03\x04" + bytes(100),
    "zeros": bytes(4096),
}


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS)
def test_what_is_no_safetensors_file_is_refused(content: bytes, path: Path) -> None:
    replace(path, WEIGHTS, content)
    refused(path, rf"{WEIGHTS} cannot be read|{WEIGHTS} lacks|more parameters than")
    replace(path, TRAINING, content)
    with pytest.raises(CheckpointError, match=TRAINING):
        checkpoint.read_training(path)


def change(path: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(path / WEIGHTS)
    edit(tensors)
    replace(path, WEIGHTS, save(tensors))


NAME = "decoder.output.bias"

EDITS: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "missing": (lambda tensors: tensors.pop(NAME), f"lacks '{NAME}'"),
    "added": (lambda tensors: tensors.update(extra=torch.zeros(1)), "holds 'extra'"),
    "renamed": (lambda tensors: tensors.update({"x": tensors.pop(NAME)}), rf"lacks '{NAME}'|holds 'x'"),
    "longer": (lambda tensors: tensors.update({NAME: torch.zeros(999)}), rf"{NAME} .* is \[999\]"),
    "scalar": (lambda tensors: tensors.update({NAME: torch.zeros(())}), rf"{NAME} .* is \[\]"),
    "another rank": (lambda tensors: tensors.update({NAME: tensors[NAME][None]}), rf"{NAME} .* is \[1, "),
    "int64": (lambda tensors: tensors.update({NAME: tensors[NAME].long()}), rf"{NAME} .* torch.int64, .* floating"),
    "uint8": (lambda tensors: tensors.update({NAME: tensors[NAME].byte()}), rf"{NAME} .* torch.uint8"),
    "bool": (lambda tensors: tensors.update({NAME: tensors[NAME].bool()}), rf"{NAME} .* torch.bool"),
    "complex": (
        lambda tensors: tensors.update({NAME: tensors[NAME].to(torch.complex64)}),
        rf"{NAME} .* torch.complex64",
    ),
    "nan": (lambda tensors: tensors[NAME].__setitem__(0, math.nan), f"{NAME} .* is not finite"),
    "inf": (lambda tensors: tensors[NAME].__setitem__(-1, math.inf), f"{NAME} .* is not finite"),
    "-inf": (lambda tensors: tensors[NAME].__setitem__(1, -math.inf), f"{NAME} .* is not finite"),
    "none at all": (lambda tensors: tensors.clear(), "lacks|more parameters than"),
    "a thousand": (lambda tensors: tensors.update({f"x{n}": torch.zeros(1) for n in range(1000)}), "holds 'x0'"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_weights_that_do_not_fit_the_model_are_refused(edit: str, path: Path) -> None:
    change(path, EDITS[edit][0])
    refused(path, EDITS[edit][1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_weights_of_another_precision_are_taken(dtype: torch.dtype, path: Path) -> None:
    wanted = load(path).vae.state_dict()
    change(path, lambda tensors: tensors.update({name: tensor.to(dtype) for name, tensor in tensors.items()}))
    for name, tensor in load(path).vae.state_dict().items():
        torch.testing.assert_close(tensor, wanted[name], rtol=2**-7, atol=1e-6)


SIZES: list[tuple[str, str, Any]] = [
    ("text", "hidden_dim", 9),
    ("text", "hidden_dim", 10**9),
    ("text", "hidden_dim", 10**30),
    ("text", "embedding_dim", 10**9),
    ("text", "encoder_hidden_dim", 10**9),
    ("text", "latent_dim", 10**9),
    ("text", "num_layers", 10**9),
    ("text", "encoder_layers", 10**9),
    ("text", "tie_embeddings", True),
    ("melody", "num_layers", 10**12),
    ("fashion", "width", 10**9),
    ("fashion", "blocks", 10**9),
    ("fashion", "stages", 10**9),
    ("fashion", "stages", 10**30),
    ("fashion", "features", 10**12),
    ("fashion", "latent_dim", 10**30),
]


@pytest.mark.parametrize(("experiment", "name", "size"), SIZES)
def test_an_absurd_size_costs_neither_memory_nor_time(
    experiment: str, name: str, size: Any, get_run: GetRun, tmp_path: Path
) -> None:
    path = copied(get_run(experiment), tmp_path)
    rewrite(path, lambda config: config["model"].update({name: size}))
    load(get_run(experiment).path)  # what loading needs at all
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    refused(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB
    assert time.process_time() - start < 5


CODEC_SIZES: list[tuple[str, str, Any]] = [
    ("melody", "bars", 10**9),
    ("melody", "bars", 10**30),
    ("text", "max_length", 10**12),
    ("fashion", "image_shape", [1, 10**9, 10**9]),
    ("fashion", "image_shape", [3, 8, 8]),
    ("fashion", "image_shape", [1, 1, 1]),
]


@pytest.mark.parametrize(("experiment", "name", "size"), CODEC_SIZES)
def test_an_absurd_window_is_refused(experiment: str, name: str, size: Any, get_run: GetRun, tmp_path: Path) -> None:
    path = copied(get_run(experiment), tmp_path)
    rewrite(path, lambda saved: saved["options"].update({name: size}), "codec.json")
    refused(path)


# JSON

TEXTS: dict[str, bytes] = {
    "nothing": b"",
    "half": b'{"format": 1',
    "huge": b'{"format": 1, "x": "' + b"x" * MOST_JSON + b'"}',
    "deep": b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a little deep": b'{"x": ' + b"[" * MOST_LEVELS + b"]" * MOST_LEVELS + b"}",
    "a list": b"[]",
    "null": b"null",
    "a number": b"1",
    "not UTF-8": b'{"x": "\xff"}',
    "UTF-16": '{"format": 1}'.encode("utf-16"),
    "a number without end": b'{"format": ' + b"9" * 10_000 + b"}",
    "zeros": bytes(100),
}


@pytest.mark.parametrize("name", JSON)
@pytest.mark.parametrize("text", TEXTS)
def test_what_is_no_json_object_of_ours_is_refused(text: str, name: str, path: Path) -> None:
    replace(path, name, TEXTS[text])
    with pytest.raises(CheckpointError, match=f"{name} cannot be read"):
        checkpoint.read_training(path) if name == "training.json" else load(path)


def test_a_huge_manifest_is_refused(path: Path) -> None:
    with (path / MANIFEST).open("ab") as file:
        file.truncate(1 << 40)  # a hole: it takes no room on the disk
    start = time.process_time()
    refused(path, rf"{MANIFEST} cannot be read \(more than")
    assert time.process_time() - start < 5


OTHER: list[Any] = [
    None, True, False, 0, -1, 1, 2**53, 10**30, 1.5, -0.5, math.nan, math.inf, -math.inf,
    "", "text", "../../etc/passwd", "\x00", "\x1b[2J", [], [[]], ["x"], {}, {"x": {}}, {"_target_": "os.system"},
]  # fmt: skip


def mutations(content: Any) -> list[tuple[tuple[Any, ...], Any]]:
    """Return places and what to put there; a few values will do within what is only ever shown."""
    shown = {"versions", "metrics", "objective"}
    return [
        (where, value)
        for where in nodes(content)
        for value in (OTHER[::7] if len(where) > 1 and where[0] in shown else OTHER)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.json", "codec.json"])
def test_no_value_of_another_type_leaves_load_as_anything_but_one_error(
    name: str,
    run: Run,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = copied(run, tmp_path)
    monkeypatch.chdir(tmp_path)
    content = json.loads((path / name).read_text(encoding="utf-8"))
    tried, loaded = 0, 0
    for where, value in mutations(content):
        changed = copy.deepcopy(content)
        put(changed, where, value)
        replace(path, name, json.dumps(changed).encode())
        tried += 1
        try:
            load(path)
        except CheckpointError:
            continue
        loaded += 1
        if len(where) == 1 or where[0] == "data":  # what was taken must not hurt the commands either
            more = [["evaluate", str(path), "--limit", "1"]] if where[0] == "data" else []
            for command in (["info", str(path)], ["info", str(path), "--json"], *more):
                assert main(command) in (0, 2)
                capsys.readouterr()
    print(f"{tried} mutations")
    assert tried >= 2 * len(OTHER)
    assert name == "codec.json" or 0 < loaded < tried


def test_no_value_of_another_type_in_the_training_state_leaves_a_training_as_anything_but_one_error(
    get_run: GetRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copied(get_run("text"), tmp_path)
    content = json.loads((path / "training.json").read_text(encoding="utf-8"))
    tried, taken = 0, set()
    for where, value in mutations(content):
        changed = copy.deepcopy(content)
        put(changed, where, value)
        replace(path, "training.json", json.dumps(changed).encode())
        tried += 1
        try:
            values = checkpoint.read_training(path).values
        except CheckpointError:
            continue
        taken.add((where, type(values[where[0]])))
    print(f"{tried} mutations")
    assert (("step",), int) in taken
    assert {kind for where, kind in taken if where[0] in ("step", "schedule_steps", "world_size")} == {int}
    assert {kind for where, kind in taken if where == ("best_score",)} <= {int, float, type(None)}


# names on the command line, and in somebody else's experiment


def text_of(value: Any) -> str:
    """Return a value in the grammar of Hydra's command line."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{text_of(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(text_of, value)) + "]"
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return {None: "null", True: "true", False: "false"}.get(value, str(value))


PLACES = ("objective.beta", "learning_rate", "prior", "model", "objective", "optimizer", "model.likelihood")


def one_line(arguments: list[str], capsys: Capture) -> str:
    capsys.readouterr()
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.strip().splitlines()) == 1, err
    assert err.startswith("seqvae train: ")
    return err


@pytest.fixture
def training(get_world: GetWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command that trains, once the rows of a test are taken from it, and a folder of harmful files around it."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return ["train", *get_world("text").overrides[1:], "debug=smoke"]


def test_the_command_of_these_tests_trains_without_their_rows(training: list[str]) -> None:
    assert main([*training, "experiment=text"]) == 0


@pytest.mark.parametrize(("place", "row"), [(PLACES[n % len(PLACES)], row) for n, row in enumerate(HOSTILE)])
def test_a_hostile_target_on_the_command_line_is_one_error(
    place: str, row: Row, training: list[str], tmp_path: Path, capsys: Capture
) -> None:
    marker = lay(tmp_path)
    hostile = node(row, marker)
    overrides = [f"++{place}.{name}={text_of(value)}" for name, value in hostile.items()]
    error = one_line([*training, "experiment=text", *overrides], capsys)
    assert "cannot be built; it must be one of seqvae" in error
    assert not marker.exists()
    assert list(Path().iterdir()) == []


def experiment(folder: Path, content: dict[str, Any]) -> list[str]:
    """Write somebody's experiment on top of a shipped one; return what chooses it."""
    (folder / "conf" / "experiment").mkdir(parents=True)
    text = yaml.safe_dump({"defaults": ["text", "_self_"], **content})
    (folder / "conf" / "experiment" / "theirs.yaml").write_text(f"# @package _global_\n{text}", encoding="utf-8")
    return ["--config-dir", str(folder / "conf"), "experiment=theirs"]


def nested(place: str, value: Any) -> dict[str, Any]:
    for key in reversed(place.split(".")):
        value = {key: value}
    return dict(value)


@pytest.mark.parametrize(("place", "row"), [(PLACES[n % len(PLACES)], row) for n, row in enumerate(HOSTILE)])
def test_a_hostile_target_in_an_experiment_is_one_error(
    place: str, row: Row, training: list[str], tmp_path: Path, capsys: Capture
) -> None:
    marker = lay(tmp_path)
    chosen = experiment(tmp_path, nested(place, node(row, marker)))
    error = one_line(["train", *chosen, *training[1:]], capsys)
    assert "cannot be built; it must be one of seqvae" in error
    assert not marker.exists()
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("extra", SPECIAL, ids=lambda extra: next(iter(extra)))
def test_an_instruction_on_the_command_line_is_one_error(
    extra: dict[str, Any], training: list[str], capsys: Capture
) -> None:
    ((name, value),) = extra.items()
    error = one_line([*training, "experiment=text", f"++objective.beta.{name}={text_of(value)}"], capsys)
    assert f"has no argument '{name}'" in error


OPEN = {"_target_": "builtins.open", "file": "{marker}", "mode": "w"}
HANDLER = {"version": 1, "root": {"level": "INFO", "handlers": ["x"]}, "formatters": {}}

HYDRA: dict[str, dict[str, Any]] = {
    "callbacks": {"callbacks": {"x": OPEN}},
    "job_logging": {"job_logging": {**HANDLER, "handlers": {"x": {"()": "builtins.open", **OPEN}}}},
    "a file of job_logging": {
        "job_logging": {**HANDLER, "handlers": {"x": {"class": "logging.FileHandler", "filename": "{marker}"}}}
    },
    "hydra_logging": {
        "hydra_logging": {**HANDLER, "handlers": {"x": {"class": "logging.FileHandler", "filename": "{marker}"}}}
    },
    "env_set": {"job": {"env_set": {"PYTHONPATH": "{folder}"}}},
    "launcher": {"launcher": {"_target_": "builtins.open"}},
    "sweeper": {"sweeper": {"_target_": "builtins.open"}, "mode": "MULTIRUN"},
}


@pytest.mark.parametrize("name", HYDRA)
def test_an_experiment_cannot_make_hydra_do_it(name: str, training: list[str], tmp_path: Path, capsys: Capture) -> None:
    marker = lay(tmp_path)
    hostile = node(("", {"hydra": HYDRA[name]}), marker)["hydra"]
    environment = dict(os.environ)
    chosen = experiment(tmp_path, {"hydra": hostile})
    arguments = ["train", *(["-m"] if name == "launcher" else []), *chosen, *training[1:]]
    error = one_line(arguments, capsys)
    assert not marker.exists()
    assert {**os.environ, "HYDRA_FULL_ERROR": ""} == {**environment, "HYDRA_FULL_ERROR": ""}
    assert "hydra" in error


def test_the_command_line_cannot_make_hydra_do_it(training: list[str], tmp_path: Path, capsys: Capture) -> None:
    marker = lay(tmp_path)
    overrides = [f"+hydra.callbacks.x.{name}={text_of(value)}" for name, value in node(("", {**OPEN}), marker).items()]
    overrides = [override for override in overrides if "_target_" not in override]
    error = one_line([*training, "experiment=text", "+hydra.callbacks.x._target_=builtins.open", *overrides], capsys)
    assert "hydra.callbacks cannot be set" in error
    assert not marker.exists()


@pytest.mark.parametrize("flag", ["--experimental-rerun", "--experimental-rerun=", "--exp"])
def test_a_pickled_job_is_never_run_again(flag: str, training: list[str], tmp_path: Path, capsys: Capture) -> None:
    marker = lay(tmp_path)
    bomb = str(tmp_path / "bomb.pickle")
    error = one_line(["train", f"{flag}{bomb}"] if flag.endswith("=") else ["train", flag, bomb], capsys)
    assert "it would unpickle a file" in error
    assert not marker.exists()


@pytest.mark.parametrize(
    "content",
    ["seed: " + "[" * 3000, "\0\0\0", "seed: [3", "seed: !!python/object/apply:os.system ['touch marker']", "- x", "7"],
    ids=["deep", "zeros", "half", "a Python object", "a list", "a number"],
)
def test_an_experiment_that_is_none_is_one_error(
    content: str, training: list[str], tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "theirs.yaml").write_text(f"# @package _global_\n{content}\n")
    one_line(["train", "--config-dir", str(tmp_path / "conf"), "experiment=theirs", *training[1:]], capsys)
    assert list(Path().iterdir()) == []


def test_a_value_nested_without_end_is_one_error(training: list[str], capsys: Capture) -> None:
    one_line([*training, "experiment=text", f"seed={'[' * 3000}{']' * 3000}"], capsys)
