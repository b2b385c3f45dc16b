"""Checkpoints: whole or absent, verified when read, and nothing in them is trusted."""

import json
import logging
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from seqvae.data import load_codec
from seqvae.data.dataset import sha256
from seqvae.harness import checkpoint
from seqvae.harness.checkpoint import CheckpointError, TrainingState, resolve, save_checkpoint
from seqvae.harness.config import load
from tests.helpers.worlds import Run

FILES = ("model.safetensors", "config.json", "codec.json", "training.safetensors", "training.json", "MANIFEST.json")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x01
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "truncated": truncate,
    "one bit flipped": flip,
    "emptied": lambda path: path.write_bytes(b"") and None,
    "deleted": Path.unlink,
}


def rewrite(path: Path, change: Callable[[dict[str, Any]], None], name: str = "config.json") -> None:
    """Change a checkpoint's JSON file and its manifest: what someone who means harm would do."""
    content = json.loads((path / name).read_text(encoding="utf-8"))
    change(content)
    (path / name).write_text(json.dumps(content), encoding="utf-8")
    remake_manifest(path)


def remake_manifest(path: Path) -> None:
    files = (file for file in path.iterdir() if file.name != "MANIFEST.json")
    (path / "MANIFEST.json").write_text(json.dumps({file.name: sha256(file) for file in files}), encoding="utf-8")


def rename_score(path: Path, score: float | None) -> None:
    rewrite(path, lambda config: config.update(score=score))


@pytest.fixture
def copied(get_run: Callable[[str], Run], tmp_path: Path) -> Path:
    """A run of two checkpoints that may be damaged."""
    return Path(shutil.copytree(get_run("text").path, tmp_path / "run"))


@pytest.fixture
def newest(copied: Path) -> Path:
    return copied / "checkpoints" / "step-000000004"


@pytest.fixture
def older(copied: Path) -> Path:
    return copied / "checkpoints" / "step-000000002"


def save(root: Path, step: int, codec_from: Path) -> Path:
    weights = {"weight": torch.arange(6.0).view(2, 3).T}  # not contiguous: safetensors alone would refuse it
    training = TrainingState({"rng.0": torch.get_rng_state()}, {"step": step})
    return save_checkpoint(root, step, weights, {"score": None}, load_codec(codec_from), training)


def test_what_is_saved_is_what_is_read(newest: Path, tmp_path: Path) -> None:
    path = save(tmp_path / "checkpoints", 7, newest)
    assert path.name == "step-000000007"
    assert resolve(str(path)) == path
    assert checkpoint.read_config(path) == {"format": checkpoint.FORMAT, "score": None}
    torch.testing.assert_close(
        checkpoint.read_tensors(path, "model.safetensors")["weight"], torch.arange(6.0).view(2, 3).T
    )
    training = checkpoint.read_training(path)
    assert training.values == {"step": 7}
    assert torch.equal(training.tensors["rng.0"], torch.get_rng_state())
    assert not list(path.parent.glob(".tmp-*"))


def test_loading_twice_gives_the_same_weights(run: Run) -> None:
    first, second = load(run.path), load(run.path)
    assert not first.vae.training
    stored = checkpoint.read_tensors(first.path, "model.safetensors")
    for name, value in first.vae.state_dict().items():
        assert torch.equal(value, second.vae.state_dict()[name])
        assert torch.equal(value, stored[name])
    assert first.codec.options == second.codec.options
    assert first.config["data"]["root"] == str(run.world.root)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", [*FILES, "tokenizer.model"])
def test_a_damaged_file_is_named(name: str, damage: str, newest: Path) -> None:
    DAMAGE[damage](newest / name)
    if (name, damage) == ("MANIFEST.json", "one bit flipped"):  # still JSON: what it no longer fits is named
        name = "damaged: "
    with pytest.raises(CheckpointError, match=f"step-000000004: .*{name}"):
        load(newest)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("which", ["", "@last"])
