"""Commands that use a trained model: sample, reconstruct, interpolate, encode."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from seqvae.cli.arguments import (
    Commands,
    add_command,
    add_data,
    add_decoding,
    add_inputs,
    add_law,
    add_output,
    law,
    open_checkpoint,
    open_data,
    open_latent,
    sampling_strategy,
    seed,
    strategy,
)
from seqvae.cli.inputs import expand_all, expand_one, read_set, window_names
from seqvae.cli.writing import write_items, write_lines, write_whole

if TYPE_CHECKING:
    from torch import Tensor

    from seqvae.harness.config import Trained
    from seqvae.latent import Sieve

STEPS = 7
FRAME_SECONDS = 0.15
SHORTEST, LONGEST = 0.02, 60.0  # seconds of a frame that every viewer of GIFs keeps to


def add(commands: Commands) -> None:
    """Add the commands of this file."""
    sample = add_command(commands, "sample", "items drawn from the prior", _sample)
    sample.add_argument("-n", type=int, default=8, help="how many (default 8); they are written as they are drawn")
    add_law(sample)
    long = sample.add_mutually_exclusive_group()
    long.add_argument("--windows", type=int, metavar="N", help="each item of N windows in a row (default 1)")
    long.add_argument("--bars", type=int, metavar="N", help="of music: each item N bars long")
    sample.add_argument(
        "--drift",
        type=float,
        metavar="D",
        help="how far the latent walks from window to window: 0 not at all, 1 each is drawn anew (default 0.5)",
    )
    sample.add_argument("--unique", action="store_true", help="draw again what was drawn before")
    sample.add_argument("--novel", action="store_true", help="draw again what stands in the training data")
    add_data(sample, "the dataset of --novel and --from aggregate, if it has moved")
    add_decoding(sample, "1 for sequences, the expected pixels for images")
    add_output(sample)

    reconstruct = add_command(commands, "reconstruct", "items encoded and decoded again", _reconstruct)
    add_inputs(reconstruct)
    reconstruct.add_argument(
        "--scores",
        action="store_true",
        help="of text: a table with tabs, a line a sentence, of how well it came back, the sentence and what came",
    )
    add_decoding(reconstruct, "the most likely item")
    add_output(reconstruct)

    interpolate = add_command(commands, "interpolate", "items on the way from A to B, or between four", _interpolate)
    add_inputs(interpolate)
    interpolate.add_argument("--steps", type=int, help=f"how many, both ends counted (default {STEPS})")
    interpolate.add_argument(
        "--grid", metavar="ROWSxCOLUMNS", help="between four INPUTs: left and right above, left and right below"
    )
    interpolate.add_argument(
        "--method", choices=("slerp", "lerp"), default="slerp", help="along an arc (default) or a line"
    )
    interpolate.add_argument("--gif", action="store_true", help="of pictures: write interpolation.gif, too")
    interpolate.add_argument(
        "--duration", type=float, metavar="SECONDS", help=f"of --gif: of each picture (default {FRAME_SECONDS})"
    )
    add_decoding(interpolate, "the most likely item")
    add_output(interpolate)

    encode = add_command(commands, "encode", "posterior means as a .npy file, a row a window", _encode)
    add_inputs(encode)
    encode.add_argument(
        "-o", "--output", required=True, metavar="OUT", help="latents.npy; names go to latents.names.txt"
    )


def _sample(options: argparse.Namespace) -> None:
    from seqvae import latent

    trained = open_checkpoint(options)
    seed(options)
    draw = sampling_strategy(options, trained)
    length, drawn = _length(options, trained), law(options, trained)
    if length > 1:
        drift = latent.sampling.DRIFT if options.drift is None else options.drift
        rows = latent.chains(trained.vae, options.n, length, drift, draw, law=drawn)
        write_items(trained, options, "sample", map(trained.codec.join, rows), options.n)
        return
    sieve = _sieve(options, trained) if options.unique or options.novel else None
    windows = latent.stream(trained.vae, options.n, draw, keep=sieve, law=drawn)
    write_items(trained, options, "sample", (trained.codec.join([window]) for window in windows), options.n)
    if sieve is not None:
        dropped = f"dropped {sieve.repeats:,} repeats and {sieve.copies:,} copies of training items"
        short = "" if sieve.passed == options.n else f"; only {sieve.passed:,} of {options.n:,} found"
        print(f"{dropped}{short}", file=sys.stderr)


def _length(options: argparse.Namespace, trained: Trained) -> int:
    """Return of how many windows each item is made.

    Raises:
        ValueError: for a length that the items cannot have, or options that only make sense with others.
    """
    name, asked = ("--windows", options.windows) if options.bars is None else ("--bars", options.bars)
    if asked is None:
        asked = 1
    elif not trained.codec.joins:
        raise ValueError(f"{name}: an item of the {type(trained.codec).__name__} is one window")
    if asked < 1:
        raise ValueError(f"{name} must be positive, got {asked}")
    if options.bars is not None:
        bars = trained.codec.options["bars"]
        if asked % bars:
            raise ValueError(f"--bars must be a multiple of the {bars} bars of a window, got {asked}")
        asked //= bars
    if asked == 1 and options.drift is not None:
        raise ValueError("--drift is between the windows of an item; ask for several with --windows or --bars")
    if asked > 1 and (options.unique or options.novel):
        raise ValueError("--unique and --novel compare single windows; leave out --windows and --bars")
    return int(asked)


def _sieve(options: argparse.Namespace, trained: Trained) -> Sieve:
    from seqvae.latent import Sieve

    if not options.novel:
        return Sieve(trained.codec, unique=options.unique)
    train = open_data(options, trained, "train")
    return Sieve(trained.codec, unique=options.unique, known=(train[place] for place in range(len(train))))


def _reconstruct(options: argparse.Namespace) -> None:
    from seqvae import latent

    trained = open_latent(options)
    if options.scores and trained.codec.suffix is not None:
        raise ValueError("--scores is a table of sentences; items that are files are written beside their originals")
    read = read_set(expand_all(options, trained, options.inputs), "INPUT")
    originals = [one.item() for one, _ in read]
    seed(options)
    if options.scores:
        names = [one.name for one, _ in read]
        write_lines(_scored(trained, names, originals, [window for _, (window,) in read], options), options.output)
        return
    codec, truth = trained.codec, [windows for _, windows in read]
    z = latent.encode(trained.vae, codec, [window for windows in truth for window in windows])
    following = iter(latent.decode(trained.vae, z, strategy(options)))
    found = [list(islice(following, len(windows))) for windows in truth]
    items = [codec.join(windows, like=original) for windows, original in zip(found, originals, strict=True)]
    scores = [codec.score(*pair) for pair in zip(truth, found, strict=True)]
    remarks = ["  ".join(f"{name} {value:.4g}" for name, value in score.items()) for score in scores]
    names = [one.caption for one, _ in read]
    captions = [f"{name} again: {remark}" for name, remark in zip(names, remarks, strict=True)]
    write_items(
        trained,
        options,
        "reconstruction",
        items,
        len(items),
        originals,
        captions=captions,
        names=names,
        remarks=remarks,
    )


def _scored(
    trained: Trained, names: list[str], originals: list[str], windows: list[Tensor], options: argparse.Namespace
) -> Iterator[str]:
    """Return a table of reconstructions: a line that names the columns, then one a sentence."""
    from seqvae import latent

    vae, codec = trained.vae, trained.codec
    z = latent.encode(vae, codec, windows)
    decoded = latent.decode(vae, z, strategy(options))
    scores = [codec.evaluation_score([true], [found]) for true, found in zip(windows, decoded, strict=True)]
    nats = latent.log_likelihood(vae, codec, windows, z).tolist()
    yield "\t".join(["input", *scores[0], "log_likelihood", "sentence", "reconstruction"])
    for name, score, log_likelihood, original, window in zip(names, scores, nats, originals, decoded, strict=True):
        numbers = [f"{value:.4g}" for value in (*score.values(), log_likelihood)]
        texts = [" ".join(text.split()) for text in (name, original, codec.join([window]))]  # no tabs of their own
        yield "\t".join([texts[0], *numbers, *texts[1:]])


def _interpolate(options: argparse.Namespace) -> None:
    from seqvae import latent

    if options.grid is not None and options.steps is not None:
        raise ValueError("--steps is for the way from A to B; the size of a grid is that of --grid")
    if options.gif and options.grid is not None:
        raise ValueError("--gif is of the way from A to B; leave out --grid")
    if options.duration is not None and not options.gif:
        raise ValueError("--duration is for --gif")
    seconds = FRAME_SECONDS if options.duration is None else options.duration
    if not SHORTEST <= seconds <= LONGEST:
        raise ValueError(f"duration must be between {SHORTEST} and {LONGEST} seconds, got {seconds}")
    corners, wanted = (2, "A and B") if options.grid is None else (4, "A and B above, C and D below")
    if len(options.inputs) != corners:
        raise ValueError(f"{corners} INPUTs are wanted ({wanted}), got {len(options.inputs)}")
    rows, columns = (1, 1) if options.grid is None else _size(options.grid)
    trained = open_latent(options)
    named = [expand_one(options, trained, source) for source in options.inputs]
    ends = [one.item() for one in named]
    names = [f"{letter}: {one.caption}" for letter, one in zip("ABCD", named, strict=False)]
    seed(options)
    draw = strategy(options)
    if options.grid is not None:
        items = latent.grid(trained.vae, trained.codec, ends, rows, columns, options.method, draw)
        captions = [f"row {y}, column {x}" for y in range(1, rows + 1) for x in range(1, columns + 1)]
        for place, name in zip((0, columns - 1, -columns, -1), names, strict=True):
            captions[place] += f" ({name})"
        write_items(trained, options, "grid", items, len(items), ends, columns, captions=captions, names=names)
        return
    steps = STEPS if options.steps is None else options.steps
    items = latent.interpolate(trained.vae, trained.codec, ends[0], ends[1], steps, options.method, draw)
    captions = [f"step {step}/{steps}" for step in range(1, steps + 1)]
    frames = trained.codec.frames(items) if options.gif else []
    write_items(trained, options, "interpolation", items, len(items), ends, captions=captions, names=names)
    if options.gif:
        from seqvae.data.image import write_gif

        path = Path(options.output) / "interpolation.gif"
        write_gif(path, frames, seconds)
        print(path)


def _size(grid: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", grid)
    if match is None:
        raise ValueError(f"grid must be ROWSxCOLUMNS such as 5x5, got {grid!r}")
    return int(match[1]), int(match[2])


def _encode(options: argparse.Namespace) -> None:
    import io

    import numpy as np

    from seqvae import latent

    trained = open_latent(options)
    read = [(one.name, windows) for one, windows in read_set(expand_all(options, trained, options.inputs), "INPUT")]
    z = latent.encode(trained.vae, trained.codec, [window for _, windows in read for window in windows])
    output, buffer = Path(options.output), io.BytesIO()
    np.save(buffer, z.cpu().numpy())
    write_whole(output, buffer.getvalue())
    names = "".join(f"{name}\n" for name in window_names(read))
    write_whole(output.with_suffix(".names.txt"), names.encode())
    print(f"{z.shape[0]} x {z.shape[1]} latents written to {output}", file=sys.stderr)
