"""`seqvae prepare text|midi|image`: a user's own files become a dataset."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from seqvae.cli.arguments import Commands

if TYPE_CHECKING:
    from seqvae.data.preparation import Report


def add(commands: Commands) -> None:
    """Add `prepare`, with a kind of source below it."""
    help = "turn your own text, MIDI or pictures into a dataset"
    parser = commands.add_parser("prepare", help=help, description=help)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="text|midi|image")

    def kind(name: str, help: str) -> argparse.ArgumentParser:
        sub = kinds.add_parser(name, help=help, description=help)
        sub.add_argument("source", type=Path, metavar="SOURCE", help="train/valid/test in it keep their split")
        sub.add_argument("--root", type=Path, required=True, metavar="DIR", help="where the dataset goes")
        sub.add_argument("--seed", type=int, default=0, help="of the split (default 0)")
        sub.add_argument(
            "--engine",
            choices=("sequential", "loky", "dask"),
            default="loky",
            help="what converts: loky, processes of this machine (default); sequential, this one; dask, the cluster at "
            "DASK_SCHEDULER_ADDRESS (tcp://HOST:PORT), which must see SOURCE and DIR under the same paths, or without "
            "that variable a cluster on this machine. The dataset is the same to the byte",
        )
        sub.add_argument("--jobs", type=int, default=-1, help="processes (default: one a core)")
        sub.set_defaults(run=lambda options: print(_prepare(options).table()))
        return sub

    text = kind("text", "a file, a folder of files, or standard input (-), packed (.gz) or not, one item a line")
    text.add_argument("--column", metavar="NAME", help="items are the cells of this column of CSV or TSV files")
    text.add_argument("--field", metavar="NAME", help="items are this field of JSON lines (.jsonl, .ndjson)")
    text.add_argument(
        "--split-sentences", action="store_true", help="cut text into sentences; empty lines part paragraphs"
    )
    text.add_argument("--vocab-size", type=int, default=8000)
    text.add_argument("--model-type", choices=("unigram", "bpe", "char", "word"), default="unigram")
    text.add_argument("--max-length", type=int, default=64, help="tokens, the end counted (default 64)")
    text.add_argument("--min-length", type=int, default=2, help="tokens, the end counted (default 2)")
    text.add_argument(
        "--normalization",
        choices=("nfkc", "nfkc_lowercase", "identity"),
        default="nfkc",
        help="of characters (default nfkc: ligatures and wide letters become plain ones); identity keeps them all",
    )
    text.add_argument(
        "--character-coverage", type=float, default=1.0, help="share of the characters with a piece (default 1.0)"
    )
    text.add_argument(
        "--byte-fallback",
        action="store_true",
        help="spell other characters as bytes; with --normalization identity any text comes back byte for byte",
    )
    text.add_argument(
        "--fit-characters",
        type=int,
        default=20_000_000,
        metavar="N",
        help="fit the vocabulary on about so many characters of train, drawn by chance (default 20,000,000; words are "
        "counted in all of it)",
    )
    midi = kind("midi", "a folder of MIDI files")
    midi.add_argument(
        "--kind",
        choices=("melody", "drums", "trio"),
        default="melody",
        dest="part",
        help="what windows hold: a melody (default), drums, or a melody, a bass and drums that play together",
    )
    midi.add_argument("--bars", type=int, default=2, help="of a window (default 2)")
    midi.add_argument(
        "--meter",
        choices=("strict", "any", "folded"),
        default="strict",
        help="4/4, 2/2, 2/4 only (default), each metre in bars of its own, or 4/4 whatever is written",
    )
    midi.add_argument("--min-notes", type=int, help="of a window (default 3)")
    midi.add_argument("--steps-per-quarter", type=int, choices=(4, 12), default=4, help="12 has steps for triplets")
    midi.add_argument(
        "--tracks",
        metavar="WORDS",
        help="names or programs between commas, as MELODY,0-31 (default all but drums); with the word skyline they "
        "become one line of the highest notes",
    )
    midi.add_argument("--gap-bars", type=float, default=1, metavar="N", help="of silence end a melody (default 1)")
    midi.add_argument("--split-on-tempo", action="store_true", help="a change of tempo ends a melody, too")
    midi.add_argument("--compat", choices=("magenta",), help="the windows that Magenta's MusicVAE would cut")
    midi.add_argument(
        "--max-bent",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="warn when more onsets than these lie off the grid (default 0.1)",
    )
    midi.add_argument(
        "--reader",
        choices=("pretty_midi", "symusic"),
        default="pretty_midi",
        help='symusic is faster by far (pip install "seqvae[fast]")',
    )
    image = kind("image", "a folder of pictures (its sub-folders are labels), an idx file beside its labels, or .npz")
    image.add_argument(
        "--size",
        help="64 or WIDTHxHEIGHT: pictures are cut to its proportions about their centre, then resized (default 64; of "
        "arrays, as they are)",
    )
    image.add_argument("--channels", type=int, choices=(1, 3), help="1 is grey (default 3; of arrays, as they are)")
    image.add_argument("--labels", type=Path, metavar="FILE.csv", help="a picture and its label a row (CSV or TSV)")
    image.add_argument("--file-column", metavar="NAME", help="the pictures' column in FILE.csv (default the first)")
    image.add_argument("--label-column", metavar="NAME", help="the labels' column in FILE.csv (default the second)")


def _prepare(options: argparse.Namespace) -> Report:
    """Call the builder of a kind with the options that are parameters of its own."""
    from seqvae.data.image import prepare_image
    from seqvae.data.midi import prepare_midi
    from seqvae.data.text import prepare_text

    builders: dict[str, Callable[..., Report]] = {"text": prepare_text, "midi": prepare_midi, "image": prepare_image}
    builder = builders[options.kind]
    names = inspect.signature(builder).parameters
    return builder(**{name: value for name, value in vars(options).items() if name in names})
