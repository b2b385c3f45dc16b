"""Pictures to pixels and back; whatever people call a picture is read as the eye sees it, or refused with a reason."""

import json
import os
import pickle
import random
import re
import resource
import struct
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, features

from seqvae.data import load_codec
from seqvae.data.dataset import SPLITS, WindowDataset, read_manifest
from seqvae.data.image import PixelCodec, parse_size, prepare_arrays, prepare_image, read_picture, write_png
from tests.helpers.pictures import noise
from tests.helpers.processes import exit_code

Pixels = NDArray[np.uint8]


def save(path: Path, picture: Image.Image | Pixels, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(path, **options)
    return path


shapes = st.tuples(st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9))


@settings(deadline=None, max_examples=100)
@given(shape=shapes, binarize=st.booleans(), seed=st.integers(0, 999))
def test_a_picture_of_the_right_size_comes_back_from_its_window(
    shape: tuple[int, int, int], binarize: bool, seed: int
) -> None:
    codec = PixelCodec(shape, binarize)
    item = noise(shape[1], shape[2], shape[0], seed=seed) | np.uint8(
        2
    )  # no value below 2: see the test of `intensities`
    (window,) = codec.windows(item)
    assert (tuple(window.shape), window.dtype) == (shape, torch.uint8)
    assert np.array_equal(codec.join([window]), item)
    assert np.array_equal(codec.join([window.float() / 255]), item)


def test_numbers_mean_brightness_by_their_dtype() -> None:
    codec = PixelCodec((1, 1, 3), binarize=True)
    assert codec.join([torch.tensor([[[0.0, 0.5, 1.0]]])]).ravel().tolist() == [0, 128, 255]
    assert codec.join([torch.tensor([[[0, 1, 0]]], dtype=torch.uint8)]).ravel().tolist() == [0, 255, 0]
    assert codec.join([torch.tensor([[[0, 1, 9]]], dtype=torch.uint8)]).ravel().tolist() == [0, 1, 9]
    grey = PixelCodec((1, 1, 3))
    assert grey.join([torch.tensor([[[0, 1, 0]]], dtype=torch.uint8)]).ravel().tolist() == [0, 1, 0]
    with pytest.raises(AssertionError, match=r"uint8 or floating, got torch\.int64"):
        grey.join([torch.tensor([[[0, 1, 0]]])])


def test_the_binary_view_has_the_grey_value_as_its_mean() -> None:
    codec = PixelCodec((1, 2, 2), binarize=True)
    window = torch.tensor([[[0, 255], [51, 204]]], dtype=torch.uint8)
    rng = np.random.default_rng(0)
    drawn = torch.stack([codec.view(window, rng) for _ in range(4000)])
    assert drawn.dtype == torch.uint8
    assert set(drawn.ravel().tolist()) == {0, 1}
    mean = drawn.float().mean(0)
    assert mean[0, 0].tolist() == [0, 1]  # black and white are certain
    assert mean[0, 1].tolist() == pytest.approx([0.2, 0.8], abs=5 * (0.16 / 4000) ** 0.5)


def test_a_view_is_a_function_of_its_generator_and_of_nothing_else() -> None:
    codec = PixelCodec((3, 8, 8), binarize=True)
    window = codec.windows(noise(8, 8, 3))[0]
    kept = window.clone()
    views = [codec.view(window, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])
    assert torch.equal(window, kept)
    assert torch.equal(PixelCodec((3, 8, 8)).view(window, np.random.default_rng(1)), window)


def test_binarize_is_a_choice_of_the_training() -> None:
    codec = PixelCodec((1, 4, 4))
    assert codec.spec == {"image_shape": [1, 4, 4], "levels": 256}
    assert codec.replace(binarize=True).spec == {"image_shape": [1, 4, 4], "levels": 2}
    earlier = PixelCodec((1, 4, 4), binarize=True)  # as a preparation could choose once
    assert earlier.replace(binarize=False).spec == {"image_shape": [1, 4, 4], "levels": 256}
    with pytest.raises(ValueError, match="no view option 'image_shape'"):
        codec.replace(image_shape=[1, 8, 8])


