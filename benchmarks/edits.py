"""What edits with attribute vectors do, as a classifier sees them.

    python -m benchmarks.edits runs/fashion --pairs t-shirt:dress sneaker:"ankle boot" --orthogonal-to brightness

A small convolutional classifier learns the labels from the dataset's training pictures. For each pair A:B the vector
from the mean posterior mean of A to that of B is made of training pictures, and test pictures of A are decoded from
posterior mean + strength * vector. The table, Markdown on standard output, says how often the classifier calls the
result B, A or something else, with the standard error over pictures, and what else became of the picture:

    distance   root of the mean squared difference of pixels (0 to 1) from the reconstruction, strength 0
    kept       cosine between the latent before, and that of the edited picture encoded again, less strength * vector:
               1 if the edit moved nothing but the attribute (at strength 0 the cost of one decoding and encoding)
    NAME       with --orthogonal-to NAME, rows without and with that attribute's own direction taken out of the vector,
               and the mean change of the attribute from the reconstructions
    C:D        the same with --orthogonal-to C:D: the direction is the vector of that pair, and what changes is the
               classifier's log-odds of D against C, in nats
"""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import cli
from seqvae import latent
from seqvae.data.dataset import WindowDataset, read_manifest, spread
from seqvae.data.image import PixelCodec
from seqvae.harness.config import Trained
from seqvae.harness.scoring import open_split

STRENGTHS = (0.5, 1.0, 1.5, 2.0)
BATCH = 128


class Quality(NamedTuple):
    """What edits should leave alone: an attribute of the codec, or with `labels` the log-odds of the second."""

    name: str
    labels: tuple[int, int] | None = None

    def direction(self, trained: Trained, train: WindowDataset, limit: int) -> Tensor:
        """Return the vector along which it grows. Raises ValueError for an attribute that there is not."""
        if self.labels is not None:
            return direction(trained, train, self.labels, limit)
        everything = [train[place] for place in spread(range(len(train)), 4 * limit)]
        return latent.named_attributes(trained.vae, trained.codec, everything, [self.name])[self.name]

    def mean(self, trained: Trained, model: nn.Module, decoded: Sequence[Tensor]) -> float:
        """Return how much of it the pictures have."""
        if self.labels is None:
            return fmean(trained.codec.attributes(window)[self.name] for window in decoded)
        source, target = logits_of(model, pixels_of(trained, decoded)).mean(0)[[*self.labels]].tolist()
        return float(target - source)


class Edit(NamedTuple):
    """Test pictures of one label on their way to another."""

    labels: tuple[int, int]
    windows: list[Tensor]
    vectors: dict[str, Tensor]  # by what was taken out of them


class Edited(NamedTuple):
    """What became of the pictures of A at one strength: shares, and means over pictures."""

    target: float
    source: float
    other: float
    distance: float
    kept: float
    change: float | None  # of the quality to leave alone


