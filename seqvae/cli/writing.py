"""Items become files: lines of text, or MIDI and pictures beside a view and a sound of all of them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seqvae.harness.config import Trained


def write_items(
    trained: Trained, options: argparse.Namespace, stem: str, items: list[Any], originals: list[Any]
) -> None:
    """Write items to OUT: lines of text, or a file each, all of them together, a picture and sound where there is one.

    Raises:
        ValueError: without an OUT for items that are files.
    """
    codec = trained.codec
    if codec.suffix is None:
        text = "".join(f"{item}\n" for item in items)
        if options.output in (None, "-"):
            sys.stdout.write(text)
        else:
            write_whole(Path(options.output), text.encode())
            print(f"{len(items)} lines written to {options.output}", file=sys.stderr)
        return
    if options.output in (None, "-"):
        raise ValueError("-o OUT is needed: a directory for the files")
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    from seqvae.data.image import write_png

    written: list[Path] = []

    def path(name: str) -> Path:
        written.append(folder / name)
        return written[-1]

    digits = len(str(len(items)))
    for number, item in enumerate(items, 1):
        codec.write(item, path(f"{stem}-{number:0{digits}d}{codec.suffix}"))
    for number, item in enumerate(originals, 1):
        codec.write(item, path(f"original-{number:0{len(str(len(originals)))}d}{codec.suffix}"))
    preview = codec.preview([*originals[:1], *items, *originals[1:]] if stem == "interpolation" else items)
    chained = codec.chain(items)
    if chained is not None:
        codec.write(chained, path(f"{stem}{codec.suffix}"))
    if preview.image is not None:
        write_png(path(f"{stem}.png"), preview.image)
    if preview.audio is not None:
        _write_wav(path(f"{stem}.wav"), preview.audio, preview.sample_rate)
    for file in written:
        print(file)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place and rename it: it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


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