def test_a_saved_codec_is_the_same_after_loading_and_pickling(tmp_path: Path) -> None:
    codec = PixelCodec((3, 4, 6), binarize=True)
    codec.save(tmp_path)
    for copy in (load_codec(tmp_path), pickle.loads(pickle.dumps(codec))):
        assert (type(copy), copy.options, copy.spec) == (PixelCodec, codec.options, codec.spec)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_shape": (28, 28)}, r"3 positive ints \(channels, height, width\), got \(28, 28\)"),
        ({"image_shape": (1, 0, 28)}, r"3 positive ints .* got \(1, 0, 28\)"),
        ({"image_shape": "1x28x28"}, "3 positive ints .* got '1x28x28'"),
        ({"image_shape": (4, 8, 8)}, "must have 1 or 3 channels, got 4"),
        ({"image_shape": (1, 8, 8), "binarize": "yes"}, "binarize must be true or false, got 'yes'"),
    ],
)
def test_a_wrong_option_is_named_with_its_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PixelCodec(**options)


@pytest.mark.parametrize(
    "item",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 1)), np.zeros((0, 4, 1), np.uint8)],
)
def test_an_array_that_is_no_picture_of_this_codec_is_refused(item: Any) -> None:
    with pytest.raises(ValueError, match=r"must be a uint8 array \[height width 1\], got"):
        PixelCodec((1, 4, 4)).windows(item)


def test_another_size_is_cut_about_its_centre_then_resized() -> None:
    wide = np.zeros((10, 30, 1), np.uint8)
    wide[:, 10:20] = 200  # the middle third is all that a square keeps
    for item in (wide, wide.transpose(1, 0, 2)):
        for side in (5, 10):
            kept = PixelCodec((1, side, side)).windows(item)[0].float()
            assert (kept - 200).abs().max() <= 12  # the filter reaches a little over the edge


def test_making_smaller_averages_and_does_not_drop_lines() -> None:
    stripes = np.zeros((64, 64, 1), np.uint8)
    stripes[::2] = 255
    small = PixelCodec((1, 8, 8)).windows(stripes)[0].float()
    assert (small[:, 1:-1] - 127.5).abs().max() < 8


def test_sizes_count_every_channel_of_every_pixel() -> None:
    assert PixelCodec((3, 4, 5)).sizes(torch.zeros(3, 4, 5, dtype=torch.uint8)) == {"dim": 60}


def test_score_is_the_share_of_right_pixels_or_decibels() -> None:
    binary = PixelCodec((1, 1, 4), binarize=True)
    truth = [torch.tensor([[[0, 1, 1, 0]]], dtype=torch.uint8)]
    assert binary.score(truth, [torch.tensor([[[0.1, 0.9, 0.4, 0.2]]])]) == {"pixel_accuracy": 0.75}
    assert binary.score(truth, truth) == {"pixel_accuracy": 1.0}
    grey = PixelCodec((1, 1, 4))
    black, tenth = torch.zeros(1, 1, 4, dtype=torch.uint8), torch.full((1, 1, 4), 0.1)
    assert grey.score([black], [tenth])["psnr_db"] == pytest.approx(20)  # mean squared error 0.01
    assert grey.score([black], [black]) == {"psnr_db": 99.0}


def test_attributes_are_the_mean_and_the_spread_of_brightness() -> None:
    codec = PixelCodec((3, 1, 4))
    red = torch.zeros(3, 1, 4, dtype=torch.uint8)
    red[0] = 255
    assert codec.attributes(red) == pytest.approx({"brightness": 1 / 3, "contrast": 0})
    half = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(3, 1, 4)  # as a decoder would draw it
    assert codec.attributes(half) == {"brightness": 0.5, "contrast": 0.5}
    drawn = codec.windows(noise(1, 4, 3))[0]
    light = drawn.numpy().mean(0) / 255
    assert codec.attributes(drawn) == pytest.approx({"brightness": light.mean(), "contrast": light.std()})


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    for channels in (1, 3):
        codec = PixelCodec((channels, 6, 5))
        item = noise(6, 5, channels)
        codec.write(item, tmp_path / "a, b.png")
        (read,) = codec.read(str(tmp_path / "a, b.png"))
        assert np.array_equal(read, item)
    assert [path.name for path in tmp_path.iterdir()] == ["a, b.png"]


