"""Folk tunes of Scotland, Ireland, England and America from three old books, as MIDI: the corpus of the melody recipe.

    pip install "seqvae[examples]"
    python -m data_prep.folk_tunes --root data/folk_tunes

The books (Aird's Airs, 1778 onwards; Ryan's Mammoth Collection, 1883; O'Neill's Music of Ireland, 1903) come as ABC
text with the Python package music21, of which nothing else is used and nothing is run.
"""

import argparse
import contextlib
import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from seqvae.data.dataset import sha256
from seqvae.data.midi import prepare_midi
from seqvae.data.preparation import Rejected, hold, refuse_existing

BOOKS = ("airdsAirs", "oneills1850", "ryansMammoth")
WHEEL = "music21-10.5.1-py3-none-any.whl"
WHEEL_SHA256 = "dc3309498c4c95cebdf8d4f20c868deb6b63bce1d929cad4f51a7ccc982987b1"

_ASIDE = re.compile(r'"[^"]*"|\{[^}]*\}|![A-Za-z0-9.()<>+]+!')  # chords and remarks, grace notes, decorations
_DECORATION = re.compile(r"(\[[A-Za-z]:[^\]]*\])|[~.HLMOPSTuv]")  # but inline fields, as [M:3/4], stay
_BAR_LINE = re.compile(r"(:\|:|\|:|::|:\||\|\|)(?![\d\]|:])")
# one drum beat at every bar line, the first of a repeat included: nothing else tells where bars begin
_MARK_BARS = ("%%MIDI gchordoff", "%%MIDI drum d 35 100", "%%MIDI drumon")


class Tune(NamedTuple):
    """One tune of a book."""

    name: str
    abc: str


def read_books(cache: Path) -> Iterator[Tune]:
    """Yield every tune, from an installed music21 or else from its wheel, which is fetched into `cache`."""
    for path, text in _read_files(cache):
        book, stem = path.split("/")[-2:]
        seen: set[str] = set()
        for part in re.split(r"(?m)^(?=X:)", text)[1:]:
            number = "".join(re.findall(r"\d", part.splitlines()[0])) or "0"
            while number in seen:
                number += "b"
            seen.add(number)
            yield Tune(f"{book}-{stem.removesuffix('.abc')}-{number}", part)


def _read_files(cache: Path) -> Iterator[tuple[str, str]]:
    spec = importlib.util.find_spec("music21")  # finds it without running it
    if spec is not None and spec.submodule_search_locations:
        corpus = Path(spec.submodule_search_locations[0]) / "corpus"
        for path in sorted(path for book in BOOKS for path in (corpus / book).glob("*.abc")):
            yield path.as_posix(), path.read_text(encoding="utf-8", errors="replace")
        return
    with zipfile.ZipFile(_fetch(cache)) as wheel:
        for name in sorted(wheel.namelist()):
            if name.endswith(".abc") and name.split("/")[-2] in BOOKS:
                yield name, wheel.read(name).decode("utf-8", errors="replace")


