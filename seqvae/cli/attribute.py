"""The command `attribute`: directions in latent space along which a quality grows, and what they do to each other."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from seqvae.cli.arguments import INPUT, Commands, add_command, add_data, open_data, open_latent
from seqvae.cli.inputs import expand_all, read_set
from seqvae.cli.writing import write_whole

if TYPE_CHECKING:
    from torch import Tensor

    from seqvae.harness.config import Trained
    from seqvae.latent.attributes import AttributeTable

COUNT = 256


def add(commands: Commands) -> None:
    """Add the command."""
    attribute = add_command(
        commands, "attribute", "the direction from items without a quality to items with it", _attribute
    )
    for name, dest in (("with", "having"), ("without", "lacking")):
        attribute.add_argument(f"--{name}", dest=dest, nargs="+", metavar="INPUT", help=INPUT)
    attribute.add_argument(
        "--by",
        metavar="NAME",
        help="instead: from the quarter of the training windows with the least of a named attribute to that with the "
        "most (note_density, c_diatonic, ... of melodies, length of text, brightness and contrast of images)",
    )
    attribute.add_argument(
        "--table",
        action="store_true",
        help="instead: how each named attribute changes under the vector of each; -o FILE.png draws it",
    )
    attribute.add_argument(
        "-n", type=int, default=COUNT, help=f"of --table: windows of the test split that are moved (default {COUNT})"
    )
    attribute.add_argument("--strength", type=float, default=1.0, help="of --table: of each vector (default 1)")
    attribute.add_argument("--json", action="store_true", help="of --table: print JSON instead")
    attribute.add_argument(
        "--orthogonal-to", nargs="+", type=Path, default=[], metavar="V", help="attribute files to leave alone"
    )
    attribute.add_argument(
        "--limit", type=int, default=1000, metavar="N", help="of each set use N items, evenly spread (default 1000)"
    )
    add_data(attribute, "the dataset of test:17, --by and --table, if it has moved")
    attribute.add_argument("-o", "--output", type=Path, metavar="OUT", help="v.safetensors")


def _attribute(options: argparse.Namespace) -> None:
    sets = [options.having, options.lacking]
    ways = [options.table, options.by is not None, sets != [None, None]]
    if sum(ways) != 1 or (None in sets) != (sets == [None, None]):
        raise ValueError("one of --with INPUT --without INPUT, --by NAME or --table is wanted")
    _refuse_others(options)
    if options.table:
        _table(options, open_latent(options))
        return
    if options.output is None:
        raise ValueError("-o OUT is needed: a file for the vector")
    _vector(options, open_latent(options))


def _refuse_others(options: argparse.Namespace) -> None:
    """Raise ValueError for options that would do nothing."""
    of_table = {"-n": options.n != COUNT, "--strength": options.strength != 1, "--json": options.json}
    idle = {"--orthogonal-to": bool(options.orthogonal_to)} if options.table else of_table
    for name, given in idle.items():
        if given:
            raise ValueError(f"{name} is {'not for' if options.table else 'for'} --table; leave it out")


def _vector(options: argparse.Namespace, trained: Trained) -> None:
    from seqvae import latent
    from seqvae.harness.scores import weights_digest
    from seqvae.harness.vectors import load_vector, pack_vector

    weights = weights_digest(trained.path)
    others = [load_vector(path, weights, trained.vae.latent_dim) for path in options.orthogonal_to]
    facts: dict[str, object] = {"orthogonal_to": [path.name for path in options.orthogonal_to]}
    used = []
    if options.by is not None:
        windows = _spread_windows(options, trained, "train", 4 * _limit(options))
        (found,) = latent.named_attributes(trained.vae, trained.codec, windows, [options.by]).values()
        vector = latent.orthogonalize(found, others).float()
        facts |= {"by": options.by, "windows": len(windows)}
        used.append(f"{options.by}: quartiles of {len(windows):,} training windows")
    else:
        from seqvae.data.dataset import spread

        limit, sets = _limit(options), []
        for name, sources in (("with", options.having), ("without", options.lacking)):
            named = expand_all(options, trained, sources)
            read = read_set(spread(named, limit), name)
            windows = [window for _, part in read for window in part]
            used.append(f"{name}: {len(read):,} of {len(named):,} items used, {len(windows):,} windows")
            sets.append(windows)
            facts |= {name: sources, f"{name}_items": len(read), f"{name}_windows": len(windows)}
        vector = latent.attribute(trained.vae, trained.codec, sets[0], sets[1], others)
    if not vector.any():
        raise ValueError("the items with the attribute have the same mean latent as those without it")
    write_whole(options.output, pack_vector(vector, weights, facts))
    print(*used, f"a vector of length {vector.norm():.3f} written to {options.output}", sep="\n", file=sys.stderr)


def _limit(options: argparse.Namespace) -> int:
    if options.limit < 1:
        raise ValueError(f"limit must be positive, got {options.limit}")
    return int(options.limit)


def _spread_windows(options: argparse.Namespace, trained: Trained, split: str, most: int) -> list[Tensor]:
    """Return at most so many windows of a split, spread evenly over it."""
    from seqvae.data.dataset import spread

    dataset = open_data(options, trained, split)
    return [dataset[place] for place in spread(range(len(dataset)), most)]


def _table(options: argparse.Namespace, trained: Trained) -> None:
    from seqvae import latent
    from seqvae.harness import plots

    if options.n < 1:
        raise ValueError(f"n must be positive, got {options.n}")
    if not math.isfinite(options.strength):
        raise ValueError(f"strength must be finite, got {options.strength}")
    if options.output is not None and options.output.suffix != ".png":
        raise ValueError(f"-o of --table is a picture, FILE.png, got {options.output}")
    if options.output is not None:
        plots.require()
    train = _spread_windows(options, trained, "train", 4 * _limit(options))
    vectors = latent.named_attributes(trained.vae, trained.codec, train)
    if not vectors:
        raise ValueError(f"the {type(trained.codec).__name__} has no attributes that differ between training windows")
    moved = _spread_windows(options, trained, "test", options.n)
    table = latent.attribute_table(trained.vae, trained.codec, moved, vectors, options.strength)
    if options.json:
        facts = {"windows": len(moved), "strength": options.strength, "training_windows": len(train)}
        found = {**table._asdict(), "percent": table.percent()}
        print(json.dumps({"checkpoint": str(trained.path), **facts, **found}, indent=1))
    else:
        told = f"{len(moved):,} test windows moved by strength {options.strength:g}"
        print(f"change in percent (columns) under each vector (rows); {told}")
        print(*_lines(table), sep="\n")
    if options.output is not None:
        write_whole(options.output, plots.png(plots.table(table.percent())))
        print(f"drawn to {options.output}", file=sys.stderr)


def _lines(table: AttributeTable) -> Sequence[str]:
    wide = max(map(len, ["reconstructions", *table.before])) + 2
    names = list(table.before)

    def line(head: str, cells: Sequence[str]) -> str:
        return f"{head:<{wide}}" + "".join(f"{cell:>{wide}}" for cell in cells)

    rows = [
        line(vector, ["-" if change is None else f"{change:+.1f}" for change in changes.values()])
        for vector, changes in table.percent().items()
    ]
    return [line("", names), *rows, line("reconstructions", [f"{table.before[name]:.4g}" for name in names])]