def test_a_write_that_fails_leaves_the_old_picture(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", noise(4, 4, 3))
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises(TypeError):
        write_png(tmp_path / "a.png", noise(4, 4, 7))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == before


@pytest.mark.parametrize(("count", "rows", "columns"), [(1, 1, 1), (4, 1, 4), (16, 1, 16), (17, 4, 5), (36, 6, 6)])
def test_a_preview_is_a_strip_of_few_pictures_and_a_grid_of_many(count: int, rows: int, columns: int) -> None:
    codec = PixelCodec((1, 28, 28))
    side = 28 * 3  # small ones are enlarged
    items = [np.full((28, 28, 1) if value else (56, 56, 1), 7 * value, np.uint8) for value in range(count)]
    grid = codec.preview(items).image
    assert grid is not None
    assert grid.shape == (rows * (side + 2) - 2, columns * (side + 2) - 2, 3)
    for place in range(count):
        assert grid[place // columns * (side + 2), place % columns * (side + 2)].tolist() == [7 * place] * 3
    if count > 1:
        assert grid[side - 1, side].tolist() == [255] * 3
    assert codec.preview([]).image is None


def rotated(path: Path) -> Path:
    picture = Image.new("RGB", (4, 2), "black")
    picture.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter turn clockwise
    return save(path, picture, exif=exif)


def transparent(mode: str, background: int) -> Image.Image:
    """Return hidden colour under alpha 0, and a black pixel that is opaque."""
    picture = Image.new("RGBA", (2, 1), (background, 0, 0, 0))
    picture.putpixel((1, 0), (0, 0, 0, 255))
    return picture.convert(mode)


def palette(alpha: bool) -> Image.Image:
    picture = Image.new("P", (2, 1), 0)
    picture.putpalette([200, 100, 50, 0, 0, 0])
    picture.putpixel((1, 0), 1)
    if alpha:
        picture.info["transparency"] = 0
    return picture


def two_frames() -> dict[str, Any]:
    return {"save_all": True, "append_images": [Image.new("L", (2, 1), 255)]}


WHITE, BLACK = [255] * 3, [0] * 3


@pytest.mark.parametrize(
    ("name", "make", "options", "expected"),
    [
        ("16.png", lambda: Image.fromarray(np.array([[0, 32768, 65535]], np.uint16)), {}, [BLACK, [128] * 3, WHITE]),
        ("16.tif", lambda: Image.fromarray(np.array([[0, 257, 65535]], np.uint16)), {}, [BLACK, [1] * 3, WHITE]),
        ("32.tif", lambda: Image.fromarray(np.array([[0, 32768, 65535]], np.int32)), {}, [BLACK, [128] * 3, WHITE]),
        ("f.tif", lambda: Image.fromarray(np.array([[0, 0.5, 1]], np.float32)), {}, [BLACK, [128] * 3, WHITE]),
        ("rgba.png", lambda: transparent("RGBA", 255), {}, [WHITE, BLACK]),
        ("la.png", lambda: transparent("LA", 255), {}, [WHITE, BLACK]),
        ("rgba.webp", lambda: transparent("RGBA", 255), {"lossless": True}, [WHITE, BLACK]),
        ("p.png", lambda: palette(False), {}, [[200, 100, 50], BLACK]),
        ("p.gif", lambda: palette(False), {}, [[200, 100, 50], BLACK]),
        ("pa.png", lambda: palette(True), {}, [WHITE, BLACK]),
        ("1.png", lambda: Image.fromarray(np.array([[False, True]])), {}, [BLACK, WHITE]),
        ("l.bmp", lambda: Image.fromarray(np.array([[7, 99]], np.uint8)), {}, [[7] * 3, [99] * 3]),
        ("cmyk.tif", lambda: Image.new("CMYK", (1, 1), (0, 255, 255, 0)), {}, [[255, 0, 0]]),
        ("moving.gif", lambda: Image.new("L", (2, 1), 0), two_frames(), [BLACK, BLACK]),
        ("1.pbm", lambda: Image.fromarray(np.array([[False, True]])), {}, [BLACK, WHITE]),
        ("16.pgm", lambda: Image.fromarray(np.array([[0, 32768, 65535]], np.uint16)), {}, [BLACK, [128] * 3, WHITE]),
        ("rgb.ppm", lambda: Image.new("RGB", (1, 1), (200, 100, 50)), {}, [[200, 100, 50]]),
        ("f.pfm", lambda: Image.fromarray(np.array([[0, 0.5, 1]], np.float32)), {}, [BLACK, [128] * 3, WHITE]),
        ("moving.webp", lambda: Image.new("L", (2, 1), 0), two_frames() | {"lossless": True}, [BLACK, BLACK]),
    ],
)
def test_every_kind_of_picture_is_read_as_the_eye_sees_it(
    name: str, make: Callable[[], Image.Image], options: dict[str, Any], expected: list[list[int]], tmp_path: Path
) -> None:
    path = save(tmp_path / name, make(), **options)
    assert read_picture(path, 3).reshape(-1, 3).tolist() == expected
    grey = read_picture(path, 1)
    luma = [0.299 * red + 0.587 * green + 0.114 * blue for red, green, blue in expected]  # ITU-R BT.601
    assert grey.ravel().tolist() == pytest.approx(luma, abs=0.51)


@pytest.mark.parametrize("ending", ["jpg", "jpeg", "jpe", "jfif"])
def test_a_cmyk_jpeg_keeps_its_colour(ending: str, tmp_path: Path) -> None:
    path = save(tmp_path / f"cmyk.{ending}", Image.new("CMYK", (16, 16), (0, 255, 255, 0)), quality=95)
    assert np.abs(read_picture(path, 3).astype(int) - [255, 0, 0]).max() < 12


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_an_avif_is_seen_on_white_and_of_several_its_first_picture(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (16, 16), (255, 0, 0, 255))
    picture.paste((0, 0, 0, 0), (8, 0, 16, 16))
    moving = {"save_all": True, "append_images": [Image.new("RGBA", (16, 16), "black")]}
    read = read_picture(save(tmp_path / "a.avif", picture, quality=100, **moving), 3).astype(int)
    assert np.abs(read[:, 2:6] - [255, 0, 0]).max() < 12
    assert np.abs(read[:, 10:] - 255).max() < 12


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_a_turned_camera_is_turned_back(name: str, tmp_path: Path) -> None:
    read = read_picture(rotated(tmp_path / name), 1)
    assert read.shape == (4, 2, 1)
    assert np.argwhere(read > 128).tolist() == [[0, 1, 0]]  # the first pixel is now at the top right


def png_of(width: int, height: int, depth: int = 8, kind: int = 2, rows: bytes = b"\0") -> bytes:
    """Return a PNG that claims a size, bits a channel and a kind of colour, and holds these rows: here none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def hostile(tmp_path: Path) -> dict[str, tuple[bytes, str]]:
    """Return files nobody can read, by name, with a word of the reason."""
    save(tmp_path / "good.png", noise(40, 40, 3))
    save(tmp_path / "good.jpg", noise(40, 40, 3))
    save(tmp_path / "good.gif", noise(40, 40, 3))
    png, jpg, gif = ((tmp_path / f"good.{ending}").read_bytes() for ending in ("png", "jpg", "gif"))
    return {
        "empty.png": (b"", "cannot identify"),
        "byte.png": (b"\x89", "cannot identify"),
        "page.jpg": (b"<html>404</html>", "cannot identify"),
        "truncated.png": (png[: len(png) // 2], "truncated"),
        "truncated.jpg": (jpg[: len(jpg) // 2], "truncated"),
        "truncated.gif": (gif[: len(gif) // 2], ""),
        "flipped.png": (png[:60] + bytes([png[60] ^ 255]) + png[61:], ""),
        "bomb.png": (png_of(12_000, 12_000), "more than|exceeds"),
        "huge.png": (png_of(60_000, 60_000), "exceeds|more than"),
        "nothing.png": (png_of(0, 5), ""),
    }


def test_a_hostile_file_is_one_error_with_its_name_and_the_reason(tmp_path: Path) -> None:
    for name, (content, reason) in hostile(tmp_path).items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}: .*({reason})") as caught:
            read_picture(path)
        assert "\n" not in str(caught.value)
        assert str(caught.value) != f"{path}: "
    with pytest.raises(ValueError, match=r"nowhere\.png: no such file"):
        PixelCodec((1, 4, 4)).read(str(tmp_path / "nowhere.png"))
    with pytest.raises(ValueError, match="no such file"):
        read_picture(tmp_path)


def test_what_a_file_is_counts_not_its_ending(tmp_path: Path) -> None:
    picture = noise(6, 5, 3)
    path = save(tmp_path / "a.bmp", picture).rename(tmp_path / "a.jpg")
    assert np.array_equal(read_picture(path), picture)


def test_a_format_that_would_start_another_program_is_not_a_picture(tmp_path: Path) -> None:
    Image.fromarray(noise(6, 5, 3)).save(tmp_path / "a.png", format="EPS")
    with Image.open(tmp_path / "a.png") as opened:  # Pillow alone would hand it to Ghostscript
        assert opened.format == "EPS"
    with pytest.raises(ValueError, match=r"a\.png: cannot identify image file it"):
        read_picture(tmp_path / "a.png")


@pytest.mark.parametrize("order", ["<u2", ">u2"])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_whatever_their_order(tmp_path: Path, order: str, suffix: str) -> None:
    values = np.array([[0, 257, 32896, 65535]], order)
    path = save(
        tmp_path / f"a.{suffix}", Image.frombytes("I;16" if order == "<u2" else "I;16B", (4, 1), values.tobytes())
    )
    assert read_picture(path, 1).ravel().tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("kind", "pixels", "expected"),
    [
        (2, [[65535, 32896, 257], [0, 0, 0]], [[255, 128, 1], BLACK]),
        (6, [[65535, 0, 0, 65535], [0, 0, 0, 0], [0, 0, 0, 65535]], [[255, 0, 0], WHITE, BLACK]),
        (4, [[32896, 65535], [0, 0]], [[128] * 3, WHITE]),
    ],
    ids=["colour", "colour and alpha", "grey and alpha"],
)
def test_sixteen_bits_a_channel_are_scaled_with_colour_and_alpha(
    kind: int, pixels: list[list[int]], expected: list[list[int]], tmp_path: Path
) -> None:
    content = png_of(len(pixels), 1, 16, kind, b"\0" + np.array(pixels, ">u2").tobytes())  # of no filter
    (tmp_path / "a.png").write_bytes(content)
    assert read_picture(tmp_path / "a.png", 3)[0].tolist() == expected


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (np.array([[0, 0.5, 300]], np.float32), "0, 1], got 0 to 300"),  # whatever the brightest of them would mean
        (np.array([[-1, 1]], np.float32), "0, 1], got -1 to 1"),
        (np.array([[0, np.nan]], np.float32), "0, 1], got nan to nan"),
        (np.array([[0, np.inf]], np.float32), "0, 1], got 0 to inf"),
        (np.array([[0, 70_000]], np.int32), "0, 65535], got 0 to 70000"),
    ],
)
def test_values_that_are_no_brightness_are_refused(values: NDArray[Any], told: str, tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", Image.fromarray(values))
    with pytest.raises(ValueError, match=re.escape(f"a.tif: its values must lie in [{told}")):
        read_picture(path)


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (1, 1)])
def test_the_thinnest_picture_is_cut_and_resized(tmp_path: Path, shape: tuple[int, int]) -> None:
    save(tmp_path / "source" / "thin.png", np.full(shape, 7, np.uint8))
    for n in range(3):
        save(tmp_path / "source" / f"{n}.png", noise(4, 4, 3, seed=n))
    assert prepare_image(tmp_path / "source", tmp_path / "data", size="16x8").kept == 4


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_picture_without_permission_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", noise(4, 4, 3))
    path.chmod(0)
    with pytest.raises(ValueError, match=r"a\.png: Permission denied"):
        read_picture(path)


@pytest.mark.parametrize("name", ["a\x1b[31m\n.png", "folder.png", "loop.png", "pipe.png"])
def test_a_message_is_one_printable_line_whatever_the_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "folder.png":
        path.mkdir()
    elif name == "loop.png":
        path.symlink_to(path)
    elif name == "pipe.png":
        os.mkfifo(path)  # whoever opens it waits for ever
    else:
        path.write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"\.png: (no such file|cannot identify image file it)") as raised:
        read_picture(path)
    assert str(raised.value).isprintable()


def seeds(folder: Path) -> list[bytes]:
    """Return a small file of every kind that is read."""
    colour, grey = noise(12, 9, 3), noise(9, 12, seed=1)
    frames = {"save_all": True, "append_images": [Image.fromarray(noise(12, 9, 3, seed=2))]}
    made = [
        save(folder / "a.png", colour),
        save(folder / "b.png", Image.fromarray(grey.astype(np.uint16) * 257)),
        save(folder / "c.png", Image.fromarray(colour).quantize(9), transparency=0),
        rotated(folder / "d.jpg"),
        save(folder / "e.jpg", Image.fromarray(grey), progressive=True),
        save(folder / "f.webp", colour, lossless=True),
        save(folder / "g.webp", colour, **frames),
        save(folder / "h.gif", colour, **frames),
        save(folder / "i.bmp", colour),
        save(folder / "j.tif", colour, compression="tiff_lzw"),
        save(folder / "k.tif", Image.fromarray(grey.astype(np.float32) / 255)),
        save(folder / "l.ppm", colour),
        save(folder / "m.pfm", Image.fromarray(grey.astype(np.float32) / 255)),
    ]
    if features.check("avif"):
        made += [save(folder / "n.avif", colour), save(folder / "o.avif", colour, **frames)]
    return [path.read_bytes() for path in made]


def mutated(data: bytes, others: Sequence[bytes], draw: random.Random) -> bytes:
    """Return a file with bits flipped, sizes blown up, its end gone, or a stretch of another file in it."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4))):
        start, other = draw.randrange(min(len(changed), draw.choice((40, 10_000))) + 1), draw.choice(others)
        begin, length = draw.randrange(len(other)), draw.choice((1, 2, 4, 30))
        match draw.randrange(5):
            case 0 if start < len(changed):
                changed[start] ^= 1 << draw.randrange(8)
            case 1:
                changed[start : start + length] = draw.choice((b"\x00", b"\x7f", b"\xff")) * length
            case 2:
                del changed[start:]
            case 3:
                del changed[start : start + length]
            case _:
                changed[start : start + length] = other[begin : begin + length]
    return repaired(bytes(changed)) if draw.random() < 0.5 else bytes(changed)


def repaired(data: bytes) -> bytes:
    """Return a PNG with right checksums, so that damage gets further than to the first of them."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return data
    whole, position = bytearray(data[:8]), 8
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4])
        part = data[position + 4 : position + 8 + length]
        whole += data[position : position + 4] + part + struct.pack(">I", zlib.crc32(part))
        position += 12 + length
    return bytes(whole)


MUTATIONS = 4_000


def read_mutations(folder: Path) -> None:
    """In a process of its own: read thousands of damaged files, and measure the slowest and what they take at most."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes
    kinds, draw, whole, slowest, reasons = seeds(folder), random.Random(0), 0, 0.0, list[str]()
    for _ in range(MUTATIONS):
        (folder / "damaged.png").write_bytes(mutated(draw.choice(kinds), kinds, draw))
        started = time.process_time()
        try:
            pixels = read_picture(folder / "damaged.png", draw.choice((1, 3)))
            whole += pixels.dtype == np.uint8 and pixels.ndim == 3
        except ValueError as error:
            reasons.append(str(error))
        slowest = max(slowest, time.process_time() - started)
    assert whole + len(reasons) == MUTATIONS
    assert MUTATIONS // 20 < whole < MUTATIONS * 19 // 20  # neither harmless nor hopeless
    assert all(reason.isprintable() and reason != f"{folder}/damaged.png: " for reason in reasons)
    assert slowest < 2, slowest
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 512 * 2**10


def read_the_largest(folder: Path) -> None:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**30,) * 2)
    for path in folder.iterdir():
        assert read_picture(path).shape == (8000, 8000, 3)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory in other units")