def _fetch(cache: Path) -> Path:
    wheel = cache / WHEEL
    if not wheel.exists():
        version = WHEEL.split("-")[1]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache)]
        done = subprocess.run([*command, f"music21=={version}"], capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise ValueError(f"music21 {version} could not be downloaded into {cache}: {reason}")
    if sha256(wheel) != WHEEL_SHA256:
        raise ValueError(f"{wheel} is not the file expected (sha256 differs); remove it and try again")
    return wheel


def plain_abc(abc: str) -> str:
    """Return the tune's bare notes: without chord symbols, ornaments and the R: that would make hornpipes swing."""
    head, key, body = abc.partition("\nK:")
    lines = [line for line in head.splitlines() if line[:2] in ("X:", "M:", "L:", "Q:")]
    first, *rest = (key + body).strip("\n").splitlines()
    lines += [first, *_MARK_BARS]
    for line in rest:
        if re.match(r"[A-Za-z]:|%|\s*$", line):
            lines += [line] if line[:2] in ("M:", "L:", "K:", "V:") else []
            continue
        line = _DECORATION.sub(lambda match: match[1] or "", _ASIDE.sub("", line.split("%")[0]))
        lines.append(_BAR_LINE.sub(r"\1|", line if lines[-1] != _MARK_BARS[-1] else "|" + line))
    return "\n".join(lines) + "\n"


def tune_midi(abc: str, symusic: Any) -> bytes:
    """Return the tune as a MIDI file of one melody. Raises ValueError when it has no notes or no whole bar.

    A rest in front lets the first whole bar begin on a bar line. Where bars drift, because a repeat's end and the
    pick-up of its beginning do not make a whole bar, the time signature is set again at the next whole bar.
    """
    score = symusic.Score.from_abc(plain_abc(abc))
    melody = next((track for track in score.tracks if not track.is_drum and len(track.notes)), None)
    if melody is None:
        raise ValueError("no notes")
    lines = sorted({note.time - 1 for track in score.tracks if track.is_drum for note in track.notes})
    lines.append(max(note.end for note in melody.notes))  # the converter's notes begin at tick 1 and end in time
    beat = score.ticks_per_quarter
    meters = sorted((max(m.time - 1, 0), m.numerator, m.denominator) for m in score.time_signatures) or [(0, 4, 4)]
    signatures: list[tuple[int, int, int]] = []
    for line, following in pairwise(lines):
        _, numerator, denominator = meters[max(bisect_right(meters, (line, 99, 99)) - 1, 0)]
        bar = 4 * beat * numerator // denominator
        whole = following - line == bar
        drifted = not signatures or (line - signatures[-1][0]) % bar or signatures[-1][1:] != (numerator, denominator)
        if whole and drifted:
            signatures.append((line, numerator, denominator))
    if not signatures:
        raise ValueError("no whole bar")
    first, numerator, denominator = signatures[0]
    bars = 2 if numerator * 2 == denominator else 1  # 2/4 goes in pairs
    rest = -first % (bars * 4 * beat * numerator // denominator)
    signatures = [(0, numerator, denominator), *((time + rest, n, d) for time, n, d in signatures if time + rest)]

    result = symusic.Score(beat)
    tempo = score.tempos[0].qpm if len(score.tempos) else 120.0
    result.tempos.append(symusic.Tempo(0, qpm=tempo if 30 <= tempo <= 300 else 120.0))
    for signature in signatures:
        result.time_signatures.append(symusic.TimeSignature(*signature))
    track = symusic.Track(program=73)  # flute
    for note in melody.notes:
        track.notes.append(symusic.Note(note.time - 1 + rest, note.duration + 1, note.pitch, 90))
    result.tracks.append(track)
    midi: bytes = result.dumps_midi()
    return midi


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Send what the ABC converter prints about other people's tunes nowhere."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            for number, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, number)
                os.close(copy)


def write_tunes(folder: Path, cache: Path, symusic: Any) -> list[Rejected]:
    """Write every tune as a file of its own into `folder`; return those that cannot be."""
    folder.mkdir(parents=True, exist_ok=True)
    rejected = []
    tunes = list(read_books(cache))
    with _quiet():
        for tune in tunes:
            path = folder / f"{tune.name}.mid"
            try:
                midi = tune_midi(tune.abc, symusic)
                if not path.exists() or path.read_bytes() != midi:  # or a second start would find its shards too old
                    path.write_bytes(midi)
            except (ValueError, RuntimeError) as error:
                rejected.append(
                    Rejected(tune.name, f"ABC with {error}" if isinstance(error, ValueError) else "bad ABC")
                )
    return rejected


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data_prep.folk_tunes", description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path("data/folk_tunes"), help="the folder to make")
    parser.add_argument("--bars", type=int, default=2, help="length of a window")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=-1, help="processes; -1 for one a core")
    options = parser.parse_args(argv)
    if importlib.util.find_spec("symusic") is None:
        print(
            'the tunes are ABC text, which symusic reads; get it with: pip install "seqvae[examples]"', file=sys.stderr
        )
        return 2
    import symusic

    root: Path = options.root
    try:
        refuse_existing(root)
        with hold(root):
            rejected = write_tunes(root / "midi", root / "download", symusic)
            report = prepare_midi(
                root / "midi",
                root,
                bars=options.bars,
                seed=options.seed,
                engine="sequential" if options.jobs == 1 else "loky",
                jobs=options.jobs,
                earlier=rejected,
            )
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(report.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
