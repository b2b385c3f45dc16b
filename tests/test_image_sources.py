"""Pictures from idx files and .npz archives, labels from tables; what claims too much or is no picture is refused."""

import gzip
import io
import json
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from seqvae.cli import main
from seqvae.data import load_codec
from seqvae.data.dataset import SPLITS, WindowDataset, read_manifest
from seqvae.data.image import prepare_image, read_idx, write_png
from seqvae.data.preparation import Report
from tests.helpers.pictures import idx_bytes, noise

Found = dict[str, tuple[NDArray[np.uint8], str | None, str]]  # by name: pixels, the label's name, the split


def read_back(root: Path) -> Found:
    names = read_manifest(root)["options"]["label_names"]
    found: Found = {}
    for split in SPLITS:
        dataset = WindowDataset(root, split)
        labelled = (root / split / "label.column.npy").exists()
        labels = dataset.column("label").tolist() if labelled else [-1] * len(dataset)
        for place, (name, label) in enumerate(zip(dataset.names, labels, strict=True)):
            pixels = dataset[place].numpy().transpose(1, 2, 0)
            found[name] = (pixels, names[label] if label >= 0 else None, split)
    return found


def rejected(root: Path) -> list[tuple[str, str, str]]:
    lines = (root / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["name"], row["rule"], row["detail"]) for row in map(json.loads, lines)]


# idx files


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("packed", [False, True])
def test_an_idx_file_is_read_whatever_its_type(dtype: Any, packed: bool, tmp_path: Path) -> None:
    array = np.arange(2 * 3 * 4).reshape(2, 3, 4).astype(dtype)
    path = tmp_path / "a-idx3-ubyte"  # packed or not: its first bytes tell, its name does not
    path.write_bytes(gzip.compress(idx_bytes(array)) if packed else idx_bytes(array))
    read = read_idx(path)
    assert np.array_equal(read, array)
    assert read.dtype.newbyteorder("=") == array.dtype


@pytest.mark.parametrize("form", ["{}-{}-idx{}-ubyte.gz", "{}-{}.idx{}-ubyte", "emnist-letters-{}-{}-idx{}-ubyte.gz"])
def test_idx_files_keep_their_split_and_their_labels(form: str, tmp_path: Path) -> None:
    expected = {}
    (tmp_path / "source").mkdir()
    for part, split, count in (("train", "train", 30), ("t10k", "test", 7)):
        images, labels = noise(count, 5, 4, seed=count), np.arange(count, dtype=np.uint8) % 11 + 1
        for kind, rank, array in (("images", 3, images), ("labels", 1, labels)):
            content = idx_bytes(array)
            name = form.format(part, kind, rank)
            (tmp_path / "source" / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        for place in range(count):
            name = f"{form.format(part, 'images', 3)}:{place}"
            expected[name] = (images[place], str(labels[place]), split)
    report = prepare_image(tmp_path / "source", tmp_path / "data")
    assert (report.kept, report.rejected.total()) == (37, 0)
    found = read_back(tmp_path / "data")
    assert found.keys() == expected.keys()
    for name, (pixels, label, split) in found.items():
        picture, its_label, part = expected[name]
        assert np.array_equal(pixels[..., 0], picture)
        assert label == its_label
        assert (split == "test") == (part == "test")
    assert read_manifest(tmp_path / "data")["options"]["label_names"] == [str(n) for n in range(1, 12)]  # 2 before 10
    assert load_codec(tmp_path / "data" / "codec").spec["image_shape"] == [1, 5, 4]


def test_one_idx_file_needs_no_labels_and_can_change_its_size_and_channels(tmp_path: Path) -> None:
    pictures = np.repeat(np.arange(9, dtype=np.uint8), 24).reshape(9, 6, 4)
    (tmp_path / "faces-images-idx3-ubyte").write_bytes(idx_bytes(pictures))
    prepare_image(tmp_path / "faces-images-idx3-ubyte", tmp_path / "data", size="8x3", channels=3)
    found = read_back(tmp_path / "data")
    assert len(found) == 9
    for name, (pixels, label, _) in found.items():
        assert (pixels.shape, label) == ((3, 8, 3), None)
        assert (pixels == int(name[-1])).all()


def test_a_file_that_also_stands_there_unpacked_counts_once(tmp_path: Path) -> None:
    content = idx_bytes(noise(9, 4, 4))
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "images-idx3-ubyte").write_bytes(content)
    (tmp_path / "source" / "images-idx3-ubyte.gz").write_bytes(gzip.compress(content))
    assert prepare_image(tmp_path / "source", tmp_path / "data").kept == 9
    assert rejected(tmp_path / "data") == [("images-idx3-ubyte.gz", "stands there unpacked, too", "")]