@pytest.mark.slow
def test_of_thousands_of_damaged_pictures_each_is_read_or_refused_in_time_and_memory(tmp_path: Path) -> None:
    assert exit_code(read_mutations, tmp_path) == 0


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux tells the size of a process there")
@pytest.mark.slow
def test_the_largest_picture_that_is_let_in_takes_a_gigabyte_at_most(tmp_path: Path) -> None:
    for name, mode in (("a.png", "RGBA"), ("b.jpg", "CMYK"), ("c.gif", "P")):  # a few kilobytes each
        save(tmp_path / name, Image.new(mode, (8000, 8000)))
    save(tmp_path / "d.png", np.zeros((8000, 8000), np.uint16))
    if features.check("avif"):
        save(tmp_path / "e.avif", Image.new("RGBA", (8000, 8000)), speed=10)
    assert exit_code(read_the_largest, tmp_path) == 0


@pytest.mark.parametrize(
    ("size", "expected"), [(64, (64, 64)), ("28", (28, 28)), ("32x24", (24, 32)), ("32X24", (24, 32))]
)
def test_a_size_is_a_side_or_width_by_height(size: str | int, expected: tuple[int, int]) -> None:
    assert parse_size(size) == expected


@pytest.mark.parametrize("size", ["", "x", "3x", "axb", "-4", "1x2x3", 0, "5000"])
def test_a_wrong_size_is_named(size: str | int) -> None:
    with pytest.raises(ValueError, match=f"size must be .*, got {size!r}"):
        parse_size(size)


