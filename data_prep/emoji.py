"""Emoji in colour, 32 x 32 pixels, labelled by Unicode's categories: some 3,700 pictures a set of drawings.

    python -m data_prep.emoji PACKAGE... --root data/emoji

PACKAGE is an unpacked npm package emoji-datasource-google (pictures under Apache 2.0) or emoji-datasource-twitter
(CC BY 4.0) with its emoji.json; several make one dataset. Every variation of an emoji (tones of skin, man and woman,
the direction it looks in, another set's drawing of it) stands on one side of the split.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seqvae.data.dataset import SPLITS
from seqvae.data.image import PixelCodec, prepare_arrays, read_picture
from seqvae.data.preparation import Rejected, complete_splits, hold, key_of, refuse_existing

LIST = "emoji.json"
NOT_THERE = f"named in {LIST}, but not there"
SHARE = 0.1  # of the groups, for valid and for test
TONES = {f"1F3F{tone}" for tone in "BCDEF"}
ALIKE = ("person", "family")  # faces with other hair, couples and families with other members: one group each
DETAILS = TONES | {"FE0F", "200D", "2640", "2642", "27A1"}  # how to show it, joined, woman, man, looking right
PERSONS = {"1F468": "1F9D1", "1F469": "1F9D1"}  # man and woman
PERSONS |= {"1F466": "1F9D2", "1F467": "1F9D2", "1F474": "1F9D3", "1F475": "1F9D3"}  # boy, girl; old man, old woman


class Drawing(NamedTuple):
    """One picture file of a package."""

    name: str
    path: Path
    label: str
    group: str


def drawings(package: Path) -> Iterator[Drawing]:
    """Yield every emoji and its variations that a package draws. Raises ValueError for a folder that is no package."""
    folders = [path for path in sorted(package.glob("img/*/64")) if path.is_dir()]
    if not folders:
        raise ValueError(f"{package} holds no img/VENDOR/64; it must be an unpacked package emoji-datasource-VENDOR")
    try:
        entries = json.loads((package / LIST).read_text(encoding="utf-8"))
        for folder in folders:
            vendor = folder.parent.name
            for entry in entries:
                for image in images(entry, vendor):
                    yield Drawing(f"{vendor}/{image}", folder / image, entry["category"], group_of(entry))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{package / LIST} is no list of emoji: {error}") from None


def images(entry: dict[str, Any], vendor: str) -> list[str]:
    """Return the file names of an emoji and its variations by a vendor, not those that another one lends it."""
    drawn = [entry, *entry.get("skin_variations", {}).values()]
    return [Path(one["image"]).name for one in drawn if one[f"has_img_{vendor}"]]


def group_of(entry: dict[str, Any]) -> str:
    """Return what an emoji shows, whoever does it and whichever way they look."""
    if entry["subcategory"] in ALIKE:
        return str(entry["subcategory"])
    points = re.split("[- ]", entry["unified"])
    kept = [PERSONS.get(point, point) for point in points if point not in DETAILS]
    return "-".join(kept or points)  # a sign may be an emoji by itself


def joined(groups: Sequence[str], pictures: Sequence[bytes]) -> list[str]:
    """Return the groups, made one wherever they hold the same picture (the flags of some islands and their state)."""
    leads: dict[str, str] = {group: group for group in groups}

    def lead(group: str) -> str:
        while leads[group] != group:
            group = leads[group]
        return group

    first: dict[bytes, str] = {}
    for group, picture in zip(groups, pictures, strict=True):
        leads[lead(group)] = lead(first.setdefault(picture, group))
    return [lead(group) for group in groups]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data_prep.emoji", description=__doc__.splitlines()[0])
    parser.add_argument("packages", type=Path, nargs="+", metavar="PACKAGE", help="an unpacked emoji-datasource-VENDOR")
    parser.add_argument("--root", type=Path, default=Path("data/emoji"), help="the folder to make")
    parser.add_argument("--size", type=int, default=32, help="pixels a side (default 32)")
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    options = parser.parse_args(argv)
    try:
        refuse_existing(options.root)
        codec = PixelCodec((3, options.size, options.size))
        with hold(options.root):
            kept, pixels, rejected = [], [], []
            for drawing in (drawing for package in options.packages for drawing in drawings(package)):
                try:
                    (window,) = codec.windows(read_picture(drawing.path))
                    pixels.append(codec.join([window]))
                    kept.append(drawing)
                except ValueError as error:
                    rule = "cannot be read" if drawing.path.is_file() else NOT_THERE
                    rejected.append(Rejected(drawing.name, rule, str(error)))
            groups = joined([drawing.group for drawing in kept], [picture.tobytes() for picture in pixels])
            keys = np.array([key_of(group, options.seed) for group in groups], np.uint64)
            splits = np.full(len(keys), -1, np.int8)
            if kept:  # else the preparation says why there are none
                splits = complete_splits(keys, splits, SHARE)
            labels = sorted({drawing.label for drawing in kept})
            report = prepare_arrays(
                np.array(pixels, np.uint8).reshape(-1, options.size, options.size, 3),
                [SPLITS[split] for split in splits],
                options.root,
                labels=[labels.index(drawing.label) for drawing in kept],
                names=[drawing.name for drawing in kept],
                label_names=labels,
                seed=options.seed,
                earlier=rejected,
            )
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{len(set(groups)):,} groups, split with seed {options.seed}\n{report.table()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
