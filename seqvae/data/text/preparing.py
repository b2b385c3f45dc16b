"""A person's text, of any size, to a prepared dataset."""

import hashlib
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from seqvae.data.preparation import (
    Outcome,
    Record,
    Rejected,
    Report,
    name_of,
    other_kinds,
    prepare,
    printable,
    refuse_existing,
    split_of,
    told,
)
from seqvae.data.text.reading import STDIN, Form
from seqvae.data.text.spool import Line, Spool
from seqvae.data.text.tokenizer import (
    MODEL_TYPES,
    NORMALIZATIONS,
    SentencePieceTokenizer,
    check_int,
    check_name,
    most_characters,
    normalizer,
    short,
)

log = logging.getLogger(__name__)

FITTED = "characters that the vocabulary was fitted on"


def prepare_text(
    source: Path,
    root: Path,
    *,
    column: str | None = None,
    field: str | None = None,
    split_sentences: bool = False,
    vocab_size: int = 8000,
    model_type: str = "unigram",
    max_length: int = 64,
    min_length: int = 2,
    normalization: str = "nfkc",
    character_coverage: float = 1.0,
    byte_fallback: bool = False,
    fit_characters: int = 20_000_000,
    seed: int = 0,
    engine: str = "sequential",
    jobs: int = -1,
) -> Report:
    """Make a dataset at `root` of a file, of a folder of files, or of standard input ("-").

    An item is a line of text, a cell of the `column` of CSV or TSV files, or the `field` of an object a line; with
    `split_sentences`, a sentence of any of these. Lengths are in tokens with the end symbol. Files or folders named
    train, valid or test keep their split, and all of their items, repeated ones too; otherwise every sentence is kept
    once and the split is drawn. The tokenizer is fitted on train alone: words on all of it, pieces on so many
    characters of its sentences, drawn by their content. Nothing is kept in memory but some bytes an item.

    Raises:
        ValueError: when `source` holds no text, `root` already is a dataset, or an option is out of its range.
    """
    refuse_existing(root)
    check_int("max_length", max_length, 2)
    check_int("min_length", min_length, 2)
    check_int("fit_characters", fit_characters, 10_000)
    check_name("model_type", model_type, MODEL_TYPES)
    check_name("normalization", normalization, NORMALIZATIONS)
    form = Form(column, field, split_sentences)
    paths = form.find(source)
    came_split = any(split_of(path, source) for path in paths)
    exact = byte_fallback and normalization == "identity"
    normalize = normalizer(model_type, normalization, exact)
    with told(root):
        spool = Spool(_existing(root), seed)
    with spool:
        with told(root):
            digest = _fill(spool, source, paths, form, most_characters(max_length), normalize)
        if spool.refused.total() == len(spool):
            raise ValueError(_nothing(source, root, spool))
        spool.finish(drop_repeats=not came_split)
        share, counted = (1.0, {}) if model_type == "word" else _share(spool, fit_characters)
        tokenizer = SentencePieceTokenizer.fit(
            spool.texts("train", share),
            vocab_size=vocab_size,
            max_length=max_length,
            model_type=model_type,
            normalization=normalization,
            character_coverage=character_coverage,
            byte_fallback=byte_fallback,
        )
        return prepare(
            root,
            spool,
            partial(_convert, tokenizer, min_length),
            tokenizer,
            kind="text",
            options={
                **tokenizer.options,
                "vocab_size": vocab_size,
                "min_length": min_length,
                "character_coverage": character_coverage,
                "byte_fallback": byte_fallback,
                "fit_characters": fit_characters,
                "column": column,
                "field": field,
                "split_sentences": split_sentences,
            },
            seed=seed,
            engine=engine,
            jobs=jobs,
            key=digest,
            counted=counted | other_kinds(source, paths),
            drop_repeats=not came_split,
            shard_size=Spool.PART,
        )


def _existing(root: Path) -> Path:
    """Return the folder on whose disk `root` is, or will be."""
    return next(folder for folder in (root.absolute(), *root.absolute().parents) if folder.is_dir())


def _fill(spool: Spool, source: Path, paths: list[Path], form: Form, most: int, normalize: Callable[[str], str]) -> str:
    """Put every item of the files into the spool, normalised; return a digest of all that was read."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.relative_to(source)}\n".encode(errors="surrogateescape"))
        split = split_of(path, source)
        for found in form.read(path, name_of(path, source), digest, most):
            if isinstance(found, Rejected):
                spool.refuse(found)
            elif text := normalize(found[1]):
                spool.add(found[0], text, split)
            else:
                spool.refuse(Rejected(found[0], "empty line"))
    return digest.hexdigest()


def _nothing(source: Path, root: Path, spool: Spool) -> str:
    examples = {rule: printable(short(detail, 200)) for rule, detail in spool.examples.items()}
    reasons = [
        f"{count} x {rule}" + (f": {examples[rule]}" if examples[rule] else "")
        for rule, count in spool.refused.most_common(3)
    ]
    what = "standard input" if source == STDIN else source
    return f"nothing to prepare for {root}: every line of {what} was rejected ({'; '.join(reasons) or 'no lines'})"


def _share(spool: Spool, most: int) -> tuple[float, dict[str, int]]:
    """Return the share of train that has about `most` characters, and what the report should say of it."""
    total = sum(map(len, spool.texts("train")))
    if total <= most:
        return 1.0, {}
    fitted = sum(map(len, spool.texts("train", most / total)))
    log.info("the vocabulary is fitted on %d of the %d characters of train (fit_characters)", fitted, total)
    return most / total, {"characters in train": total, FITTED: fitted}


def _convert(tokenizer: SentencePieceTokenizer, min_length: int, line: Line | Rejected) -> Outcome:
    if isinstance(line, Rejected):
        return line
    ids = tokenizer.encode(line.text)
    if len(ids) > tokenizer.max_length:
        return Rejected(line.name, f"longer than {tokenizer.max_length} tokens", f"{len(ids)}: {short(line.text)}")
    if len(ids) < min_length:
        return Rejected(line.name, f"shorter than {min_length} tokens", f"{len(ids)}: {short(line.text)}")
    return Record(line.name, line.text, [torch.tensor(ids).numpy()], line.split)