class Classifier(nn.Module):
    """Pixels [batch channels height width], uint8 or floats in [0, 1] -> logits of the labels."""

    def __init__(self, channels: int, labels: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Dropout(0.25),
            nn.Linear(64 * 16, labels),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.features(pixels if pixels.is_floating_point() else pixels.float() / 255)
        return logits


def pixels_of(trained: Trained, windows: Sequence[Tensor]) -> Tensor:
    """Return decoded windows as brightness in [0, 1]."""
    assert isinstance(trained.codec, PixelCodec)
    return torch.stack([trained.codec.intensities(window) for window in windows])


def train_classifier(pixels: Tensor, labels: Tensor, count: int, epochs: int, seed: int) -> Classifier:
    """Return a classifier trained for so many epochs, its learning rate falling to nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Classifier(pixels.shape[1], count)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        steps = epochs * -(-len(pixels) // BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
        for _ in range(epochs):
            for rows in torch.randperm(len(pixels)).split(BATCH):
                loss = F.cross_entropy(model(pixels[rows]), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return model.eval()


@torch.no_grad()
def logits_of(model: nn.Module, pixels: Tensor) -> Tensor:
    """Return the logits [pictures labels]."""
    return torch.cat([model(part) for part in pixels.split(1024)])


def classify(model: nn.Module, pixels: Tensor) -> Tensor:
    """Return the label of each picture."""
    return logits_of(model, pixels).argmax(1)


def measure(
    trained: Trained,
    model: nn.Module,
    windows: Sequence[Tensor],
    labels: tuple[int, int],
    vector: Tensor,
    strengths: Sequence[float],
    quality: Quality | None = None,
) -> Iterator[Edited]:
    """Yield what becomes of windows of the first label on their way to the second, for each strength."""
    vae, codec = trained.vae, trained.codec
    z = latent.encode(vae, codec, windows)
    step = vector.to(z)
    before = latent.decode(vae, z)
    for strength in strengths:
        after = latent.decode(vae, z + strength * step)
        found = classify(model, pixels_of(trained, after))
        errors = (pixels_of(trained, after) - pixels_of(trained, before)).flatten(1).square().mean(1)
        again = latent.encode(vae, codec, [codec.windows(codec.join([window]))[0] for window in after])
        source, target = (float((found == label).float().mean()) for label in labels)
        yield Edited(
            target=target,
            source=source,
            other=float(torch.isin(found, torch.tensor(labels), invert=True).float().mean()),
            distance=float(errors.sqrt().mean()),
            kept=float(F.cosine_similarity(again - strength * step, z).mean()),
            change=None
            if quality is None
            else quality.mean(trained, model, after) - quality.mean(trained, model, before),
        )


def planned(
    trained: Trained,
    train: WindowDataset,
    test: WindowDataset,
    pairs: Sequence[tuple[int, int]],
    n: int,
    limit: int,
    quality: Quality | None = None,
) -> list[Edit]:
    """Return the edit of each pair of labels. Raises ValueError for an attribute that there is not."""
    others = [] if quality is None else [quality.direction(trained, train, limit)]
    edits = []
    for pair in pairs:
        vectors = {"plain": direction(trained, train, pair, limit)}
        if quality is not None:
            vectors[f"without {quality.name}"] = latent.orthogonalize(vectors["plain"], others).float()
        edits.append(Edit(pair, [test[place] for place in spread(labelled(test, pair[0]), n)], vectors))
    return edits


def direction(trained: Trained, train: WindowDataset, labels: tuple[int, int], limit: int) -> Tensor:
    """Return the vector from the mean posterior mean of one label to that of another."""
    lacking, having = ([train[place] for place in spread(labelled(train, label), limit)] for label in labels)
    return latent.attribute(trained.vae, trained.codec, having, lacking)


def table(
    trained: Trained, model: nn.Module, edits: Sequence[Edit], names: Sequence[str], quality: Quality | None = None
) -> Iterator[str]:
    """Yield the lines of the table."""
    heads = ["A -> B", "vector", "strength", "called B", "called A", "other", "distance", "kept"]
    heads += [] if quality is None else [quality.name]
    yield f"| {' | '.join(heads)} |"
    yield f"|---|---|{'--:|' * (len(heads) - 2)}"
    for edit in edits:
        pair = " -> ".join(names[label] for label in edit.labels)
        vectors = [("none", edit.vectors["plain"], (0.0,)), *((*one, STRENGTHS) for one in edit.vectors.items())]
        for kind, vector, strengths in vectors:
            rows = measure(trained, model, edit.windows, edit.labels, vector, strengths, quality)
            for strength, row in zip(strengths, rows, strict=True):
                cells = [pair, kind, f"{strength:g}"]
                cells += [percent(share, len(edit.windows)) for share in (row.target, row.source, row.other)]
                cells += [f"{row.distance:.3f}", f"{row.kept:.3f}"]
                cells += [] if row.change is None else [f"{row.change:+.3f}"]
                yield f"| {' | '.join(cells)} |"


def percent(share: float, n: int) -> str:
    """Return a share of n pictures in percent with its standard error, sqrt(p (1 - p) / n)."""
    return f"{100 * share:.1f} +- {100 * math.sqrt(share * (1 - share) / n):.1f} %"


def labelled(dataset: WindowDataset, label: int) -> list[int]:
    """Return the places of a label's windows."""
    places: list[int] = (dataset.column("label") == label).nonzero()[0].tolist()
    if not places:
        raise ValueError(f"{dataset.root} has no windows of label {label} in its {dataset.split} split")
    return places


def parse_pair(pair: str, names: Sequence[str]) -> tuple[int, int]:
    """Return the two labels of A:B. Raises ValueError for names that the dataset does not have, or one name twice."""
    a, _, b = pair.partition(":")
    if a not in names or b not in names or a == b:
        raise ValueError(f"a pair is A:B, two of {', '.join(names)}, got {pair!r}")
    return names.index(a), names.index(b)


def bench(options: argparse.Namespace) -> None:
    """Print the table of a checkpoint; all that can be refused is refused before the classifier is trained."""
    cli.check_positive(options, "n", "limit", "epochs")
    trained = cli.load_run(options.checkpoint, PixelCodec, "pictures")
    root = options.data or Path(trained.config["data"]["root"])
    train, test = (open_split(root, split, trained.config["data"]["fingerprint"]) for split in ("train", "test"))
    names = read_manifest(root)["options"].get("label_names") or []
    if not names:
        raise ValueError(f"{root} has no labels to learn and to edit")
    pairs = [parse_pair(pair, names) for pair in options.pairs]
    labels = [torch.from_numpy(split.column("label")).long() for split in (train, test)]
    if min(int(column.min()) for column in labels) < 0:
        raise ValueError(f"{root} has pictures without a label")
    quality: Quality | None = None
    if (name := options.orthogonal_to) is not None:
        quality = Quality(name, parse_pair(name, names) if ":" in name else None)
    edits = planned(trained, train, test, pairs, options.n, options.limit, quality)
    pixels = [torch.stack([split[place] for place in range(len(split))]) for split in (train, test)]
    model = train_classifier(pixels[0], labels[0], len(names), options.epochs, options.seed)
    right = float((classify(model, pixels[1]) == labels[1]).float().mean())
    print(
        f"The classifier ({options.epochs} epochs, seed {options.seed}) is right on {percent(right, len(test))} of "
        f"{len(test):,} test pictures.\n"
    )
    for line in table(trained, model, edits, names, quality):
        print(line, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.parser("edits", __doc__)
    parser.add_argument("checkpoint", metavar="CKPT", help="a checkpoint, or a run directory: its best")
    parser.add_argument("--pairs", nargs="+", metavar="A:B", required=True, help="labels: from, and to")
    parser.add_argument("--orthogonal-to", metavar="NAME", help="leave an attribute such as brightness alone, or C:D")
    parser.add_argument("-n", type=int, default=500, help="test pictures of each A (default 500)")
    parser.add_argument("--limit", type=int, default=1000, help="training pictures a label in a vector (default 1000)")
    parser.add_argument("--epochs", type=int, default=5, help="of the classifier (default 5)")
    parser.add_argument("--seed", type=int, default=0, help="of the classifier")
    parser.add_argument("--data", type=Path, metavar="ROOT", help="the dataset, if it has moved")
    return cli.run(parser, bench, argv)


if __name__ == "__main__":
    sys.exit(main())
