"""Fashion-MNIST (Xiao et al., 2017; MIT): 50,000 / 10,000 / 10,000 grey pictures of clothes, 28 x 28, 10 classes.

    python -m data_prep.fashion_mnist --root data/fashion_mnist

The four files come from --source DIR, else from the Debian package dataset-fashion-mnist, else from the internet.
Whatever their source, the contents must have the sha256 written here. The last 10,000 of a random order of the
60,000 training pictures become valid; the published test set is test.
"""

import argparse
import gzip
import hashlib
import shutil
import sys
import urllib.request
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seqvae.data.image import prepare_arrays
from seqvae.data.preparation import hold, refuse_existing

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
FILES = {  # sha256 of the unpacked content: the .gz around it differs from one publisher to the next
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
LABELS = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
VALID = 10_000


def find_source(cache: Path, source: Path | None = None, url: str = URL) -> Path:
    """Return the folder that holds the files: `source`, or Debian's, or `cache` after a download."""
    if source is not None:
        return source
    if all((DEBIAN / name).is_file() for name in FILES):
        return DEBIAN
    for name in FILES:
        if not (cache / name).is_file():
            download(f"{url}/{name}", cache / name)
    return cache


def download(url: str, path: Path) -> None:
    """Fetch a file beside its place and rename it. Raises ValueError with the address and the reason."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    try:
        with urllib.request.urlopen(url, timeout=30) as response, temporary.open("wb") as file:
            shutil.copyfileobj(response, file)
        temporary.replace(path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{url} cannot be fetched ({error}); install the Debian package dataset-fashion-mnist or give --source DIR"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def read_idx(path: Path, sha256: str) -> NDArray[np.uint8]:
    """Return the array of a packed idx file of bytes. Raises ValueError when its content is not the expected one."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ValueError(f"{path} has sha256 {found} unpacked, expected {sha256}; remove it and start again")
    dimensions = content[3]
    shape = np.frombuffer(content, ">u4", dimensions, offset=4).tolist()
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data_prep.fashion_mnist", description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path("data/fashion_mnist"), help="the folder to make")
    parser.add_argument("--source", type=Path, help="a folder with the four idx .gz files")
    parser.add_argument("--url", default=URL, help="where to download them from")
    parser.add_argument("--seed", type=int, default=0, help="draws the 10,000 of valid")
    options = parser.parse_args(argv)
    try:
        refuse_existing(options.root)
        with hold(options.root):
            folder = find_source(options.root / "source", options.source, options.url)
            pictures, labels, test_pictures, test_labels = (read_idx(folder / name, FILES[name]) for name in FILES)
            order = np.random.default_rng(options.seed).permutation(len(pictures))
            report = prepare_arrays(
                np.concatenate([pictures[order], test_pictures])[..., None],
                ["train"] * (len(order) - VALID) + ["valid"] * VALID + ["test"] * len(test_pictures),
                options.root,
                labels=np.concatenate([labels[order], test_labels]).tolist(),
                names=[f"train:{place}" for place in order] + [f"t10k:{place}" for place in range(len(test_pictures))],
                label_names=LABELS,
                binarize=True,
                seed=options.seed,
            )
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{folder}: valid drawn from the training pictures with seed {options.seed}\n{report.table()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
