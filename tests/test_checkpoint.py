"""Checkpoints: whole or absent, and verified when read."""

import json
import logging
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from seqvae.cli import main
from seqvae.data import load_codec
from seqvae.data.dataset import sha256
from seqvae.harness import checkpoint
from seqvae.harness.checkpoint import REQUIRED, CheckpointError, TrainingState, resolve, save_checkpoint
from seqvae.harness.config import load
from seqvae.harness.run import train
from tests.helpers.damage import DAMAGE, MANIFEST, files, flip_bit, restore, rewrite
from tests.helpers.worlds import Run, configuration

NAMES = sorted({*REQUIRED, MANIFEST, "tokenizer.model"})  # a text checkpoint's files


def score(path: Path, value: float | None) -> None:
    rewrite(path, lambda config: config.update(score=value))


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
def test_a_damaged_file_is_named_in_every_modality(damage: str, run: Run, tmp_path: Path) -> None:
    sound = run.path / "checkpoints" / "step-000000004"
    path = Path(shutil.copytree(sound, tmp_path / "step-000000004"))
    assert load(path).path == path
    caught = []
    for name in files(sound):
        DAMAGE[damage](path / name)
        # a manifest with one wrong bit may name another file: the one that it no longer fits
        named = "damaged: " if (name, damage) == (MANIFEST, "one bit flipped") else name
        with pytest.raises(CheckpointError, match=f"step-000000004: .*{named}") as error:
            load(path)
        assert "\n" not in str(error.value)
        assert main(["info", str(path)]) == 2
        restore(path, sound)
        caught.append(name)
    assert {*REQUIRED, MANIFEST} <= {*caught}
    assert load(path).path == path


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("which", ["", "@last"])
def test_a_run_falls_back_to_the_checkpoint_before_a_damaged_one_with_a_warning(
    which: str, name: str, damage: str, copied: Path, newest: Path, older: Path, caplog: pytest.LogCaptureFixture
) -> None:
    score(older, -2.0)
    score(newest, -1.0)
    assert resolve(f"{copied}{which}") == newest
    DAMAGE[damage](newest / name)
    with caplog.at_level(logging.WARNING):
        assert resolve(f"{copied}{which}") == older
    assert "step-000000004" in caplog.text
    assert name in caplog.text or (name, damage) == (MANIFEST, "one bit flipped")  # names the file it no longer fits
    assert caplog.records[0].levelno == logging.WARNING


def flips(path: Path, name: str, chance: random.Random, most: int) -> list[int]:
    bits = 8 * (path / name).stat().st_size
    return list(range(bits)) if bits <= most else sorted(chance.sample(range(bits), most))


def uncaught_flips(sound: Path, path: Path, most: int) -> tuple[int, list[tuple[str, int]]]:
    """Flip up to `most` bits of every file, each alone; return how many, and which of them were not noticed."""
    chance, tried, missed = random.Random(0), 0, []
    for name in files(sound):
        content = (path / name).read_bytes()
        for bit in flips(path, name, chance, most):
            flip_bit(path / name, bit)
            tried += 1
            try:
                checkpoint.verify(path)
                missed.append((name, bit))
            except CheckpointError:
                pass
        (path / name).write_bytes(content)
    checkpoint.verify(path)
    return tried, missed


def test_no_flipped_bit_goes_unnoticed(run: Run, tmp_path: Path) -> None:
    sound = run.path / "checkpoints" / "step-000000004"
    path = Path(shutil.copytree(sound, tmp_path / "copy"))
    tried, missed = uncaught_flips(sound, path, most=150)
    print(f"{tried} flips")
    assert missed == []
    assert tried >= 150 * len(REQUIRED)


def test_a_flip_would_go_unnoticed_without_the_digests(
    newest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "sha256", lambda file: json.loads((newest / MANIFEST).read_text())[file.name])
    path = Path(shutil.copytree(newest, tmp_path / "copy"))
    _, missed = uncaught_flips(newest, path, most=20)
    assert {name for name, _ in missed} >= {"model.safetensors", "training.safetensors"}


