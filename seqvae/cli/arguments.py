"""The arguments that commands on a checkpoint share: CKPT, INPUT, OUT; how they become a model and items."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from seqvae.data.dataset import WindowDataset
    from seqvae.harness.config import Trained
    from seqvae.priors import PriorDistribution

    Commands: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Commands: TypeAlias = argparse._SubParsersAction

log = logging.getLogger(__name__)

Run: TypeAlias = Callable[[argparse.Namespace], None]

INPUT = (
    "a sentence, @FILE with one a line, or a MIDI or image file or a folder of them; test:17 is window 17 of the test "
    "split, test:label=NAME its windows of one label, test:all the whole split"
)


def add_command(
    commands: Commands, name: str, help: str, run: Run, nargs: str | None = None
) -> argparse.ArgumentParser:
    """Add a command that opens a checkpoint, or with `nargs` several."""
    sub = commands.add_parser(name, help=help, description=help)
    sub.add_argument(
        "checkpoint",
        metavar="CKPT",
        nargs=nargs,
        help="a checkpoint, or a run directory: its best, RUN@last its newest",
    )
    sub.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, mps")
    sub.set_defaults(run=run)
    return sub


def add_inputs(sub: argparse.ArgumentParser, *names: str) -> None:
    """Add INPUTs: one of each name, or without names as many as a person gives."""
    for name in names or ("inputs",):
        sub.add_argument(name, metavar=name.upper(), nargs=None if names else "+", help=INPUT)
    add_data(sub, "the dataset that test:17 means, if it has moved")


def add_data(sub: argparse.ArgumentParser, help: str) -> None:
    """Add --data ROOT."""
    sub.add_argument("--data", type=Path, metavar="ROOT", help=help)


def add_output(sub: argparse.ArgumentParser) -> None:
    """Add -o OUT for items."""
    sub.add_argument(
        "-o", "--output", metavar="OUT", help="a directory for MIDI and images, a file for text (- prints)"
    )


def add_decoding(sub: argparse.ArgumentParser, default: str) -> None:
    """Add how a decoder chooses, and --seed; `default` says what happens without."""
    sub.add_argument(
        "--temperature", type=float, metavar="T", help=f"draw from softmax(logits / T); default: {default}"
    )
    sub.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens")
    sub.add_argument("--top-p", type=float, metavar="P", help="draw from the likeliest tokens that hold probability P")
    sub.add_argument("--beam", type=int, metavar="N", help="draw nothing: the best of a search with N hypotheses")
    sub.add_argument(
        "--length-penalty", type=float, metavar="A", help="of --beam: the best by log p / length ** A (default 0)"
    )
    add_seed(sub)


def add_seed(sub: argparse.ArgumentParser) -> None:
    """Add --seed."""
    sub.add_argument("--seed", type=int, default=0, help="of everything that is drawn (default 0)")


def add_law(sub: argparse.ArgumentParser) -> None:
    """Add --from, where latents are drawn."""
    sub.add_argument(
        "--from",
        dest="law",
        choices=("prior", "aggregate"),
        default="prior",
        help="draw latents from the prior (default), or where the training windows lie: from a mixture fitted to their "
        "posteriors at the end of training",
    )


def law(options: argparse.Namespace, trained: Trained) -> PriorDistribution | None:
    """Return what --from means: None is the prior.

    Raises:
        ValueError: when the checkpoint holds no mixture, and there is no data to fit one to or no latent.
    """
    if options.law == "prior":
        return None
    from seqvae.harness.aggregate import fit_to, read_aggregate

    if trained.vae.latent_dim == 0:
        raise ValueError(f"{options.checkpoint} is a language model, without latents; leave --from aggregate out")
    kept = read_aggregate(trained)
    if kept is not None:
        return kept
    root = options.data or Path(trained.config["data"]["root"])
    if not root.is_dir():
        raise ValueError(
            f"{trained.path} holds no mixture (an earlier version saved it, or its training has not ended), and the "
            f"dataset to fit one to is not at {root}; say where it is with --data ROOT"
        )
    log.info("%s holds no mixture: one is fitted to training windows", trained.path)
    return fit_to(trained, open_data(options, trained, "train"))


def open_checkpoint(options: argparse.Namespace) -> Trained:
    """Return the verified model of CKPT on --device."""
    from seqvae.harness.config import load

    return load(options.checkpoint, options.device)


def open_latent(options: argparse.Namespace) -> Trained:
    """Return the verified model of CKPT for a command that works on latents.

    Raises:
        ValueError: for a language model, which has none.
    """
    trained = open_checkpoint(options)
    if trained.vae.latent_dim == 0:
        raise ValueError(
            f"{options.checkpoint} is a language model, without a latent to {options.command} with; "
            "sample and evaluate take it"
        )
    return trained


def data_root(options: argparse.Namespace, trained: Trained) -> Path:
    """Return where the dataset is: --data, or where it was in training."""
    root = options.data or Path(trained.config["data"]["root"])
    if not root.is_dir():
        raise ValueError(f"the dataset is not at {root}; say where it is with --data ROOT")
    return Path(root)


def open_data(options: argparse.Namespace, trained: Trained, split: str, limit: int | None = None) -> WindowDataset:
    """Return a split of the dataset that the model was trained on, at most its first `limit` windows.

    Raises:
        ValueError: where the dataset is not at --data or where it was in training, or is another one.
    """
    from seqvae.harness.scoring import open_split

    return open_split(data_root(options, trained), split, trained.config["data"]["fingerprint"], limit)


def strategy(options: argparse.Namespace, default: float | None = None) -> Any:
    """Return how tokens are chosen: None is the most likely item.

    Raises:
        ValueError: for options that exclude each other.
    """
    from seqvae.models.decoding import Beam, Temperature, TopK, TopP

    drawing = {"--temperature": options.temperature, "--top-k": options.top_k, "--top-p": options.top_p}
    given = [name for name, value in drawing.items() if value is not None]
    if options.beam is not None:
        if given:
            raise ValueError(f"--beam draws nothing, so {' and '.join(given)} would change nothing; leave out one")
        return Beam(options.beam, options.length_penalty or 0.0)
    if options.length_penalty is not None:
        raise ValueError("--length-penalty compares the hypotheses of a search; it needs --beam N")
    if options.top_k is not None and options.top_p is not None:
        raise ValueError("--top-k and --top-p are two ways to leave out unlikely tokens; choose one")
    temperature = default if options.temperature is None else options.temperature
    if options.top_k is not None:
        return TopK(options.top_k, 1.0 if temperature is None else temperature)
    if options.top_p is not None:
        return TopP(options.top_p, 1.0 if temperature is None else temperature)
    return None if temperature is None else Temperature(temperature)


def sampling_strategy(options: argparse.Namespace, trained: Trained) -> Any:
    """Return how samples are drawn: tokens by their probabilities, pixels as what is expected of them."""
    tokens = "vocab_size" in trained.codec.spec
    return strategy(options, 1.0 if tokens and options.beam is None else None)


def seed(options: argparse.Namespace) -> None:
    """Seed what is drawn with --seed. Raises ValueError for a number that seeds nothing."""
    import torch

    if not 0 <= options.seed < 2**63:
        raise ValueError(f"seed must be from 0 to {2**63 - 1}, got {options.seed}")
    torch.manual_seed(options.seed)