def sizes(*numbers: int, code: int = 8) -> bytes:
    return struct.pack(f">HBB{len(numbers)}I", 0, code, len(numbers), *numbers)


GOOD = idx_bytes(noise(4, 3, 3))
HOSTILE_IDX = {
    "empty": (b"", "is no idx file"),
    "byte": (b"\0", "is no idx file"),
    "page": (b"<html>404</html>", "is no idx file, .* this with 3c 68 74 6d"),
    "magic": (b"\1" + GOOD[1:], "is no idx file"),
    "type": (sizes(4, 3, 3, code=7) + GOOD[16:], "is no idx file"),
    "rank": (sizes() + GOOD, "is no idx file"),
    "ranks": (sizes(*[1] * 200) + b"\0", "is no idx file"),
    "head": (GOOD[:9], "ends within its sizes"),
    "short": (GOOD[:-1], "4 x 3 x 3 it holds 36 bytes of values, but it has 35"),
    "long": (GOOD + b"\0", "4 x 3 x 3 it holds 36 bytes of values, but it has more"),
    "lie": (sizes(400_000, 90, 90) + GOOD[16:], "400000 x 90 x 90 values .* more than fit"),
    "bomb": (sizes(*[2**32 - 1] * 3) + GOOD[16:], "more than 4 GiB"),
    "nothing": (sizes(0, 3, 3), "pictures must be"),
    "flat": (idx_bytes(noise(36)), r"pictures must be \[n height width\], .* got 36"),
    "short.gz": (gzip.compress(GOOD[:-1]), "holds 36 bytes of values, but it has 35"),
    "cut.gz": (gzip.compress(idx_bytes(noise(40, 9, 9)))[:-400], "ended before"),
    "damaged.gz": (gzip.compress(GOOD)[:-8] + b"\0" * 8, "CRC"),
    "packed lie": (gzip.compress(sizes(400_000, 90, 90) + GOOD[16:]), "more than fit"),
    "integers": (
        idx_bytes(np.ones((4, 3, 3), np.int16)),
        r"floats in \[0, 1\], got (>i2|int16)",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE_IDX)
def test_a_hostile_idx_file_is_one_line_and_takes_no_memory(kind: str, tmp_path: Path) -> None:
    content, reason = HOSTILE_IDX[kind]
    path = tmp_path / f"{kind.partition('.')[0]}-images-idx3-ubyte"
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(ValueError, match=reason) as raised:
        prepare_image(path, tmp_path / "data")
    assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    tracemalloc.stop()
    assert str(raised.value).isprintable()
    assert str(raised.value).startswith(f"{path.name}: ")


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (idx_bytes(np.zeros(3, np.uint8)), "4 pictures need as many labels, got labels of the shape 3"),
        (idx_bytes(np.zeros((4, 2), np.uint8)), "got labels of the shape 4 x 2"),
        (idx_bytes(np.zeros(4, np.float32)), "labels must be whole numbers or text, got >?f"),
        (b"<html>", "labels-idx1-ubyte: it is no idx file"),
    ],
)
def test_labels_that_do_not_fit_are_named(labels: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "images-idx3-ubyte").write_bytes(GOOD)
    (tmp_path / "labels-idx1-ubyte").write_bytes(labels)
    with pytest.raises(ValueError, match=reason):
        prepare_image(tmp_path, tmp_path / "data")


def test_labels_alone_are_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(4, np.uint8)))
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte: pictures must be .* got 4"):
        prepare_image(tmp_path, tmp_path / "data")


# .npz archives

Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def made(name: str = "a.npz", **arrays: Any) -> Path:
        path = tmp_path / "source" / name
        path.parent.mkdir(exist_ok=True)
        np.savez_compressed(path, **arrays)
        return path

    return made


