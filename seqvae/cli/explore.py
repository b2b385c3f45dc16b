"""Commands that look around in latent space: edit, similar, neighbors, impute."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from seqvae.cli.arguments import (
    Commands,
    add_command,
    add_decoding,
    add_inputs,
    add_output,
    add_seed,
    open_latent,
    seed,
    strategy,
)
from seqvae.cli.inputs import Input, expand_all, expand_one, read_set, window_names
from seqvae.cli.writing import write_items, write_lines

if TYPE_CHECKING:
    from torch import Tensor

    from seqvae.harness.config import Trained

ENCODED_AT_ONCE = 4096  # items of a corpus in memory


def add(commands: Commands) -> None:
    """Add the commands of this file."""
    edit = add_command(commands, "edit", "items with more or less of an attribute", _edit)
    add_inputs(edit)
    edit.add_argument("--attribute", type=Path, required=True, metavar="V", help="a file of `seqvae attribute`")
    edit.add_argument(
        "--strength",
        type=float,
        nargs="+",
        default=[1.0],
        metavar="S",
        help="0 reconstructs, 1 (default) goes as far as from the mean without to the mean with; several: a row each",
    )
    add_decoding(edit, "the most likely item")
    add_output(edit)

    similar = add_command(commands, "similar", "variations of an item", _similar)
    add_inputs(similar, "input")
    similar.add_argument("-n", type=int, default=8, help="how many (default 8)")
    similar.add_argument(
        "--strength", type=float, default=0.3, metavar="S", help="of the noise: 0 reconstructs, 1 is all of it"
    )
    similar.add_argument(
        "--noise",
        choices=("prior", "posterior"),
        default="prior",
        help="as wide as the prior in each dimension (default), or as the item's posterior",
    )
    add_decoding(similar, "the most likely item")
    add_output(similar)

    neighbors = add_command(commands, "neighbors", "the items of a corpus that are nearest in latent space", _neighbors)
    add_inputs(neighbors)
    neighbors.add_argument(
        "--corpus",
        nargs="+",
        default=["train:all"],
        metavar="INPUT",
        help="what to search, as INPUT (default train:all), a dataset's root for its train split, or latents.npy",
    )
    neighbors.add_argument("-k", type=int, default=5, help="how many of each (default 5)")
    neighbors.add_argument("--metric", choices=("euclidean", "cosine"), default="euclidean")

    impute = add_command(commands, "impute", "the gaps of a sentence filled", _impute)
    impute.add_argument(
        "inputs", metavar="SENTENCE", nargs="+", help="with gaps: 'God made ___.'; @FILE has one a line"
    )
    impute.add_argument("--marker", help="what marks a gap (default ___ or [...])")
    impute.add_argument("--gap-length", type=int, default=3, metavar="N", help="most tokens in a gap (default 3)")
    impute.add_argument("-n", type=int, default=5, help="how many fillings, the likeliest first (default 5)")
    impute.add_argument(
        "--method",
        choices=("resample", "optimise"),
        default="resample",
        help="draw z and the fillings in turn given what is known (default), or climb to the likeliest",
    )
    impute.add_argument("--steps", type=int, default=15, help="of the search (default 15)")
    add_seed(impute)
    add_output(impute)


def _edit(options: argparse.Namespace) -> None:
    import math

    from seqvae import latent
    from seqvae.harness.scores import weights_digest
    from seqvae.harness.vectors import load_vector

    if not all(math.isfinite(strength) for strength in options.strength):
        raise ValueError(f"strength must be finite, got {' '.join(map(str, options.strength))}")
    trained = open_latent(options)
    vector = load_vector(options.attribute, weights_digest(trained.path), trained.vae.latent_dim)
    named = [one for one, _ in read_set(expand_all(options, trained, options.inputs), "INPUT")]
    originals, names = [one.item() for one in named], [one.caption for one in named]
    seed(options)
    items = latent.edit(trained.vae, trained.codec, originals, vector, options.strength, strategy(options))
    columns = len(options.strength) if len(options.strength) > 1 else None
    captions = [f"{name}, strength {strength:g}" for name in names for strength in options.strength]
    write_items(trained, options, "edit", items, len(items), originals, columns, captions=captions, names=names)


def _similar(options: argparse.Namespace) -> None:
    from seqvae import latent

    trained = open_latent(options)
    if options.noise == "posterior" and not trained.noise:
        raise ValueError(f"{options.checkpoint} was trained without noise: its posteriors have no width; --noise prior")
    named = expand_one(options, trained, options.input)
    original = named.item()
    seed(options)
    items = latent.similar(
        trained.vae, trained.codec, original, options.n, options.strength, options.noise, strategy(options)
    )
    captions = [f"variation {number}" for number in range(1, len(items) + 1)]
    write_items(trained, options, "similar", items, len(items), [original], captions=captions, names=[named.caption])


def _neighbors(options: argparse.Namespace) -> None:
    from seqvae import latent

    trained = open_latent(options)
    queries = expand_all(options, trained, options.inputs)
    names, z = _encoded(trained, queries, "INPUT")
    corpus = _corpus(options, trained)
    found = latent.nearest(z, corpus.latents, options.k, options.metric)
    for query, distances, places in zip(names, found.distance.tolist(), found.index.tolist(), strict=True):
        print(query)
        for distance, place in zip(distances, places, strict=True):
            print(f"  {distance:.4f}  {corpus.names[place]}")


def _impute(options: argparse.Namespace) -> None:
    from seqvae import latent

    trained = open_latent(options)
    codec = trained.codec
    items = [one.item() for one in expand_all(options, trained, options.inputs)]
    seed(options)
    lines = []
    for item in items:
        found = latent.impute(
            trained.vae,
            codec,
            item,
            options.n,
            marker=options.marker,
            longest=options.gap_length,
            steps=options.steps,
            method=options.method,
        )
        lines += [f"{one.log_prob:.2f}  {one.item}" for one in found]
    print("log p (nats, importance-weighted) and the sentence:", file=sys.stderr)
    write_lines(lines, options.output)


class _Corpus(NamedTuple):
    """The posterior means of a corpus, and how each is shown."""

    names: list[str]
    latents: Tensor


def _corpus(options: argparse.Namespace, trained: Trained) -> _Corpus:
    from seqvae.data.dataset import MANIFEST

    sources: list[str] = options.corpus
    if len(sources) == 1 and sources[0].endswith(".npy"):
        return _saved(Path(sources[0]), trained.vae.latent_dim)
    if len(sources) == 1 and (Path(sources[0]) / MANIFEST).is_file():
        options.data, sources = Path(sources[0]), ["train:all"]
    named = expand_all(options, trained, sources)
    return _Corpus(*_encoded(trained, named, "corpus"))


def _saved(path: Path, latent_dim: int) -> _Corpus:
    """Return the latents that `seqvae encode` wrote. Raises ValueError for anything else."""
    import numpy as np
    import torch

    try:
        rows = np.load(path, allow_pickle=False)
        names = path.with_suffix(".names.txt").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as latents of `seqvae encode` ({error})") from None
    if not isinstance(rows, np.ndarray) or rows.shape != (len(names), latent_dim) or rows.dtype.kind != "f":
        shape = getattr(rows, "shape", "no array")
        raise ValueError(f"{path} holds {shape}, not {len(names)} named latents of {latent_dim} dimensions")
    return _Corpus(names, torch.from_numpy(rows))


def _encoded(trained: Trained, named: Sequence[Input], what: str) -> tuple[list[str], Tensor]:
    """Return how each window is shown, and the posterior means on the CPU; a part of the items in memory at a time."""
    import torch

    from seqvae import latent

    names: list[str] = []
    latents: list[Tensor] = []
    for start in range(0, len(named), ENCODED_AT_ONCE):
        read = read_set(named[start : start + ENCODED_AT_ONCE], what)
        names += window_names([(_shown(trained, one), windows) for one, windows in read])
        latents.append(latent.encode(trained.vae, trained.codec, [w for _, windows in read for w in windows]).cpu())
    return names, torch.cat(latents)


def _shown(trained: Trained, one: Input) -> str:
    """Return the item's name, and the sentence itself or the file that a dataset's window came from."""
    more = str(one.item()) if trained.codec.suffix is None else one.origin
    return f"{one.name}  {more}" if more not in ("", one.name) else one.name
