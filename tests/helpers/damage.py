"""What can happen to the files of a checkpoint: by accident, and by someone who means harm."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from seqvae.data.dataset import sha256

MANIFEST = "MANIFEST.json"


def files(path: Path) -> list[str]:
    """Return the names of a checkpoint's files."""
    return sorted(file.name for file in path.iterdir())


def flip_bit(path: Path, bit: int) -> None:
    """Flip one bit of a file, counted from its start."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _cut_the_end(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 2)  # one may be a line end that says nothing


def _flip(path: Path) -> None:
    flip_bit(path, 8 * (path.stat().st_size // 2))


def _zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _zero_a_block(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 3)
    path.write_bytes(content)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def _grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def _rename(path: Path) -> None:
    path.rename(path.with_name(f"{path.name}.bak"))


def _link(path: Path) -> None:
    """Put a link in the place of a file, to a copy of it elsewhere."""
    elsewhere = path.parent.parent / f"elsewhere-{path.name}"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def _make_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _make_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, Callable[[Path], None]] = {
    "truncated": _truncate,
    "cut by two bytes": _cut_the_end,
    "emptied": _empty,
    "one bit flipped": _flip,
    "zeroed": _zero,
    "a block zeroed": _zero_a_block,
    "grown by a byte": _grow,
    "deleted": Path.unlink,
    "renamed": _rename,
    "a link": _link,
    "a pipe": _make_a_pipe,
    "a folder": _make_a_folder,
}


def restore(path: Path, sound: Path) -> None:
    """Make a damaged checkpoint what its sound copy is."""
    shutil.rmtree(path)
    shutil.copytree(sound, path)


def rewrite(path: Path, change: Callable[[dict[str, Any]], object], name: str = "config.json") -> None:
    """Change a checkpoint's JSON file and its manifest: what someone who means harm would do."""
    content = json.loads((path / name).read_text(encoding="utf-8"))
    change(content)
    replace(path, name, json.dumps(content).encode())


def replace(path: Path, name: str, content: bytes) -> None:
    """Give a checkpoint's file other bytes, and the manifest that fits them."""
    (path / name).write_bytes(content)
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    manifest[name] = sha256(path / name)
    (path / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