def read_back(root: Path) -> dict[str, list[Pixels]]:
    codec = load_codec(root / "codec")
    datasets = {split: WindowDataset(root, split) for split in SPLITS}
    return {split: [codec.join([dataset[i]]) for i in range(len(dataset))] for split, dataset in datasets.items()}


def test_prepared_pictures_come_back_with_their_labels(tmp_path: Path) -> None:
    pictures = {f"{kind}/{n}, {n}.png": noise(6, 8, 3, seed=hash_) for hash_, (kind, n) in enumerate(pairs())}
    for name, picture in pictures.items():
        save(tmp_path / "source" / name, picture)
    report = prepare_image(tmp_path / "source", tmp_path / "data", size="8x6")
    assert report.kept == len(pictures)
    names = read_manifest(tmp_path / "data")["options"]["label_names"]
    assert names == ["cats", "dogs"]
    for split, items in read_back(tmp_path / "data").items():
        dataset = WindowDataset(tmp_path / "data", split)
        for name, item, label in zip(dataset.names, items, dataset.column("label").tolist(), strict=True):
            assert np.array_equal(item, pictures[name])
            assert name.startswith(names[label])


def pairs() -> list[tuple[str, int]]:
    return [(kind, n) for kind in ("dogs", "cats") for n in range(12)]