@pytest.mark.parametrize(
    ("make", "channels"),
    [
        (lambda p: p[..., 0], 1),
        (lambda p: p[..., :1], 1),
        (lambda p: p, 3),
        (lambda p: p.transpose(0, 3, 1, 2), 3),
        (lambda p: np.asfortranarray(p), 3),
        (lambda p: (p / 255).astype(np.float32), 3),
        (lambda p: (p / 255).astype(">f8"), 3),
        (lambda p: (p / 255).astype(np.float16), 3),
        (lambda p: p.transpose(0, 3, 1, 2)[:, :1] / 255, 1),
    ],
)
def test_every_form_of_an_array_gives_the_same_pictures(make: Any, channels: int, save: Save, tmp_path: Path) -> None:
    pictures = noise(12, 5, 4, 3)
    report = prepare_image(save(images=make(pictures)), tmp_path / "data")
    assert report.kept == 12
    found = read_back(tmp_path / "data")
    for place in range(12):
        assert np.array_equal(found[f"a.npz:images:{place}"][0], pictures[place, ..., :channels])


def test_truth_values_are_black_and_white(save: Save, tmp_path: Path) -> None:
    pictures = noise(9, 4, 4) > 99
    prepare_image(save(x=pictures), tmp_path / "data")
    for name, (pixels, _, _) in read_back(tmp_path / "data").items():
        assert np.array_equal(pixels[..., 0], np.where(pictures[int(name.split(":")[-1])], 255, 0))


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["x_train", "y_train", "x_test", "y_test"], {"train", "valid", "test"}),  # valid is cut out of train
        (["train_images", "train_labels", "test_images", "test_labels"], {"train", "valid", "test"}),
        (["X.val", "Y.val", "X.train", "Y.train"], {"train", "valid", "test"}),
        (["images", "labels", "test-images", "test-labels"], {"train", "valid", "test"}),
        (["arr_0", "arr_1"], {"train", "valid", "test"}),
    ],
)
def test_arrays_say_by_their_names_what_they_are(
    names: list[str], splits: set[str], save: Save, tmp_path: Path
) -> None:
    arrays: dict[str, Any] = {"masks": noise(3, 3)}
    for number, (images, labels) in enumerate(zip(names[::2], names[1::2], strict=True)):
        arrays[images] = noise(20, 4, 4, seed=number)
        column = np.array([f"kind {n % 3}" for n in range(20)]) if number else np.arange(20) % 3
        arrays[labels] = column[:, None] if number else column
    prepare_image(save(**arrays), tmp_path / "data")
    found = read_back(tmp_path / "data")
    assert {split for _, _, split in found.values()} == splits
    assert len(found) == 10 * len(names)
    for name, (pixels, label, split) in found.items():
        _, key, place = name.split(":")
        assert np.array_equal(pixels[..., 0], arrays[key][int(place)])
        assert label == str(arrays[names[names.index(key) + 1]].ravel()[int(place)])
        for word, kept in (("test", "test"), ("val", "valid")):
            assert word not in key or split == kept


