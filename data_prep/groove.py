"""Drums that people played on an electronic kit (the Groove MIDI Dataset of Gillick et al., 2019) for the drum recipe.

    python -m data_prep.groove groove/ --root data/groove

groove/ is the unpacked dataset (groove-v1.0.0-midionly.zip at magenta.tensorflow.org/datasets/groove, CC BY 4.0). Its
info.csv says which files are train, validation and test, and that split is kept; a split without files is cut out of
train.
"""

import argparse
import csv
import sys
from pathlib import Path

from seqvae.data.midi import prepare_midi
from seqvae.data.preparation import Rejected, hold, printable, refuse_existing

INFO = "info.csv"
SPLITS = {"train": "train", "validation": "valid", "test": "test"}
NOT_THERE = f"named in {INFO}, but not there"


def link_files(groove: Path, folder: Path) -> list[Rejected]:
    """Link every MIDI file that info.csv names into a folder of its split; return those that are not there.

    Raises ValueError for an info.csv that is missing or says something else.
    """
    rejected = []
    for name, split in read_splits(groove / INFO):
        path = groove / name
        if not path.is_file():
            rejected.append(Rejected(printable(name), NOT_THERE))
            continue
        link = folder / split / Path(name).as_posix().replace("/", "-")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)  # of an interrupted run, maybe to a folder that has moved
        link.symlink_to(path.resolve())
    return rejected


def read_splits(info: Path) -> list[tuple[str, str]]:
    """Return each file's name and split. Raises ValueError where info.csv does not say them."""
    try:
        with info.open(encoding="utf-8", newline="") as file:
            rows = [(row["midi_filename"], row["split"]) for row in csv.DictReader(file)]
    except OSError as error:
        raise ValueError(f"{info} cannot be read ({error.strerror}); it comes with the dataset") from None
    except KeyError as error:
        raise ValueError(f"{info} has no column {error}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{info} is no table ({error})") from None
    for name, split in rows:
        if split not in SPLITS:
            raise ValueError(f"{info}: the split of {name} must be one of {', '.join(SPLITS)}, got {split!r}")
    return [(name, SPLITS[split]) for name, split in rows]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data_prep.groove", description=__doc__.splitlines()[0])
    parser.add_argument("groove", type=Path, metavar="FOLDER", help=f"the unpacked dataset, with its {INFO}")
    parser.add_argument("--root", type=Path, default=Path("data/groove"), help="the folder to make")
    parser.add_argument("--bars", type=int, default=2, help="length of a window")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=-1, help="processes; -1 for one a core")
    options = parser.parse_args(argv)
    root: Path = options.root
    try:
        refuse_existing(root)
        with hold(root):
            rejected = link_files(options.groove, root / "midi")
            report = prepare_midi(
                root / "midi",
                root,
                part="drums",
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
