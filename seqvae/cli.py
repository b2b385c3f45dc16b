"""The `seqvae` command: opens a checkpoint, calls latent/ or the evaluation, writes files."""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import seqvae

if TYPE_CHECKING:  # heavy imports wait until a command needs them: --help answers at once
    from seqvae.data.preparation import Report
    from seqvae.harness.config import Trained

DATA_INPUT = re.compile(r"(train|valid|test):(\d+)")

DESCRIPTION = "Train variational autoencoders on images, text or MIDI, and use what they learned."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code. What a user got wrong is one line on stderr and exit code 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["train"]:
        return _train(arguments[1:])
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        options.run(options)
    except KeyboardInterrupt:
        print(f"seqvae {options.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # an OSError too, so it comes first
        return 0
    except (ValueError, OSError) as error:
        print(f"seqvae {options.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="seqvae", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"seqvae {seqvae.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    prepare = commands.add_parser("prepare", help="turn your own text, MIDI or pictures into a dataset")
    _add_prepare(prepare)
    commands.add_parser("train", help="train a model: seqvae train experiment=melody (seqvae train --help)")
    listing = commands.add_parser("list", help="show the experiments and what they promise")
    listing.set_defaults(run=_list)

    def command(name: str, help: str, run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.add_argument(
            "checkpoint", metavar="CKPT", help="a checkpoint, or a run directory: its best, RUN@last its newest"
        )
        sub.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, mps")
        sub.set_defaults(run=run)
        return sub

    def inputs(sub: argparse.ArgumentParser, *names: str) -> None:
        meaning = "a sentence, @FILE with one a line, or a MIDI or image file; test:17 is window 17 of the test split"
        for name in names or ("inputs",):
            sub.add_argument(name, metavar=name.upper(), nargs=None if names else "+", help=meaning)
        sub.add_argument("--data", type=Path, metavar="ROOT", help="the dataset that test:17 means, if it has moved")

    def output(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "-o", "--output", metavar="OUT", help="a directory for MIDI and images, a file for text (- prints)"
        )

    def temperature(sub: argparse.ArgumentParser, default: str) -> None:
        sub.add_argument(
            "--temperature", type=float, metavar="T", help=f"draw from softmax(logits / T); default: {default}"
        )
        sub.add_argument("--seed", type=int, default=0, help="of everything that is drawn (default 0)")

    evaluate = command(
        "evaluate", "ELBO, importance-weighted NLL, latent health and reconstruction of a split", _evaluate
    )
    evaluate.add_argument("--split", choices=("train", "valid", "test"), default="test")
    evaluate.add_argument(
        "--importance-samples", type=int, default=0, metavar="K", help="of the NLL (default 0: ELBO only)"
    )
    evaluate.add_argument("--limit", type=int, metavar="N", help="use the split's first N windows")
    evaluate.add_argument("--rows", type=int, default=512, help="sequences or pictures decoded at once (default 512)")
    evaluate.add_argument("--seed", type=int, default=0)
    evaluate.add_argument(
        "--data", type=Path, metavar="ROOT", help="the dataset, if it is not where it was in training"
    )
    evaluate.add_argument("--json", action="store_true", help="print JSON instead of a table")

    sample = command("sample", "items drawn from the prior", _sample)
    sample.add_argument("-n", type=int, default=8, help="how many (default 8)")
    temperature(sample, "1 for sequences, the expected pixels for images")
    output(sample)

    reconstruct = command("reconstruct", "items encoded and decoded again", _reconstruct)
    inputs(reconstruct)
    temperature(reconstruct, "the most likely item")
    output(reconstruct)

    interpolate = command("interpolate", "items on the way from A to B", _interpolate)
    inputs(interpolate, "a", "b")
    interpolate.add_argument("--steps", type=int, default=7, help="how many, both ends counted (default 7)")
    interpolate.add_argument(
        "--method", choices=("slerp", "lerp"), default="slerp", help="along an arc (default) or a line"
    )
    temperature(interpolate, "the most likely item")
    output(interpolate)

    encode = command("encode", "posterior means as a .npy file, a row a window", _encode)
    inputs(encode)
    encode.add_argument(
        "-o", "--output", required=True, metavar="OUT", help="latents.npy; names go to latents.names.txt"
    )

    info = command("info", "what a checkpoint holds; verifies every file of it", _info)
    info.add_argument("--json", action="store_true", help="print JSON instead of lines")
    return parser


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="text|midi|image")

    def kind(name: str, help: str, run: Callable[[argparse.Namespace], Report]) -> argparse.ArgumentParser:
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
        sub.set_defaults(run=lambda options: print(run(options).table()))
        return sub

    text = kind("text", "a text file, or a folder of them, one item a line", _prepare_text)
    text.add_argument("--vocab-size", type=int, default=8000)
    text.add_argument("--model-type", choices=("unigram", "bpe", "char", "word"), default="unigram")
    text.add_argument("--max-length", type=int, default=64, help="tokens, the end counted (default 64)")
    midi = kind("midi", "a folder of MIDI files", _prepare_midi)
    midi.add_argument("--kind", choices=("melody",), default="melody", dest="part")
    midi.add_argument("--bars", type=int, default=2, help="of a window (default 2)")
    midi.add_argument(
        "--meter", choices=("strict", "folded"), default="strict", help="4/4, 2/2, 2/4 only, or any on the beat grid"
    )
    midi.add_argument("--min-notes", type=int, default=3, help="of a window (default 3)")
    image = kind("image", "a folder of pictures; its sub-folders are labels", _prepare_image)
    image.add_argument("--size", default="64", help="64 or WIDTHxHEIGHT (default 64)")
    image.add_argument("--channels", type=int, choices=(1, 3), default=3)
    image.add_argument("--binarize", action="store_true", help="black and white pixels, drawn anew each time")


def _prepare_text(options: argparse.Namespace) -> Report:
    from seqvae.data.text import prepare_text

    return prepare_text(
        options.source,
        options.root,
        vocab_size=options.vocab_size,
        model_type=options.model_type,
        max_length=options.max_length,
        seed=options.seed,
        engine=options.engine,
        jobs=options.jobs,
    )


def _prepare_midi(options: argparse.Namespace) -> Report:
    from seqvae.data.midi import prepare_midi

    return prepare_midi(
        options.source,
        options.root,
        bars=options.bars,
        meter=options.meter,
        min_notes=options.min_notes,
        seed=options.seed,
        engine=options.engine,
        jobs=options.jobs,
    )


def _prepare_image(options: argparse.Namespace) -> Report:
    from seqvae.data.image import prepare_image

    return prepare_image(
        options.source,
        options.root,
        size=options.size,
        channels=options.channels,
        binarize=options.binarize,
        seed=options.seed,
        engine=options.engine,
        jobs=options.jobs,
    )


def _train(arguments: list[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print("usage: seqvae train [experiment=NAME] [key=value ...]\n")
        print("Keys are those of conf/train.yaml; `seqvae train --cfg job` prints them all. Experiments:\n")
        _list(argparse.Namespace())
        return 0
    from seqvae.harness import config

    original = sys.argv
    sys.argv = [original[0], *arguments]  # Hydra reads it; other ranks are started with the original
    try:
        return config.main(original)
    finally:
        sys.argv = original


def _list(options: argparse.Namespace) -> None:
    from seqvae.harness import conf_dir

    experiments = conf_dir() / "experiment"
    for path in sorted(experiments.rglob("*.yaml")):
        lines = path.read_text(encoding="utf-8").splitlines()
        header = [line.removeprefix("#").strip() for line in lines if line.startswith("#") and "@package" not in line]
        print("\n    ".join([path.relative_to(experiments).with_suffix("").as_posix(), *header]))


def _open(options: argparse.Namespace) -> Trained:
    from seqvae.harness.config import load

    return load(options.checkpoint, options.device)


def _data_root(options: argparse.Namespace, trained: Trained) -> Path:
    root = options.data or Path(trained.config["data"]["root"])
    if not root.is_dir():
        raise ValueError(f"the dataset is not at {root}; say where it is with --data ROOT")
    return Path(root)


def _items(options: argparse.Namespace, trained: Trained, sources: Sequence[str]) -> list[tuple[str, Any]]:
    """Return (name, item) of every INPUT; `@FILE` may give many."""
    from seqvae.harness.scoring import open_split

    items: list[tuple[str, Any]] = []
    for source in sources:
        match = DATA_INPUT.fullmatch(source)
        if match is None:
            read = trained.codec.read(source)
            names = [source] if len(read) == 1 else [f"{source}:{line}" for line in range(1, len(read) + 1)]
            items += zip(names, read, strict=True)
            continue
        split, index = match[1], int(match[2])
        dataset = open_split(_data_root(options, trained), split, trained.config["data"]["fingerprint"])
        if index >= len(dataset):
            raise ValueError(f"{source}: the {split} split has windows 0 to {len(dataset) - 1}")
        items.append((source, trained.codec.join([dataset[index]])))
    return items


def _strategy(options: argparse.Namespace, default: float | None = None) -> Any:
    from seqvae.models.decoding import Temperature

    temperature = default if options.temperature is None else options.temperature
    return None if temperature is None else Temperature(temperature)


def _seed(options: argparse.Namespace) -> None:
    import torch

    torch.manual_seed(options.seed)


def _write(trained: Trained, options: argparse.Namespace, stem: str, items: list[Any], originals: list[Any]) -> None:
    """Write items: lines of text, or a file each, all of them together, a picture and, where there is one, sound."""
    codec = trained.codec
    if codec.suffix is None:
        text = "".join(f"{item}\n" for item in items)
        if options.output in (None, "-"):
            sys.stdout.write(text)
        else:
            _write_whole(Path(options.output), text.encode())
            print(f"{len(items)} lines written to {options.output}", file=sys.stderr)
        return
    if options.output in (None, "-"):
        raise ValueError("-o OUT is needed: a directory for the files")
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    from seqvae.data.image import write_png

    written: list[Path] = []

    def path(name: str) -> Path:
        written.append(folder / name)
        return written[-1]

    digits = len(str(len(items)))
    for number, item in enumerate(items, 1):
        codec.write(item, path(f"{stem}-{number:0{digits}d}{codec.suffix}"))
    for number, item in enumerate(originals, 1):
        codec.write(item, path(f"original-{number:0{len(str(len(originals)))}d}{codec.suffix}"))
    preview = codec.preview([*originals[:1], *items, *originals[1:]] if stem == "interpolation" else items)
    chained = codec.chain(items)
    if chained is not None:
        codec.write(chained, path(f"{stem}{codec.suffix}"))
    if preview.image is not None:
        write_png(path(f"{stem}.png"), preview.image)
    if preview.audio is not None:
        _write_wav(path(f"{stem}.wav"), preview.audio, preview.sample_rate)
    for file in written:
        print(file)


def _write_whole(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def _write_wav(path: Path, audio: Any, sample_rate: int) -> None:
    import io
    import wave

    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes((audio.clip(-1, 1) * 32767).astype("<i2").tobytes())
    _write_whole(path, content.getvalue())


def _sample(options: argparse.Namespace) -> None:
    from seqvae import latent

    trained = _open(options)
    _seed(options)
    tokens = "vocab_size" in trained.codec.spec
    strategy = _strategy(options, 1.0 if tokens else None)
    _write(trained, options, "sample", latent.sample(trained.vae, trained.codec, options.n, strategy), [])


def _reconstruct(options: argparse.Namespace) -> None:
    from seqvae import latent

    trained = _open(options)
    originals = [item for _, item in _items(options, trained, options.inputs)]
    _seed(options)
    items = latent.reconstruct(trained.vae, trained.codec, originals, _strategy(options))
    _write(trained, options, "reconstruction", items, originals)


def _interpolate(options: argparse.Namespace) -> None:
    from seqvae import latent

    trained = _open(options)
    ends = [item for _, item in _items(options, trained, [options.a, options.b])]
    if len(ends) != 2:
        raise ValueError(f"A and B must be one item each, got {len(ends)}")
    _seed(options)
    a, b = ends
    items = latent.interpolate(trained.vae, trained.codec, a, b, options.steps, options.method, _strategy(options))
    _write(trained, options, "interpolation", items, ends)


def _encode(options: argparse.Namespace) -> None:
    import io

    import numpy as np

    from seqvae import latent

    trained = _open(options)
    named = [(name, trained.codec.windows(item)) for name, item in _items(options, trained, options.inputs)]
    z = latent.encode(trained.vae, trained.codec, [window for _, windows in named for window in windows])
    output, buffer = Path(options.output), io.BytesIO()
    np.save(buffer, z.cpu().numpy())
    _write_whole(output, buffer.getvalue())
    names = [
        name if len(windows) == 1 else f"{name}#{place}" for name, windows in named for place in range(len(windows))
    ]
    _write_whole(output.with_suffix(".names.txt"), "".join(f"{name}\n" for name in names).encode())
    print(f"{z.shape[0]} x {z.shape[1]} latents written to {output}", file=sys.stderr)


def _evaluate(options: argparse.Namespace) -> None:
    from seqvae.harness.scoring import evaluate, open_split

    trained = _open(options)
    root = _data_root(options, trained)
    dataset = open_split(root, options.split, trained.config["data"]["fingerprint"], options.limit)
    report = evaluate(
        trained.vae,
        trained.codec,
        dataset,
        importance_samples=options.importance_samples,
        rows=options.rows,
        seed=options.seed,
    )
    if options.json:
        print(json.dumps({"checkpoint": str(trained.path), "split": options.split, **report._asdict()}, indent=1))
        return
    print(f"{trained.path}  {options.split} split")
    for name, value in report.metrics.items():
        if not name.endswith("_error"):
            error = report.metrics.get(f"{name}_error")
            print(f"  {name:<26}{value:>12.6g}" + (f"  +- {error:.2g}" if error is not None else ""))
    columns = list(next(iter(report.reconstruction.values())))
    print("  " + f"{'reconstruction':<26}" + "".join(f"{column:>16}" for column in columns))
    for row, scores in report.reconstruction.items():
        print("  " + f"{row:<26}" + "".join(f"{scores[column]:>16.4f}" for column in columns))


def _info(options: argparse.Namespace) -> None:
    trained = _open(options)
    sizes = {
        part: sum(parameter.numel() for parameter in getattr(trained.vae, part).parameters())
        for part in ("encoder", "decoder", "prior")
    }
    facts = {
        "checkpoint": str(trained.path),
        **{name: value for name, value in trained.config.items() if name not in ("format",)},
        "codec": type(trained.codec).__name__,
        "codec_options": trained.codec.options,
        "parameters": sizes,
        "verified": True,
    }
    if options.json:
        print(json.dumps(facts, indent=1))
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {part}" for key, part in value.items())
        print(f"{name:<14} {value}")
