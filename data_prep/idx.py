"""Corpora of four idx files, as MNIST began them: found, checked, and split as the field compares them.

The last 10,000 of a random order of the 60,000 training pictures become valid; the published test set is test.
"""

import argparse
import hashlib
import shutil
import sys
import tarfile
import urllib.request
import zlib
from collections.abc import Container, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from seqvae.data.image import open_idx, prepare_arrays, read_idx
from seqvae.data.preparation import hold, refuse_existing


@dataclass(frozen=True)
class Corpus:
    """Where four idx files come from, and what they must hold."""

    name: str
    title: str
    url: str
    carrier: str  # a package that holds the files, for whom the download fails
    files: dict[str, str]  # training pictures and labels, test pictures and labels; sha256 of what is unpacked
    label_names: Sequence[str]
    installed: Path | None = None  # where that package puts them
    valid: int = 10_000


def find_files(corpus: Corpus, cache: Path, source: Path | None, url: str) -> dict[str, Path]:
    """Return each file of the corpus, packed (.gz) or not.

    They come from `source`, a folder or a tar archive such as a package of npm; else from where the Debian package
    installs them; else from the internet. What has to be unpacked or downloaded goes to the folder `cache`.

    Raises ValueError for what cannot be found, unpacked or fetched.
    """
    if source is None and corpus.installed is not None and corpus.installed.is_dir():
        source = corpus.installed
    elif source is None:
        source = cache
        for name in corpus.files:
            if not any((cache / f"{name}{end}").is_file() for end in ("", ".gz")):
                _download(f"{url}/{name}.gz", cache / f"{name}.gz", corpus.carrier)
    elif not source.is_dir():
        _unpack(source, corpus.files, cache)
        source = cache
    found = {}
    for name in corpus.files:
        choices = [path for path in (source / name, source / f"{name}.gz") if path.is_file()]
        if not choices:
            raise ValueError(f"{source} holds no {name}, packed (.gz) or not")
        found[name] = choices[0]
    return found


def _download(url: str, path: Path, carrier: str) -> None:
    """Fetch a file. Raises ValueError with the address and the reason."""
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            _keep(response, path)
    except (OSError, ValueError, HTTPException) as error:
        raise ValueError(f"{url} cannot be fetched ({error}); get {carrier} and give --source") from None


def _unpack(archive: Path, names: Container[str], folder: Path) -> None:
    """Write the files of these names, wherever they stand in a tar archive, into a folder."""
    try:
        with tarfile.open(archive) as members:
            for member in members:
                name = Path(member.name).name
                if name.removesuffix(".gz") in names and member.isfile() and (file := members.extractfile(member)):
                    _keep(file, folder / name)
    except OSError as error:
        raise ValueError(f"{archive} cannot be unpacked: {error.strerror or error}") from None
    except (EOFError, tarfile.TarError, zlib.error):
        raise ValueError(f"{archive} cannot be unpacked: it is no tar archive, or not a whole one") from None


def _keep(file: IO[bytes], path: Path) -> None:
    """Write a file beside its place and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as written:
            shutil.copyfileobj(file, written)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path, sha256: str) -> NDArray[np.uint8]:
    """Return the array of an idx file. Raises ValueError when what it holds is not what it must be."""
    try:
        with open_idx(path) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if found != sha256:
        raise ValueError(f"{path} has sha256 {found} unpacked, expected {sha256}; remove it and start again")
    return read_idx(path)


def main(corpus: Corpus, argv: Sequence[str] | None = None) -> int:
    """Run the command of a recipe; return its exit code."""
    parser = argparse.ArgumentParser(prog=f"python -m data_prep.{corpus.name}", description=corpus.title)
    parser.add_argument("--root", type=Path, default=Path("data") / corpus.name, help="the folder to make")
    parser.add_argument("--source", type=Path, help="a folder with the four idx files, or a tar archive of them")
    parser.add_argument("--url", default=corpus.url, help="where to download them from")
    parser.add_argument("--seed", type=int, default=0, help=f"draws the {corpus.valid:,} of valid")
    options = parser.parse_args(argv)
    try:
        refuse_existing(options.root)
        with hold(options.root):
            files = find_files(corpus, options.root / "source", options.source, options.url)
            pictures, labels, test_pictures, test_labels = (read(files[name], corpus.files[name]) for name in files)
            order = np.random.default_rng(options.seed).permutation(len(pictures))
            splits = ["train"] * (len(order) - corpus.valid) + ["valid"] * corpus.valid
            report = prepare_arrays(
                np.concatenate([pictures[order], test_pictures])[..., None],
                splits + ["test"] * len(test_pictures),
                options.root,
                labels=np.concatenate([labels[order], test_labels]).tolist(),
                names=[f"train:{place}" for place in order] + [f"t10k:{place}" for place in range(len(test_pictures))],
                label_names=corpus.label_names,
                seed=options.seed,
            )
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    folder = next(iter(files.values())).parent
    print(f"{folder}: valid drawn from the training pictures with seed {options.seed}\n{report.table()}")
    return 0