def npy(header: str, values: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + values


def zipped(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def claim(descr: str, shape: str, values: bytes = b"\0" * 36) -> bytes:
    return zipped(images=npy(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}", values))


def array_bytes(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


class Trap:
    """What would say that it was unpickled."""

    def __reduce__(self) -> Any:
        return print, ("it was run",)


PICTURES = array_bytes(noise(4, 3, 3))
HOSTILE_NPZ = {
    "empty": (b"", "not a zip file"),
    "page": (b"<html>404</html>", "not a zip file"),
    "cut": (zipped(images=array_bytes(noise(40, 9, 9)))[:-90], "not a zip file"),
    "none": (zipped(masks=PICTURES), "holds no images or x, .* but masks"),
    "nothing": (zipped(), "but nothing"),
    "twice": (zipped(x=PICTURES, images=PICTURES), "'x' and 'images' are both images; one must go"),
    "lonely": (zipped(x_train=PICTURES, y_test=PICTURES), "'y_test' has no pictures of its split"),
    "objects": (zipped(images=array_bytes(np.array([Trap()] * 4, object))), "only pickle could bring back"),
    "object labels": (zipped(images=PICTURES, labels=array_bytes(np.array([Trap()] * 4, object))), "labels.*pickle"),
    "no array": (zipped(images=b"<html>"), "magic"),
    "version": (zipped(images=PICTURES[:6] + b"\x03\x00" + PICTURES[8:]), "images"),
    "header": (zipped(images=npy("{'descr': __import__('os').abort()}")), "images"),
    "deep": (zipped(images=npy("(" * 9_000)), "images"),
    "short": (claim("'|u1'", "(4, 3, 4)"), "48|expected"),
    "long": (claim("'|u1'", "(2, 3, 3)"), "more than the 2 x 3 x 3 values"),
    "lie": (claim("'|u1'", "(400000, 90, 90)"), "400000 x 90 x 90 values .* more than fit"),
    "bomb": (claim("'<f8'", "(1000000000000, 1000, 1000)"), "more than 4 GiB"),
    "negative": (claim("'|u1'", "(-4, -9, 1)"), "more than 4 GiB"),
    "no width": (claim("'<U0'", "(1000000000000,)"), "more than 4 GiB"),
    "record": (claim("[('a', '|u1')]", "(4, 3, 3)"), "must be uint8, bool or floats"),
    "integers": (zipped(images=array_bytes(np.ones((4, 3, 3), np.int64))), "floats in .0, 1., got int64"),
    "sixteen bits": (zipped(images=array_bytes(np.ones((4, 3, 3), np.uint16))), "got uint16"),
    "complex": (zipped(images=array_bytes(np.ones((4, 3, 3), np.complex64))), "got complex64"),
    "range": (zipped(images=array_bytes(np.full((4, 3, 3), 255.0))), r"must lie in \[0, 1\], got 255 to 255"),
    "signed": (zipped(images=array_bytes(np.linspace(-1, 1, 36).reshape(4, 3, 3))), "got -1 to 1"),
    "flat": (zipped(images=array_bytes(noise(4, 9))), "got 4 x 9"),
    "channels": (zipped(images=array_bytes(noise(4, 5, 5, 4))), "with 1 or 3 channels, got 4 x"),
    "no pictures": (zipped(images=array_bytes(noise(0, 3, 3))), "got 0 x 3 x 3"),
    "labels": (zipped(images=PICTURES, labels=array_bytes(np.arange(5))), "4 pictures need as many labels"),
    "one-hot": (zipped(images=PICTURES, labels=array_bytes(np.eye(4))), "labels of the shape 4 x 4"),
    "float labels": (zipped(images=PICTURES, labels=array_bytes(np.ones(4))), "whole numbers or text, got float64"),
}


@pytest.mark.parametrize("kind", HOSTILE_NPZ)
def test_a_hostile_npz_is_one_line_and_takes_no_memory(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, reason = HOSTILE_NPZ[kind]
    path = tmp_path / "hostile.npz"
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"(?i){reason}") as raised:
        prepare_image(path, tmp_path / "data")
    assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    tracemalloc.stop()
    assert str(raised.value).isprintable()
    assert str(raised.value).startswith("hostile.npz: ")
    assert "it was run" not in capsys.readouterr().out


def test_a_damaged_member_is_found_by_its_checksum(save: Save, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, images=noise(40, 9, 9))
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npz: images\.npy: .*CRC"):
        prepare_image(path, tmp_path / "data")


def test_one_bad_picture_or_file_costs_no_other(save: Save, tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((9, 4, 4))
    values[2, 0, 0], values[5, 1, 1] = np.nan, np.inf
    save("a.npz", images=values)
    (tmp_path / "source" / "b.npz").write_bytes(b"<html>")
    (tmp_path / "source" / "c-images-idx3-ubyte").write_bytes(b"<html>")
    assert prepare_image(tmp_path / "source", tmp_path / "data").kept == 7
    told = rejected(tmp_path / "data")
    assert [name for name, _, _ in told] == ["b.npz", "c-images-idx3-ubyte", "a.npz:images:2", "a.npz:images:5"]
    assert {rule for _, rule, _ in told} == {"cannot be read"}
    assert all(detail and str(tmp_path) not in detail for _, _, detail in told)


def test_arrays_of_two_sizes_need_a_size(save: Save, tmp_path: Path) -> None:
    path = save(x_train=noise(9, 4, 4), x_test=noise(9, 6, 5))
    with pytest.raises(ValueError, match="pictures of 4x4 and 5x6 pixels; say by size"):
        prepare_image(path, tmp_path / "data")
    prepare_image(path, tmp_path / "data", size=4)
    assert {pixels.shape for pixels, _, _ in read_back(tmp_path / "data").values()} == {(4, 4, 1)}


def test_an_array_among_pictures_is_left_out_and_named(save: Save, tmp_path: Path) -> None:
    save("features.npz", images=noise(9, 4, 4))
    for n in range(4):
        write_png(tmp_path / "source" / f"{n}.png", noise(4, 4, 3, seed=n))
    assert prepare_image(tmp_path / "source", tmp_path / "data", size=4).kept == 4
    assert rejected(tmp_path / "data") == [("features.npz", "an array among pictures", "")]


def test_arrays_are_the_same_dataset_whatever_the_engine(save: Save, tmp_path: Path) -> None:
    path = save(x=np.random.default_rng(0).random((300, 4, 4)), y=np.arange(300) % 7)
    prints = []
    for engine, jobs in (("sequential", 1), ("loky", 2)):
        prepare_image(path, tmp_path / engine, engine=engine, jobs=jobs)
        prints.append(read_manifest(tmp_path / engine)["fingerprint"])
    assert prints[0] == prints[1]


# Tables of labels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of nine pictures in two folders, which are no labels here."""
    for n in range(9):
        path = tmp_path / "source" / "ab"[n % 2] / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(path, noise(4, 4, 3, seed=n))
    return tmp_path / "source"


def prepared(folder: Path, table: str, name: str = "labels.csv", **options: Any) -> Report:
    path = folder.parent / name
    path.write_text(table, encoding="utf-8")
    return prepare_image(folder, folder.parent / "data", size=4, labels=path, **options)


def labels(folder: Path) -> dict[str, str | None]:
    return {Path(name).name: label for name, (_, label, _) in read_back(folder.parent / "data").items()}


KINDS = {f"{n}.png": f"kind {n % 3}" for n in range(9)}


@pytest.mark.parametrize(
    ("form", "head", "options"),
    [
        ("{path},{label}", "file,label", {}),
        ("{path},{label}", None, {}),
        ("\ufeff{name},{label},x", "a,b,c", {}),
        ("{stem}\t{label}", "id\tbreed", {}),
        ("./{path};{label}", "file;label", {}),
        ("{label},x,{stem}", "breed,age,id", {"file_column": "id", "label_column": "breed"}),
        ("x,{path},{label}", "n,id,breed", {"label_column": "breed", "file_column": "id"}),
        ("{path},x,{label}", "id,n,breed", {"label_column": "breed"}),
        ("{label},{path}", "breed,id", {"file_column": "id"}),
        ('"{path}"," {label} "\n', "file,label", {}),
    ],
)
def test_a_table_gives_each_picture_its_label(
    form: str, head: str | None, options: dict[str, Any], folder: Path
) -> None:
    mark = "\ufeff" if form.startswith("\ufeff") else ""
    facts = [{"path": f"{'ab'[n % 2]}/{n}.png", "name": f"{n}.png", "stem": n} for n in range(9)]
    rows = [form.removeprefix("\ufeff").format(**fact, label=f"kind {n % 3}") for n, fact in enumerate(facts)]
    report = prepared(folder, mark + "\n".join(([head] if head else []) + rows), **options)
    assert labels(folder) == KINDS
    assert (report.kept, report.rejected.total()) == (9, 0)
    assert read_manifest(folder.parent / "data")["options"]["label_names"] == ["kind 0", "kind 1", "kind 2"]


def test_rows_without_a_picture_and_pictures_without_a_row_are_told(folder: Path) -> None:
    rows = [f"{n}.png,kind {n % 3}" for n in range(7)]
    report = prepared(folder, "\n".join(["file,label", *rows, "7.png,", "nowhere.png,kind 1", "../b/1.png,kind 1"]))
    assert labels(folder) == {**KINDS, "7.png": None, "8.png": None}
    assert rejected(folder.parent / "data") == [
        ("nowhere.png", "named in labels.csv, but not there", "line 10"),
        ("../b/1.png", "named in labels.csv, but not there", "line 11"),
    ]
    assert "2  pictures without a label" in report.table()


@pytest.mark.parametrize("relative", [False, True])
def test_a_table_among_the_pictures_is_no_file_of_another_kind(
    relative: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "labels.csv").write_text("0,x\n1,y\n", encoding="utf-8")
    (folder / "other.csv").touch()
    monkeypatch.chdir(folder / "a")
    table = Path("../labels.csv") if relative else folder / "labels.csv"
    report = prepare_image(Path("..") if relative else folder, folder.parent / "data", size=4, labels=table)
    assert report.counted == {"pictures without a label": 7, "files of other kinds: .csv": 1}


def test_a_name_that_fits_several_pictures_labels_none(folder: Path) -> None:
    write_png(folder / "a" / "1.png", noise(4, 4, 3, seed=99))
    prepared(folder, "file,label\n1.png,x\nb/1.png,y\n2,x\n")
    found = {name: label for name, (_, label, _) in read_back(folder.parent / "data").items()}
    assert {name: label for name, label in found.items() if label} == {"b/1.png": "y", "a/2.png": "x"}
    assert rejected(folder.parent / "data") == [("1.png", "named in labels.csv, but several fit", "line 2")]


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        ("", {}, r"labels\.csv is empty"),
        ("file\n1.png\n", {}, "must have a column of pictures and one of labels, got file"),
        ("file,label\n1.png,x\n", {"label_column": "kind"}, "no column 'kind'; its columns are file, label"),
        ("file,label\n1.png,x\n", {"file_column": "id"}, "no column 'id'; its columns are file, label"),
        (
            "file,label\n1.png,x\n",
            {"file_column": "file", "label_column": "file"},
            "must have a column of pictures and one of labels, got 'file' for both",
        ),
        ("file,label\nno.png,x\n", {}, "labels no picture of .*: its line 2 names 'no.png'"),
        ("file,label\n", {}, "labels no picture of .*: it has no rows"),
        ("file,label\n1.png,x\nb/1.png,y\n", {}, "line 3 says 'y' of 'b/1.png', line 2 says 'x'; a picture has one"),
        ('file,label\n1.png,"' + "x" * 200_000, {}, "cannot be read: field larger"),
    ],
)
def test_a_table_that_cannot_be_meant_is_one_line(
    table: str, options: dict[str, Any], message: str, folder: Path
) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        prepared(folder, table, **options)
    assert str(raised.value).isprintable()
    assert not (folder.parent / "data" / "dataset.json").exists()


def test_a_table_that_is_no_text_or_not_there_is_one_line(folder: Path) -> None:
    (folder.parent / "a.csv").write_bytes(b"\xff\xfe\0")
    for name, reason in (("a.csv", "utf-8"), ("no.csv", "No such file")):
        with pytest.raises(ValueError, match=f"{name} cannot be read: .*{reason}"):
            prepare_image(folder, folder.parent / "data", labels=folder.parent / name)


def test_a_column_without_a_table_and_a_table_for_arrays_make_no_sense(folder: Path, save: Save) -> None:
    with pytest.raises(ValueError, match="the column 'id' is one of a table of labels; give labels, too"):
        prepare_image(folder, folder.parent / "data", file_column="id")
    path = save("b/x.npz", images=noise(9, 4, 4))
    with pytest.raises(ValueError, match="go with files of pictures"):
        prepare_image(path, folder.parent / "data", labels=folder / "labels.csv")


def test_the_command_reads_a_table_and_says_what_is_wrong_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = folder.parent / "labels.csv"
    table.write_text("kind,id\n" + "".join(f"kind {n % 3},{n}\n" for n in range(9)))
    command = ["prepare", "image", str(folder), "--root", str(folder.parent / "data"), "--size", "4"]
    command += ["--engine", "sequential", "--labels", str(table), "--label-column"]
    assert main([*command, "sort"]) == 2
    assert capsys.readouterr().err.strip().endswith("has no column 'sort'; its columns are kind, id")
    assert main([*command, "kind"]) == 0
    assert labels(folder) == KINDS
