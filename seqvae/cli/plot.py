"""The command `plot`: pictures that show what a latent space is."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from seqvae.cli.arguments import (
    Commands,
    add_command,
    add_data,
    add_decoding,
    add_law,
    law,
    open_checkpoint,
    open_data,
    open_latent,
    sampling_strategy,
    seed,
    strategy,
)
from seqvae.cli.inputs import expand_all, expand_one, read_set
from seqvae.cli.writing import check_view, write_view, write_whole

if TYPE_CHECKING:
    from torch import Tensor

    from seqvae.data.dataset import WindowDataset
    from seqvae.evaluation import Use
    from seqvae.gaussian import DiagonalGaussian
    from seqvae.harness.config import Trained
    from seqvae.priors import PriorDistribution

log = logging.getLogger(__name__)

LOOKED_AT = 2000  # windows that tell the order of dimensions
COMPARED_AT_ONCE = 4096  # training pictures as floating numbers in memory
DECODING = frozenset({"temperature", "top-k", "top-p", "beam", "length-penalty"})


class Kind(NamedTuple):
    """A picture: what draws it, which options it has besides -o, and how many things -n shows by default."""

    draw: Callable[[argparse.Namespace], None]
    options: frozenset[str]
    n: int


def add(commands: Commands) -> None:
    """Add the command."""
    plot = add_command(commands, "plot", "a picture of what a latent space is", _plot, nargs="+")
    plot.add_argument(
        "kind",
        metavar="KIND",
        choices=list(KINDS),
        help="reconstructions below their originals; samples; nearest: samples above the training pictures that are "
        "nearest pixel by pixel; manifold: decodings at quantiles of the prior (or --from aggregate) in two "
        "dimensions; traversals: a row a dimension, the most used first; scatter: posterior means by label, of "
        "several checkpoints side by side; prior: the aggregate posterior against the prior",
    )
    numbers = ", ".join(f"{kind.n} of {name}" for name, kind in KINDS.items())
    plot.add_argument(
        "-n",
        type=int,
        help=f"how many items, dimensions or windows, or of manifold the side of its grid (default {numbers})",
    )
    plot.add_argument("-k", type=int, help="of nearest: training pictures below each sample (default 3)")
    plot.add_argument("--inputs", nargs="+", metavar="INPUT", help="reconstructions: of these; traversals: about this")
    plot.add_argument(
        "--split", choices=("train", "valid", "test"), help="whose windows are encoded, evenly spread (default test)"
    )
    plot.add_argument(
        "--range",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="of traversals (default -3 3): values of N(0, I), and those quantiles of any other prior or aggregate",
    )
    plot.add_argument("--steps", type=int, help="of traversals: columns (default 7)")
    plot.add_argument(
        "--principal", action="store_true", default=None, help="scatter: by the first two principal components"
    )
    add_law(plot)
    add_decoding(plot, "the most likely item, but samples as in `seqvae sample`")
    add_data(plot, "the dataset, if it has moved")
    plot.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="FILE.png, of music also .html and .abc; of sentences FILE.txt or - (default)",
    )


def _plot(options: argparse.Namespace) -> None:
    kind = KINDS[options.kind]
    given = {name.replace("_", "-"): value for name, value in vars(options).items()}
    given["from"] = None if options.law == "prior" else options.law
    for name in sorted({name for one in KINDS.values() for name in one.options}):
        if given[name] is not None and name not in kind.options:
            able = " and ".join(other for other, one in KINDS.items() if name in one.options)
            raise ValueError(f"--{name} is for {able}, not for {options.kind}")
    if len(options.checkpoint) > 1 and options.kind != "scatter":
        raise ValueError(f"{options.kind} shows one checkpoint, got {len(options.checkpoint)}; scatter takes several")
    options.n = kind.n if options.n is None else options.n
    if options.n < 1:
        raise ValueError(f"n must be positive, got {options.n}")
    kind.draw(options)


def _reconstructions(options: argparse.Namespace) -> None:
    from seqvae import latent
    from seqvae.data.dataset import spread

    trained = _open(options)
    check_view(trained.codec, options.output)
    if options.inputs and options.split:
        raise ValueError("--inputs says which items are shown; leave out --split")
    named = expand_all(options, trained, options.inputs or [f"{options.split or 'test'}:all"])
    read = read_set(spread(named, options.n), "INPUT")
    truth, names = [one.item() for one, _ in read], [one.caption for one, _ in read]
    found = latent.reconstruct(trained.vae, trained.codec, truth, strategy(options))
    captions = [*names, *(f"{name} again" for name in names)]
    write_view(trained.codec, options.output, [*truth, *found], captions, len(truth))


def _samples(options: argparse.Namespace) -> None:
    import math

    from seqvae import latent

    trained = _open(options, latents=False)
    check_view(trained.codec, options.output)
    windows = latent.stream(trained.vae, options.n, sampling_strategy(options, trained), law=law(options, trained))
    items = [trained.codec.join([window]) for window in windows]
    captions = [f"sample {number}" for number in range(1, len(items) + 1)]
    write_view(trained.codec, options.output, items, captions, math.ceil(math.sqrt(len(items))))


def _nearest(options: argparse.Namespace) -> None:
    import torch

    from seqvae import latent
    from seqvae.data.dataset import spread
    from seqvae.data.image import PixelCodec

    k = 3 if options.k is None else options.k
    trained = _open(options, latents=False)
    codec = trained.codec
    if not isinstance(codec, PixelCodec):
        raise ValueError(f"nearest compares pixels; {trained.path} has none (`seqvae neighbors` compares latents)")
    check_view(codec, options.output)
    train, test = (open_data(options, trained, split) for split in ("train", "test"))
    known = torch.stack([train[place] for place in range(len(train))])
    unit = 255 * known[0].numel() ** 0.5  # of the distance between white and black
    samples = list(
        latent.stream(trained.vae, options.n, sampling_strategy(options, trained), law=law(options, trained))
    )
    queries = torch.stack([codec.intensities(one).cpu() for one in samples]).flatten(1) * 255
    found = latent.nearest(queries, known.flatten(1), k, chunk=COMPARED_AT_ONCE)
    real = torch.stack([test[place] for place in spread(range(len(test)), options.n)]).flatten(1).float()
    usual = latent.nearest(real, known.flatten(1), 1, chunk=COMPARED_AT_ONCE)
    log.info(
        "root mean squared difference from the nearest training picture, median: samples %.3f, test pictures %.3f",
        *(float(one.distance[:, 0].median()) / unit for one in (found, usual)),
    )
    rows = found.index.T.flatten().tolist()
    items = [codec.join([window]) for window in (*samples, *(known[place] for place in rows))]
    captions = [*(f"sample {number}" for number in range(1, options.n + 1)), *(f"train:{place}" for place in rows)]
    write_view(codec, options.output, items, captions, options.n)


def _manifold(options: argparse.Namespace) -> None:
    from seqvae import latent, traversals

    trained = _open(options)
    check_view(trained.codec, options.output)
    shown = law(options, trained) or _prior(trained)
    dimensions = 0, 1
    if trained.vae.latent_dim != 2:
        use = _look(options, trained, LOOKED_AT).use
        dimensions = traversals.two_of(use.amount)
        log.info("dimensions %d (across) and %d (upwards) have the largest %s", *dimensions, use.measure)
    elif options.split:
        raise ValueError("--split is for a manifold of more than two dimensions, this model has 2; leave it out")
    z = traversals.quantile_grid(shown, dimensions, options.n)
    items = [trained.codec.join([window]) for window in latent.decode(trained.vae, z, strategy(options))]
    captions = [", ".join(f"z{d} {z[place, d]:+.2f}" for d in dimensions) for place in range(len(items))]
    write_view(trained.codec, options.output, items, captions, options.n)


def _traversals(options: argparse.Namespace) -> None:
    from seqvae import latent, traversals

    low, high = options.range or (-3.0, 3.0)
    farthest = traversals.FARTHEST
    steps = 7 if options.steps is None else options.steps
    if not -farthest <= low < high <= farthest:
        raise ValueError(
            f"range must go from a number to a larger one, between {-farthest:g} and {farthest:g}, got {low:g} {high:g}"
        )
    if steps < 2:
        raise ValueError(f"steps must be at least 2 (both ends count), got {steps}")
    trained = _open(options)
    codec = trained.codec
    check_view(codec, options.output)
    shown = law(options, trained) or _prior(trained)
    centre = shown.mean
    if options.inputs:
        if len(options.inputs) > 1:
            raise ValueError(f"traversals are about one INPUT, got {len(options.inputs)}")
        windows = expand_one(options, trained, options.inputs[0]).windows()
        if len(windows) > 1:
            raise ValueError(f"traversals are about one window, {options.inputs[0]} has {len(windows)}")
        centre = latent.encode(trained.vae, codec, windows)[0]
    use = _look(options, trained, LOOKED_AT).use
    dimensions = traversals.largest(use.amount, options.n)
    if len(dimensions) < options.n:
        log.info("all %d dimensions are drawn: the model has no more", len(dimensions))
    scores = [low + (high - low) * step / (steps - 1) for step in range(steps)]
    z = traversals.traverse(shown, centre, dimensions, scores)
    items = [codec.join([window]) for window in latent.decode(trained.vae, z, strategy(options))]
    rows, columns = [use.label(d) for d in dimensions], [f"{score:+.3g}" for score in scores]
    captions = [f"{row}: {column}" for row in rows for column in columns]
    write_view(codec, options.output, items, captions, steps, rows, columns)


def _scatter(options: argparse.Namespace) -> None:
    from seqvae.data.dataset import read_manifest
    from seqvae.harness import plots

    path = _figure_path(options)
    seed(options)
    clouds: list[plots.Cloud] = []
    label_names: list[str] = []
    for source in options.checkpoint:
        one = argparse.Namespace(**vars(options) | {"checkpoint": source})
        trained = open_latent(one)
        look = _look(one, trained, options.n)
        title, means = Path(source).name or source, look.posterior.mean
        clouds.append(plots.cloud(title, means, look.labels(), look.use, _prior(trained), bool(options.principal)))
        names = read_manifest(look.dataset.root)["options"].get("label_names") or []
        if label_names and names and names != label_names:
            raise ValueError(f"{source} has other labels than {options.checkpoint[0]}: one legend cannot name both")
        label_names = names or label_names
    write_whole(path, plots.png(plots.scatter(clouds, label_names)))
    print(path)


def _against_prior(options: argparse.Namespace) -> None:
    from seqvae.harness import plots

    path = _figure_path(options)
    trained = _open(options)
    look = _look(options, trained, options.n)
    figure = plots.against_prior(look.posterior, look.use, _prior(trained), options.checkpoint)
    write_whole(path, plots.png(figure))
    print(path)


KINDS = {
    "reconstructions": Kind(_reconstructions, DECODING | {"inputs", "split"}, 12),
    "samples": Kind(_samples, DECODING | {"from"}, 64),
    "nearest": Kind(_nearest, DECODING | {"from", "k"}, 12),
    "manifold": Kind(_manifold, DECODING | {"from", "split"}, 15),
    "traversals": Kind(_traversals, DECODING | {"from", "inputs", "split", "range", "steps"}, 10),
    "scatter": Kind(_scatter, frozenset({"split", "principal"}), 5000),
    "prior": Kind(_against_prior, frozenset({"split"}), 5000),
}


class Look(NamedTuple):
    """Windows of a split as the encoder sees them."""

    dataset: WindowDataset
    places: Sequence[int]
    posterior: DiagonalGaussian
    use: Use

    def labels(self) -> Tensor | None:
        """Return a label a window, where the dataset has any."""
        import torch

        try:
            column = self.dataset.column("label")
        except ValueError:
            return None
        return torch.from_numpy(column[list(self.places)])


def _look(options: argparse.Namespace, trained: Trained, most: int) -> Look:
    """Encode at most so many windows, evenly spread over the split."""
    import torch

    from seqvae import latent
    from seqvae.data.dataset import spread
    from seqvae.evaluation import use_of_dimensions

    dataset = open_data(options, trained, options.split or "test")
    places = spread(range(len(dataset)), most)
    posterior = latent.posterior(trained.vae, trained.codec, [dataset[place] for place in places])
    if not trained.noise:
        posterior = posterior.without_noise()
    generator = torch.Generator(posterior.mean.device).manual_seed(options.seed)
    return Look(dataset, places, posterior, use_of_dimensions(posterior, _prior(trained), generator))


def _open(options: argparse.Namespace, latents: bool = True) -> Trained:
    """Return the one checkpoint, and seed what is drawn from now on."""
    (options.checkpoint,) = options.checkpoint
    trained = open_latent(options) if latents else open_checkpoint(options)
    seed(options)
    return trained


def _prior(trained: Trained) -> PriorDistribution:
    import torch

    with torch.no_grad():
        prior: PriorDistribution = trained.vae.prior(trained.vae.encoder)
    return prior


def _figure_path(options: argparse.Namespace) -> Path:
    """Return FILE.png of a figure with axes. Raises ValueError for another one, or without matplotlib."""
    from seqvae.harness import plots

    if options.output is None or not options.output.endswith(".png"):
        raise ValueError(f"-o FILE.png is needed, got {options.output or 'nothing'}")
    plots.require()
    return Path(options.output)
