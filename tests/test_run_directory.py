"""A run directory in trouble: no room, no right to write, two trainings at once, another place."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from safetensors import SafetensorError

from seqvae.cli import main
from seqvae.harness import checkpoint
from seqvae.harness.checkpoint import resolve
from tests.helpers.damage import files
from tests.helpers.worlds import Run, World

GetRun = Callable[[str], Run]
GetWorld = Callable[[str], World]
Capture = pytest.CaptureFixture[str]

FULL = OSError(errno.ENOSPC, "No space left on device")


def command(world: World, run_dir: Path, *overrides: str) -> list[str]:
    """Return a training that saves at every step."""
    common = ["debug=smoke", "trainer.save_every=1", "trainer.valid_every=100", f"run_dir={run_dir}"]
    return ["train", *world.overrides, *common, *overrides]


def one_line(arguments: list[str], capsys: Capture) -> str:
    capsys.readouterr()
    assert main(arguments) == 2
    return last_line(capsys.readouterr().err)


def last_line(err: str) -> str:
    assert "Traceback" not in err
    assert "Error ---" not in err
    lines = [line for line in err.splitlines() if line.startswith("seqvae train: ")]
    assert len(lines) == 1, err
    assert err.rstrip().endswith(lines[0])
    return lines[0]


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Return a small disk of its own, mounted with options; skip where that is not allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> Path:
        mounted = shutil.which("mount") and subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, check=False
        )
        if not mounted or mounted.returncode:
            pytest.skip("only root may mount a small disk")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)


def run_apart(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own: what its threads print counts too."""
    code = "import sys; from seqvae.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("size", ["4k", "8k", "300k"])
def test_a_full_disk_ends_a_training_with_one_line_and_leaves_the_checkpoints_before(
    size: str, get_world: GetWorld, tmpfs: Callable[[str], Path]
) -> None:
    disk = tmpfs(f"size={size}")
    done = run_apart(command(get_world("fashion"), disk / "run", "trainer.max_steps=50", "trainer.keep_last=50"))
    assert done.returncode == 2, done.stderr
    assert "No space left on device" in last_line(done.stderr)
    root = disk / "run" / "checkpoints"
    saved = files(root) if root.exists() else []
    assert all(name.startswith("step-") for name in saved)  # nothing half-written
    for name in saved:
        checkpoint.verify(root / name)
    if size == "300k":
        assert saved
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        done = run_apart(command(get_world("fashion"), disk / "run", "resume=auto", "trainer.max_steps=50"))
        assert done.returncode == 0, done.stderr
        assert f"going on from {root / saved[-1]}" in done.stderr
        assert resolve(f"{disk / 'run'}@last").name == "step-000000050"


@pytest.mark.parametrize(
    "error", [FULL, SafetensorError("Error while serializing: I/O error: No space left on device")]
)
@pytest.mark.parametrize("place", [1, 2, 3, 4])
def test_a_save_without_room_ends_a_training_with_one_line(
    place: int,
    error: Exception,
    get_world: GetWorld,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second save fails in its first or second tensor file, or in a later JSON file."""
    run_dir, calls = tmp_path / "run", 0

    def failing(name: str, at: int) -> None:
        original = getattr(checkpoint, name)

        def call(*arguments: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == at:
                raise error
            original(*arguments)

        monkeypatch.setattr(checkpoint, name, call)

    if place <= 2:
        failing("save_file", 2 + place)
    else:
        failing("_write_json", 2 + place)
    line = one_line(command(get_world("text"), run_dir, "trainer.max_steps=3"), capsys)
    assert "step-000000002 cannot be written" in line
    assert "No space left on device" in line
    assert files(run_dir / "checkpoints") == ["step-000000001"]
    monkeypatch.undo()
    assert main(command(get_world("text"), run_dir, "trainer.max_steps=3", "resume=auto")) == 0
    assert resolve(f"{run_dir}@last").name == "step-000000003"


def test_a_run_directory_that_may_not_be_written_is_one_line(
    get_world: GetWorld, get_run: GetRun, tmpfs: Callable[[str], Path], capsys: Capture
) -> None:
    disk = tmpfs("size=20m")
    shutil.copytree(get_run("text").path, disk / "run")
    before = files(disk / "run")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert "Read-only file system" in one_line(command(get_world("text"), disk / "new"), capsys)
    line = one_line(["train", f"resume={disk / 'run'}", "trainer.max_steps=6"], capsys)
    assert "Read-only file system" in line
    assert str(disk / "run") in line
    assert main(["info", str(disk / "run")]) == 0  # reading needs no right to write
    assert files(disk / "run") == before


@pytest.mark.parametrize("start", ["run_dir={run} resume=auto", "resume={run} trainer.max_steps=6"])
def test_a_second_training_in_a_run_directory_is_refused(
    start: str, get_run: GetRun, tmp_path: Path, capsys: Capture
) -> None:
    run = get_run("text")
    copied = Path(shutil.copytree(run.path, tmp_path / "run"))
    before = {name: (copied / name).stat().st_mtime_ns for name in files(copied)}
    first = [] if start.startswith("resume") else [*run.world.overrides, "debug=smoke"]
    arguments = ["train", *first, *start.format(run=copied).split()]
    with FileLock(copied / ".lock"):
        assert "is being trained in by another process" in one_line(arguments, capsys)
    after = {name: (copied / name).stat().st_mtime_ns for name in files(copied)}
    assert {**after, ".lock": 0} == {**before, ".lock": 0}
    assert main(arguments) == 0  # and allowed when the first has ended


def test_a_copied_run_works_and_goes_on_elsewhere(
    run: Run, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with FileLock(run.path / ".lock"):  # copied in the middle of a training: the lock does not travel
        copied = Path(shutil.copytree(run.path, tmp_path / "another machine" / "run@home"))
    data = Path(shutil.copytree(run.world.root, tmp_path / "data of mine"))
    hidden, gone = run.world.root.with_name("hidden"), run.path.with_name(f"{run.path.name}-hidden")
    run.world.root.rename(hidden)
    run.path.rename(gone)
    try:
        assert main(["info", str(copied)]) == 0
        assert main(["sample", str(copied), "-n", "1", "-o", "out"]) == 0
        assert main(["evaluate", f"{copied}@last", "--data", str(data)]) == 0
        assert main(["encode", str(copied), "test:0", "--data", str(data), "-o", "z.npy"]) == 0
        common = [*run.world.overrides, "debug=smoke", "resume=auto", f"run_dir='{copied}'", f"data.root='{data}'"]
        with FileLock(gone / ".lock"):
            assert main(["train", *common, "trainer.max_steps=5"]) == 0
        newest = resolve(f"{copied}@last")
        assert newest == copied / "checkpoints" / "step-000000005"
        assert json.loads((newest / "config.json").read_text(encoding="utf-8"))["data"]["root"] == str(data)
        assert main(["evaluate", f"{copied}@last", "--limit", "1"]) == 0  # it has learned where its data are
        assert not (gone / "checkpoints" / "step-000000005").exists()
    finally:
        hidden.rename(run.world.root)
        gone.rename(run.path)
    capsys.readouterr()


def test_a_lock_left_by_a_killed_training_holds_nobody(get_run: GetRun, tmp_path: Path) -> None:
    run = get_run("text")
    copied = Path(shutil.copytree(run.path, tmp_path / "run"))
    (copied / ".lock").write_text(str(os.getpid()))  # the file stays after a kill; the lock does not
    assert main(["train", f"resume={copied}", "trainer.max_steps=5"]) == 0
