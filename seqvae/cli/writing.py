"""Items become files: lines of text, or MIDI and pictures beside a view and a sound of all of them."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

if TYPE_CHECKING:
    from seqvae.data.codec import Codec
    from seqvae.harness.config import Trained

SHOWN = 64  # items in the picture, the sound and the file of all of them; more would be of no use to a person
COMPARED = 12  # reconstructions in a row below their originals


class Shown(NamedTuple):
    """An item where it is shown beside others."""

    item: Any
    caption: str


def write_items(
    trained: Trained,
    options: argparse.Namespace,
    stem: str,
    items: Iterable[Any],
    count: int,
    originals: Sequence[Any] = (),
    columns: int | None = None,
    *,
    captions: Sequence[str] = (),
    names: Sequence[str] = (),
    remarks: Sequence[str] = (),
) -> None:
    """Write items to OUT as they come: lines of text, or a file each beside a picture and a sound of the first ones.

    `count` is the most that may come. The picture has so many `columns`. A `captions` is what an item is called where
    it is shown (its number, by default), a `names` what an original is, a `remarks` what is printed beside its file.

    Raises:
        ValueError: without an OUT for items that are files.
    """
    if trained.codec.suffix is None:
        write_lines(map(str, items), options.output)
        return
    if options.output in (None, "-"):
        raise ValueError("-o OUT is needed: a directory for the files")
    folder = Path(options.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"-o OUT must be a directory for the files, and {folder} cannot be one") from None
    shown = []
    for number, item in enumerate(items, 1):
        path = folder / f"{stem}-{number:0{len(str(count))}d}{trained.codec.suffix}"
        trained.codec.write(item, path)
        print(path, *remarks[number - 1 : number], sep="  ")
        if number <= SHOWN:
            shown.append(Shown(item, captions[number - 1] if captions else f"{stem} {number}"))
    truth = []
    for number, item in enumerate(originals, 1):
        path = folder / f"original-{number:0{len(str(len(originals)))}d}{trained.codec.suffix}"
        trained.codec.write(item, path)
        print(path)
        truth.append(Shown(item, names[number - 1] if names else f"original {number}"))
    if not shown:
        return
    picture = shown
    if stem == "interpolation":
        picture = [*truth[:1], *shown, *truth[1:]]
        columns = len(picture) if trained.codec.strips else None
    elif stem == "similar":
        picture = [*truth, *shown]
    elif stem == "reconstruction":  # the truth stands above it
        columns = min(len(originals), COMPARED)
        picture = [*truth[:columns], *shown[:columns]]
    _write_together(trained, folder / stem, [one.item for one in shown], picture, columns)


def check_view(codec: Codec[Any], output: str | None) -> None:
    """Raise ValueError, before any work, for an OUT that `write_view` cannot write."""
    if codec.suffix is None:
        if output is not None and output.endswith(".png"):
            raise ValueError(f"sentences are lines of text: -o FILE.txt, or - to print them, got {output}")
        return
    endings = (".png", *codec.document_endings)
    if output is None or Path(output).suffix not in endings:
        raise ValueError(f"-o FILE{' or FILE'.join(endings)} is needed, got {output or 'nothing'}")


def write_view(
    codec: Codec[Any],
    output: str | None,
    items: Sequence[Any],
    captions: Sequence[str],
    columns: int,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
) -> None:
    """Write one view of items in so many columns: a picture with its labels, a page, or a line an item.

    Raises:
        ValueError: for a file that is no view of such items.
    """
    check_view(codec, output)
    if codec.suffix is None:
        write_lines((f"{name}\t{item}" for name, item in zip(captions, items, strict=True)), output)
        return
    from seqvae.data.captions import caption
    from seqvae.data.image import write_png

    path = Path(str(output))
    if path.suffix == ".png":
        image = codec.preview(items, columns, sound=False).image
        assert image is not None  # of items that have files of their own
        write_png(path, caption(image, row_labels, column_labels))
    else:
        texts = codec.documents(items, path.stem, captions, columns)
        if path.suffix not in texts:
            raise ValueError(f"{output} would hold nothing: no item has a note for it")
        write_whole(path, texts[path.suffix].encode())
    print(path)


def shown_line(text: str) -> str:
    """Return a text as one line, with a mark for what a terminal would obey; drawn bytes can spell it."""
    from seqvae.data.text.tokenizer import one_line

    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]", "\ufffd", one_line(text))


def write_lines(lines: Iterable[str], output: str | None) -> None:
    """Write texts, a line each, as they come to a file, which is there whole or not at all, or to standard output."""
    lines = map(shown_line, lines)
    if output in (None, "-"):
        for line in lines:
            sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
        return
    number = 0
    with whole(Path(output)) as file:
        for number, line in enumerate(lines, 1):  # noqa: B007 - it is the count
            file.write(f"{line}\n".encode())
    print(f"{number:,} lines written to {output}", file=sys.stderr)


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """Open a file beside its place and rename it at the end: it is there whole or not at all.

    Raises:
        OSError: where there can be none; it names the file itself.
    """
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        with _named(path):
            file = temporary.open("wb")
        with file:
            yield file
        with _named(path):
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise type(error)(f"{path} cannot be written: {error.strerror or error}") from error


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Make a directory beside its place and rename it at the end: all of it is there or nothing is.

    Raises:
        ValueError: where something is already.
    """
    if path.is_dir() and not any(path.iterdir()) and not path.samefile(Path.cwd()):
        path = path.resolve()  # an empty one is replaced, a link to it is not
    elif path.exists():
        raise ValueError(f"{path} is there already; name a new directory")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.mkdir()
    try:
        yield temporary
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all."""
    with whole(path) as file:
        file.write(content)


def _write_together(
    trained: Trained, stem: Path, items: list[Any], picture: Sequence[Shown], columns: int | None
) -> None:
    """Write the items one after another, and the picture, sound and documents of those to be shown with them."""
    from seqvae.data.image import write_png

    codec = trained.codec
    shown = [one.item for one in picture]
    chained, preview = codec.chain(items), codec.preview(shown, columns)
    writers: dict[str, Callable[[Path], None]] = {}
    if chained is not None:
        writers[codec.suffix or ""] = partial(codec.write, chained)
    if preview.image is not None:
        writers[".png"] = partial(write_png, array=preview.image)
    if preview.audio is not None:
        writers[".wav"] = partial(_write_wav, audio=preview.audio, sample_rate=preview.sample_rate)
    for ending, text in codec.documents(shown, stem.name, [one.caption for one in picture], columns).items():
        writers[ending] = partial(write_whole, content=text.encode())
    for ending, write in writers.items():
        path = stem.with_name(f"{stem.name}{ending}")
        write(path)
        print(path)


def _write_wav(path: Path, audio: Any, sample_rate: int) -> None:
    import io
    import wave

    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes((audio.clip(-1, 1) * 32767).astype("<i2").tobytes())
    write_whole(path, content.getvalue())