def test_split_folders_are_kept_and_are_no_labels(tmp_path: Path) -> None:
    for seed, (split, (kind, n)) in enumerate((split, pair) for split in ("train", "test") for pair in pairs()[::4]):
        save(tmp_path / "source" / split / kind / f"{n}.png", noise(4, 4, 3, seed=seed))
    prepare_image(tmp_path / "source", tmp_path / "data", size=4)
    test = WindowDataset(tmp_path / "data", "test")
    assert sorted(test.names) == sorted(f"test/{kind}/{n}.png" for kind, n in pairs()[::4])
    assert read_manifest(tmp_path / "data")["options"]["label_names"] == ["cats", "dogs"]
    held_out = WindowDataset(tmp_path / "data", "valid").names
    assert held_out
    assert all(name.startswith("train/") for name in held_out)


def test_equal_pictures_stand_on_one_side_of_the_split(tmp_path: Path) -> None:
    for n in range(40):
        save(tmp_path / "source" / f"{n}.png", noise(4, 4, 3, seed=n % 10))
    report = prepare_image(tmp_path / "source", tmp_path / "data", size=4)
    assert report.items == {"train": 32, "valid": 4, "test": 4}
    assert report.seen_in_train == {"train": 0, "valid": 0, "test": 0}
    with pytest.raises(ValueError, match="has no column 'label'"):
        WindowDataset(tmp_path / "data", "train").column("label")