def test_a_run_falls_back_to_the_checkpoint_before_a_damaged_one_with_a_warning(
    which: str, name: str, damage: str, copied: Path, newest: Path, older: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rename_score(older, -2.0)
    rename_score(newest, -1.0)
    assert resolve(f"{copied}{which}") == newest
    DAMAGE[damage](newest / name)
    with caplog.at_level(logging.WARNING):
        assert resolve(f"{copied}{which}") == older
    assert "step-000000004" in caplog.text
    assert caplog.records[0].levelno == logging.WARNING


def test_a_run_without_a_sound_checkpoint_is_an_error(copied: Path, newest: Path, older: Path) -> None:
    flip(newest / "model.safetensors")
    flip(older / "config.json")
    with pytest.raises(CheckpointError, match="every checkpoint of this run is damaged"):
        resolve(str(copied))


def test_a_run_means_its_best_and_at_last_its_newest(copied: Path, newest: Path, older: Path) -> None:
    rename_score(older, -1.0)
    rename_score(newest, -2.0)
    assert resolve(str(copied)) == older
    assert resolve(f"{copied}@best") == older
    assert resolve(f"{copied}@last") == newest
    rename_score(older, -3.0)
    assert resolve(str(copied)) == newest


def test_a_run_that_was_never_scored_means_its_newest(copied: Path, newest: Path, older: Path) -> None:
    rename_score(older, None)
    rename_score(newest, None)
    assert resolve(str(copied)) == newest


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{run}@latest", "@latest names no checkpoint; it is @best or @last"),
        ("{run}/nowhere", "no such file or directory"),
        ("{run}/tensorboard", "neither a checkpoint"),
        ("{run}/config.yaml", "neither a checkpoint"),
    ],
)
def test_a_name_that_means_nothing_is_an_error(name: str, message: str, copied: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        resolve(name.format(run=copied))


def test_a_folder_whose_name_has_an_at_sign_can_be_named(copied: Path, newest: Path) -> None:
    moved = copied.with_name("run@home")
    copied.rename(moved)
    assert resolve(f"{moved}@last") == moved / "checkpoints" / newest.name


@pytest.mark.parametrize("failing", [1, 2])
def test_a_save_that_fails_in_the_middle_leaves_nothing(
    failing: int, newest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = checkpoint.save_file, 0

    def save_file(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(28, "No space left on device")
        original(*arguments)

    monkeypatch.setattr(checkpoint, "save_file", save_file)
    root = tmp_path / "checkpoints"
    with pytest.raises(OSError, match="No space left"):
        save(root, 1, newest)
    assert list(root.iterdir()) == []
    assert save(root, 1, newest).is_dir()


def test_a_save_that_fails_leaves_the_checkpoint_of_the_same_step_alone(
    newest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path, 1, newest)
    monkeypatch.setattr(checkpoint, "_write_json", lambda path, value: json.dumps(object()))
    with pytest.raises(TypeError):
        save(tmp_path, 1, newest)
    assert resolve(str(path)) == path


def test_a_sweep_removes_what_a_killed_save_left_and_nothing_else(copied: Path) -> None:
    root = copied / "checkpoints"
    (root / ".tmp-abc").mkdir()
    (root / ".tmp-abc" / "model.safetensors").write_bytes(b"half")
    before = checkpoint.checkpoints(copied)
    assert len(before) == 2  # a temporary folder is no checkpoint
    checkpoint.sweep(root)
    assert sorted(root.iterdir()) == before


@pytest.mark.parametrize(
    ("keep", "protected", "left"),
    [(2, None, [4, 5]), (2, 1, [1, 4, 5]), (2, 5, [4, 5]), (1, 3, [3, 5]), (9, None, [1, 2, 3, 4, 5])],
)
def test_pruning_keeps_the_newest_and_the_best(
    keep: int, protected: int | None, left: list[int], newest: Path, tmp_path: Path
) -> None:
    paths = {step: save(tmp_path / "pruned" / "checkpoints", step, newest) for step in range(1, 6)}
    checkpoint.prune(tmp_path / "pruned", keep, None if protected is None else paths[protected])
    assert sorted((tmp_path / "pruned" / "checkpoints").iterdir()) == [paths[step] for step in left]


@pytest.mark.parametrize("name", ["../../../config.yaml", "/etc/passwd", "sub/file", ".."])
def test_a_manifest_that_names_a_file_elsewhere_is_refused(name: str, newest: Path) -> None:
    manifest = json.loads((newest / "MANIFEST.json").read_text(encoding="utf-8"))
    (newest / "MANIFEST.json").write_text(json.dumps({**manifest, name: "0" * 64}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"names a file elsewhere|is missing"):
        load(newest)


@pytest.mark.parametrize("manifest", ["[]", "{}", "null", "{", '{"model.safetensors": "0"}', "\x00"])
def test_a_manifest_that_is_none_is_refused(manifest: str, newest: Path) -> None:
    (newest / "MANIFEST.json").write_text(manifest, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"MANIFEST\.json"):
        load(newest)


@pytest.mark.parametrize("part", ["model", "prior"])
@pytest.mark.parametrize(
    "target", ["os.system", "builtins.open", "logging.os.system", "torch.load", "seqvae.models.torch.load"]
)
def test_a_smuggled_target_is_refused_and_nothing_happens(target: str, part: str, newest: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    arguments = {"command": f"touch {marker}", "file": str(marker), "mode": "w", "f": str(marker)}
    rewrite(newest, lambda config: config.update({part: {"_target_": target, **arguments}}))
    with pytest.raises(CheckpointError, match=f"'{target}' cannot be built"):
        load(newest)
    assert not marker.exists()


class _Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors"])
def test_a_pickle_in_place_of_tensors_is_refused_though_the_manifest_fits(
    name: str, newest: Path, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    bomb = pickle.dumps(_Bomb(marker))
    pickle.loads(bomb)
    assert marker.exists()  # the bomb works
    marker.unlink()
    (newest / name).write_bytes(bomb)
    remake_manifest(newest)
    checkpoint.verify(newest)
    with pytest.raises(CheckpointError, match=f"{name} cannot be read"):
        checkpoint.read_tensors(newest, name)
    if name == "model.safetensors":
        with pytest.raises(CheckpointError, match=f"{name} cannot be read"):
            load(newest)
    assert not marker.exists()


def test_a_newer_format_is_refused(newest: Path) -> None:
    rewrite(newest, lambda config: config.update(format=checkpoint.FORMAT + 1))
    with pytest.raises(CheckpointError, match=r"has format 2, this seqvae reads up to 1"):
        load(newest)


@pytest.mark.parametrize("key", ["format", "model", "prior"])
def test_a_config_that_lacks_a_part_is_refused(key: str, newest: Path) -> None:
    rewrite(newest, lambda config: config.pop(key))
    with pytest.raises(CheckpointError, match=key):
        load(newest)


def test_weights_that_do_not_fit_the_network_are_refused(newest: Path) -> None:
    rewrite(newest, lambda config: config["model"].update(hidden_dim=9))
    with pytest.raises(CheckpointError, match="size mismatch"):
        load(newest)


def test_a_codec_of_another_name_is_refused(newest: Path) -> None:
    rewrite(newest, lambda saved: saved.update(codec="os.system"), "codec.json")
    with pytest.raises(CheckpointError, match=r"names the codec 'os\.system'"):
        load(newest)