@pytest.mark.slow
def test_no_flipped_bit_of_a_small_file_goes_unnoticed(newest: Path, tmp_path: Path) -> None:
    (newest / "tokenizer.model").write_bytes(b"short")  # it is read by nothing here, and would only cost time
    manifest = json.loads((newest / MANIFEST).read_text(encoding="utf-8"))
    manifest["tokenizer.model"] = sha256(newest / "tokenizer.model")
    (newest / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    path = Path(shutil.copytree(newest, tmp_path / "copy"))
    tried, missed = uncaught_flips(newest, path, most=8 * 700)
    print(f"{tried} flips")
    assert missed == []
    assert tried > 8 * sum((newest / name).stat().st_size for name in (MANIFEST, "codec.json", "training.json"))


@pytest.mark.parametrize("deleted", [False, True], ids=["kept", "deleted"])
@pytest.mark.parametrize("name", sorted(set(NAMES) - {MANIFEST}))
def test_a_manifest_that_dropped_an_entry_is_refused(
    name: str, deleted: bool, newest: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = json.loads((newest / MANIFEST).read_text(encoding="utf-8"))
    del manifest[name]
    (newest / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    if deleted:
        (newest / name).unlink()
    with pytest.raises(CheckpointError, match=name):  # what the codec alone knows of, its loading names
        load(newest)
    if name in REQUIRED:  # and so a training never goes on without its state
        with pytest.raises(CheckpointError, match=rf"MANIFEST\.json does not list {name}"):
            checkpoint.verify(newest)


def test_a_file_that_the_manifest_does_not_list_is_refused(newest: Path) -> None:
    (newest / ".DS_Store").touch()  # a file manager was here
    assert load(newest).path == newest
    (newest / "extra.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"it holds 'extra\.safetensors', which MANIFEST\.json does not list"):
        load(newest)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_the_disk_does_not_give_is_damage(
    name: str, copied: Path, newest: Path, older: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Path.open

    def failing(self: Path, *arguments: Any, **options: Any) -> Any:
        if self == newest / name:
            raise OSError(5, "Input/output error")
        return original(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", failing)
    assert resolve(str(copied)) == older
    with pytest.raises(CheckpointError, match=f"damaged: {name} cannot be read .*Input/output error"):
        resolve(str(newest))


def test_a_training_goes_on_from_the_checkpoint_before_a_damaged_one(
    copied: Path, newest: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = (newest / "model.safetensors").read_bytes()
    flip_bit(newest / "training.safetensors", 5000)
    config = json.loads((newest / "config.json").read_text(encoding="utf-8"))
    overrides = ["experiment=text", f"data.root={config['data']['root']}", "debug=smoke", f"run_dir={copied}"]
    sizes = [f"model.{name}={json.dumps(value)}" for name, value in config["model"].items() if name != "_target_"]
    train(configuration([*overrides, *sizes, "resume=auto"]))
    assert "training.safetensors is not what was written" in caplog.text
    assert (newest / "model.safetensors").read_bytes() == weights
    assert files(copied / "checkpoints") == ["step-000000002", "step-000000004"]
    checkpoint.verify(newest)


def test_a_run_without_a_sound_checkpoint_is_an_error(copied: Path, newest: Path, older: Path) -> None:
    flip_bit(newest / "model.safetensors", 9)
    flip_bit(older / "config.json", 9)
    with pytest.raises(CheckpointError, match="every checkpoint of this run is damaged"):
        resolve(str(copied))


def test_a_run_means_its_best_and_at_last_its_newest(copied: Path, newest: Path, older: Path) -> None:
    score(older, -1.0)
    score(newest, -2.0)
    assert resolve(str(copied)) == older
    assert resolve(f"{copied}@best") == older
    assert resolve(f"{copied}@last") == newest
    score(older, -3.0)
    assert resolve(str(copied)) == newest


def test_a_run_that_was_never_scored_means_its_newest(copied: Path, newest: Path, older: Path) -> None:
    score(older, None)
    score(newest, None)
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
    assert resolve(str(moved)) == moved / "checkpoints" / newest.name


@pytest.mark.parametrize("failing", [1, 2])
def test_a_save_that_fails_in_the_middle_leaves_nothing(
    failing: int, newest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def save_file(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(28, "No space left on device")
        safetensors.torch.save_file(*arguments)

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


class _Killed(BaseException):
    """What a kill is to the code it stops."""


@pytest.mark.parametrize("function", ["rename", "rmtree"])
@pytest.mark.parametrize("place", [1, 2, 3])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_kill_while_a_checkpoint_is_replaced_leaves_one(
    place: int, after: bool, function: str, newest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, root, calls = tmp_path / "own", tmp_path / "own" / "checkpoints", 0
    path = save(root, 1, newest)
    owner: Any = Path if function == "rename" else shutil
    original = getattr(owner, function)

    def killing(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == place and not after:
            raise _Killed
        result = original(*arguments, **options)
        if calls == place:
            raise _Killed
        return result

    with monkeypatch.context() as patch:
        patch.setattr(owner, function, killing)
        try:
            save(root, 1, newest)
            assert calls < place  # it was never called so often
        except _Killed:
            pass
    survivor = checkpoint.last(run_dir)
    assert survivor is not None
    assert resolve(str(run_dir)) == survivor
    checkpoint.sweep(root)
    assert checkpoint.last(run_dir) == survivor
    assert save(root, 1, newest) == path
    assert checkpoint.checkpoints(run_dir) == [path]
    assert files(root) == [path.name]


def test_what_replaces_a_checkpoint_comes_after_it(tmp_path: Path) -> None:
    for name in ("step-000000002", "step-000000001.7", "step-000000002.11", "step-000000001", ".tmp-step-000000003"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == [
        "step-000000001.7",
        "step-000000001",
        "step-000000002.11",
        "step-000000002",
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_a_score_that_is_no_number_is_never_the_best(
    value: float | None, copied: Path, newest: Path, older: Path
) -> None:
    score(older, -5.0)
    score(newest, value)
    assert resolve(str(copied)) == older


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