def test_an_unreadable_picture_is_rejected_with_its_reason_and_the_rest_is_kept(tmp_path: Path) -> None:
    for n in range(6):
        save(tmp_path / "source" / f"{n}.png", noise(4, 4, 3, seed=n))
    bad = hostile(tmp_path)
    for name, (content, _) in bad.items():
        (tmp_path / "source" / name).write_bytes(content)
    report = prepare_image(tmp_path / "source", tmp_path / "data", size=4, channels=1)
    assert (report.kept, report.rejected) == (6, {"cannot be read": len(bad)})
    lines = [json.loads(line) for line in (tmp_path / "data" / "rejected.jsonl").read_text().splitlines()]
    assert {line["name"] for line in lines} == bad.keys()
    assert all(line["detail"] and str(tmp_path) not in line["detail"] for line in lines)


def test_two_preparations_of_pictures_give_the_same_fingerprint(tmp_path: Path) -> None:
    for n in range(8):
        save(tmp_path / "source" / f"{n}.jpg", noise(9, 7, 3, seed=n))
    prints = []
    choices: dict[str, dict[str, Any]] = {"a": {}, "b": {"engine": "loky", "jobs": 2}, "c": {"size": 5}}
    for name, options in choices.items():
        prepare_image(tmp_path / "source", tmp_path / name, **{"size": 4, **options})
        prints.append(read_manifest(tmp_path / name)["fingerprint"])
    assert prints[0] == prints[1] != prints[2]


