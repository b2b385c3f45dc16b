"""Google's own @magenta/music on Node, asked about a model that was exported for it."""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

PACKAGE = "@magenta/music@1.23.1"
PLACE = "SEQVAE_MAGENTA_MUSIC"
"""The environment variable that names a directory in which npm has installed PACKAGE; without it, tests do that."""

SCRIPT = Path(__file__).with_name("magenta_music.cjs")


def magenta_music(cache: Path) -> Path:
    """Return a directory whose node_modules hold PACKAGE: the one that PLACE names, or else `cache`.

    Skips the test where there is no node, or npm cannot install the package.
    """
    if shutil.which("node") is None:
        pytest.skip("needs node")
    if PLACE in os.environ:
        return Path(os.environ[PLACE])
    installed = cache / "installed"
    with FileLock(cache / "lock"):
        if not installed.exists():
            if shutil.which("npm") is None:
                pytest.skip(f"needs npm, or {PLACE} to name a directory with {PACKAGE}")
            # no package's own scripts run here
            install = ["npm", "install", "--prefix", str(cache), "--ignore-scripts", "--no-audit", "--no-fund", PACKAGE]
            done = subprocess.run(install, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"npm cannot install {PACKAGE}: {done.stderr.strip().splitlines()[-1:]}")
            installed.touch()
    return cache


def ask(
    place: Path, folder: Path, scratch: Path, sequences: Sequence[dict[str, Any]], z: Sequence[Sequence[float]]
) -> dict[str, Any]:
    """Return what @magenta/music answers: posterior means, and notes as (start, end, pitch) decoded greedily from z.

    Also the notes of `interpolated`, three from the first sequence to the second, and of two that are `sampled`.
    """
    question = scratch / "question.json"
    question.write_text(json.dumps({"sequences": sequences, "z": z, "interpolations": 3}), encoding="utf-8")
    command = ["node", str(SCRIPT), str(place), str(folder), str(question)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def sequence(notes: Sequence[tuple[int, int, int]], steps: int, drums: bool = False) -> dict[str, Any]:
    """Return (start, end, pitch) notes in sixteenths as a quantized NoteSequence."""
    return {
        "notes": [
            {"quantizedStartStep": start, "quantizedEndStep": end, "pitch": pitch, "isDrum": drums}
            for start, end, pitch in notes
        ],
        "quantizationInfo": {"stepsPerQuarter": 4},
        "totalQuantizedSteps": steps,
    }