def test_a_folder_without_pictures_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "notes.txt").touch()
    (tmp_path / "source" / "a.heic").touch()
    with pytest.raises(ValueError, match=r"holds no files ending in .*\.png.* \(2 files in all\)"):
        prepare_image(tmp_path / "source", tmp_path / "data")


def test_arrays_are_prepared_in_the_splits_they_have(tmp_path: Path) -> None:
    images, splits = noise(9, 4, 5, 1), ["train"] * 5 + ["valid"] * 2 + ["test"] * 2
    images[8] = images[0]
    prepare_arrays(images, splits, tmp_path, labels=range(9), label_names=list("abcdefghi"))
    back = read_back(tmp_path)
    assert np.array_equal(np.stack([item for split in SPLITS for item in back[split]]), images)
    assert [len(back[split]) for split in SPLITS] == [5, 2, 2]
    assert WindowDataset(tmp_path, "test").column("label").tolist() == [7, 8]
    assert WindowDataset(tmp_path, "test").column("seen_in_train").tolist() == [0, 1]
    assert load_codec(tmp_path / "codec").spec == {"image_shape": [1, 4, 5], "levels": 256}


def test_arrays_of_another_kind_or_count_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"images must be uint8 \[n height width channels\], got float64 \[3, 2, 2\]"):
        prepare_arrays(np.zeros((3, 2, 2)), ["train"] * 3, tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="labels must hold one value for each of 3 images, got 2"):
        prepare_arrays(noise(3, 2, 2, 1), ["train"] * 3, tmp_path, labels=[0, 1])
