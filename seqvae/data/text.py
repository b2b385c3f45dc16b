"""Sentences <-> sentencepiece tokens (Kudo & Richardson, 2018), and a person's text to a prepared dataset."""

import hashlib
import io
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

import sentencepiece
import torch
from torch import Tensor

from seqvae.data.codec import CODEC_FILE, Codec, Preview, strip
from seqvae.data.ngrams import bleu
from seqvae.data.preparation import (
    Outcome,
    Record,
    Rejected,
    Report,
    complete_splits,
    find_files,
    name_of,
    prepare,
    refuse_existing,
    split_of,
)

log = logging.getLogger(__name__)

MODEL_FILE = "tokenizer.model"
MODEL_TYPES = ("unigram", "bpe", "char", "word")
NORMALIZATIONS = {"nfkc": "nmt_nfkc", "nfkc_lowercase": "nmt_nfkc_cf", "identity": "identity"}  # sentencepiece's names
UNK_ID, END_ID = 0, 1
UNK = "<unk>"
SLICE = 10_000  # characters; longer lines crash sentencepiece's trainer, so it sees them in slices


class SentencePieceTokenizer(Codec[str]):
    """Sentences as tokens of a trained sentencepiece model, closed by an end symbol.

    The vocabulary is the model's own: the unknown piece, the end, and pieces of text; nothing is padding.
    `max_length` counts the end symbol. The type "word" is for text that is tokenised already: it splits at
    white space only, and the word <unk> stands for the unknown piece both ways.
    """

    def __init__(self, model: bytes, *, max_length: int, model_type: str, normalization: str) -> None:
        _check_int("max_length", max_length, 2)
        _check_name("model_type", model_type, MODEL_TYPES)
        _check_name("normalization", normalization, NORMALIZATIONS)
        self.max_length, self.model_type, self.normalization = max_length, model_type, normalization
        if not model:
            raise ValueError("the sentencepiece model is empty")  # sentencepiece takes it for a vocabulary of 0 pieces
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError(f"the sentencepiece model is damaged ({error})") from None
        processor = self._processor
        if processor.vocab_size() < 3 or (processor.unk_id(), processor.eos_id()) != (UNK_ID, END_ID):
            raise ValueError(
                f"the sentencepiece model must have unk_id {UNK_ID}, eos_id {END_ID} and more pieces; "
                f"it has unk_id {processor.unk_id()}, eos_id {processor.eos_id()}, {processor.vocab_size()} pieces"
            )

    @classmethod
    def fit(
        cls,
        sentences: Iterable[str],
        *,
        vocab_size: int,
        max_length: int,
        model_type: str = "unigram",
        normalization: str = "nfkc",
        character_coverage: float = 1.0,
    ) -> Self:
        """Train a vocabulary of at most `vocab_size` pieces (unknown and end included) on the sentences.

        Raises:
            ValueError: for an option out of its range, no text, or a vocabulary smaller than its characters.
        """
        _check_int("vocab_size", vocab_size, 3)
        _check_name("model_type", model_type, MODEL_TYPES)
        _check_name("normalization", normalization, NORMALIZATIONS)
        if not 0.9 <= character_coverage <= 1:
            raise ValueError(f"character_coverage must be between 0.9 and 1, got {character_coverage!r}")
        slices = [part for sentence in sentences for part in _slices(_unicode(sentence))]
        if not slices:
            raise ValueError("there is no text to fit a tokenizer on")
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(slices),  # never `input`, which splits a path at its commas
                model_writer=model,
                model_type=model_type,
                vocab_size=vocab_size,
                hard_vocab_limit=False,  # a text with fewer pieces gives fewer
                character_coverage=character_coverage,
                normalization_rule_name="identity" if model_type == "word" else NORMALIZATIONS[normalization],
                unk_id=UNK_ID,
                eos_id=END_ID,
                bos_id=-1,
                pad_id=-1,
                unk_surface="\N{DOUBLE QUESTION MARK}",  # the default has spaces around, which would count as words
                max_sentence_length=4 * SLICE + 4,  # bytes; longer ones would be left out without a word
                num_threads=1,  # the vocabulary depends on it
                minloglevel=2,
            )
        except RuntimeError as error:
            required = re.search(r"required_chars\. \d+ vs (\d+)", str(error))
            if required:
                raise ValueError(
                    f"vocab_size must be at least {required[1]} for the different characters of this text "
                    f"(fewer with a character_coverage below {character_coverage}), got {vocab_size}"
                ) from None
            raise ValueError(f"no {model_type} vocabulary of {vocab_size} fits this text ({error})") from None
        tokenizer = cls(model.getvalue(), max_length=max_length, model_type=model_type, normalization=normalization)
        if tokenizer.vocab_size < vocab_size:
            log.info("the text gives %d pieces, fewer than vocab_size %d", tokenizer.vocab_size, vocab_size)
        return tokenizer

    @property
    def options(self) -> dict[str, Any]:
        return {"max_length": self.max_length, "model_type": self.model_type, "normalization": self.normalization}

    @property
    def vocab_size(self) -> int:
        return int(self._processor.vocab_size())

    @property
    def spec(self) -> dict[str, Any]:
        return {"vocab_size": self.vocab_size, "max_length": self.max_length, "end_id": END_ID, "unk_id": UNK_ID}

    @cached_property
    def _words(self) -> list[str]:
        return [UNK, "", *(self._processor.id_to_piece(index)[1:] for index in range(2, self.vocab_size))]

    def normalize(self, sentence: str) -> str:
        """Return the canonical sentence: the one that encodes to the same tokens and comes back from them."""
        return _normalizer(self.model_type, self.normalization)(_unicode(sentence))

    def encode(self, sentence: str) -> list[int]:
        """Return the sentence's ids with the end. Raises ValueError when it holds no text, or far too much."""
        if len(sentence) > _most_characters(self.max_length):
            raise ValueError(f"{_short(sentence)!r} has {len(sentence):,} characters, too many for max_length")
        text = self.normalize(sentence)
        if self.model_type == "word":  # sentencepiece would merge neighbours that are both unknown
            ids = [self._processor.piece_to_id(f"\u2581{word}") for word in text.split(" ") if word]
        else:
            ids = self._processor.encode(text)
        if not ids:
            raise ValueError(f"{_short(sentence)!r} holds no text")
        return [*ids, END_ID]

    def windows(self, item: str) -> list[Tensor]:
        ids = self.encode(item)
        if len(ids) > self.max_length:
            raise ValueError(f"{_short(item)!r} has {len(ids)} tokens, max_length is {self.max_length}")
        return [torch.tensor(ids, dtype=torch.int64)]

    def join(self, tensors: Sequence[Tensor], like: str | None = None) -> str:
        """Return the sentence of the one window, up to its first end symbol; an unknown piece shows as a mark."""
        assert len(tensors) == 1, f"a sentence is one window, got {len(tensors)}"
        ids: list[int] = strip(tensors[0]).tolist()
        assert all(index < self.vocab_size for index in ids), f"an id is beyond the vocabulary of {self.vocab_size}"
        ids = ids[: ids.index(END_ID)] if END_ID in ids else ids
        if self.model_type == "word":
            return " ".join(self._words[index] for index in ids)
        return str(self._processor.decode(ids))

    def sizes(self, tensor: Tensor) -> dict[str, int]:
        """Return tokens and words; the end symbol counts as one of each."""
        return {"token": len(strip(tensor)), "word": len(self.join([tensor]).split()) + 1}

    def score(self, truth: Sequence[Tensor], predicted: Sequence[Tensor]) -> dict[str, float]:
        """Return the share of the truth's tokens predicted at their place, and of sentences equal as a whole."""
        right, exact, total = 0, 0, 0
        for true, guess in zip(map(strip, truth), map(strip, predicted), strict=True):
            shared = min(len(true), len(guess))
            right += int((true[:shared] == guess[:shared]).sum())
            exact += torch.equal(true, guess)
            total += len(true)
        return {"accuracy": right / max(total, 1), "exact_match": exact / max(len(truth), 1)}

    def evaluation_score(self, truth: Sequence[Tensor], predicted: Sequence[Tensor]) -> dict[str, float]:
        """Return `score` and, where sacrebleu is installed, `bleu` from 0 to 100 on the sentences as a whole."""
        sentences, references = ([self.join([window]) for window in windows] for windows in (predicted, truth))
        found = bleu(sentences, references, tokenized=self.model_type == "word")
        return {**self.score(truth, predicted), **({} if found is None else {"bleu": found})}

    def read(self, source: str) -> list[str]:
        """Return the sentence itself, or the lines of FILE for "@FILE": empty ones too, so that places tell lines."""
        if not source.startswith("@"):
            return [source]
        path = Path(source[1:])
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise ValueError(f"{path} cannot be read: {reason}") from None
        sentences = [line.strip() for line in text.rstrip().split("\n")]
        if not any(sentences):
            raise ValueError(f"{path} holds no sentences")
        return sentences

    def write(self, item: str, path: Path) -> None:
        path.write_text(" ".join(item.splitlines()) + "\n", encoding="utf-8")

    def preview(self, items: Sequence[str], columns: int | None = None) -> Preview:
        return Preview(text="\n".join(items))

    def save(self, directory: Path) -> None:
        super().save(directory)
        (directory / MODEL_FILE).write_bytes(self._processor.serialized_model_proto())

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read a tokenizer that `save` wrote. Raises ValueError when a file is missing, damaged or another codec's."""
        try:
            saved = json.loads((directory / CODEC_FILE).read_text(encoding="utf-8"))
            model = (directory / MODEL_FILE).read_bytes()
            name, options = saved["codec"], dict(saved["options"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{directory} holds no readable tokenizer ({error})") from None
        if name != cls.__name__:
            raise ValueError(f"{directory / CODEC_FILE} holds a {name!r}, not a {cls.__name__}")
        try:
            return cls(model, **options)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{directory / MODEL_FILE} cannot be used: {error}") from None


class _Line(NamedTuple):
    """One sentence of the source, normalised."""

    name: str
    text: str
    split: str | None


def prepare_text(
    source: Path,
    root: Path,
    *,
    vocab_size: int = 8000,
    model_type: str = "unigram",
    max_length: int = 64,
    min_length: int = 2,
    normalization: str = "nfkc",
    character_coverage: float = 1.0,
    seed: int = 0,
    engine: str = "sequential",
    jobs: int = -1,
) -> Report:
    """Make a dataset at `root` of a text file, or of a folder of .txt files, that hold one sentence a line.

    Lengths are in tokens with the end symbol. Files or folders named train, valid or test keep their split, and all
    of their lines, repeated ones too; otherwise every sentence is kept once and the split is drawn.
    The tokenizer is fitted on train alone.

    Raises:
        ValueError: when `source` holds no text, `root` already is a dataset, or an option is out of its range.
    """
    refuse_existing(root)
    _check_int("max_length", max_length, 2)
    _check_int("min_length", min_length, 2)
    _check_name("model_type", model_type, MODEL_TYPES)
    _check_name("normalization", normalization, NORMALIZATIONS)
    paths = find_files(source, None if source.is_file() else [".txt"])
    came_split = any(split_of(path, source) for path in paths)
    digest = hashlib.sha256()
    lines: list[_Line] = []
    rejected: list[Rejected] = []
    seen: set[str] = set()
    read = partial(_read, max_characters=_most_characters(max_length), normalize=_normalizer(model_type, normalization))
    for path in paths:
        digest.update(f"{path.relative_to(source)}\n".encode(errors="surrogateescape"))
        for outcome in read(path, name_of(path, source), split_of(path, source), digest):
            if isinstance(outcome, Rejected):
                rejected.append(outcome)
            elif not came_split and outcome.text in seen:
                rejected.append(Rejected(outcome.name, "repeats an earlier sentence", _short(outcome.text)))
            else:
                seen.add(outcome.text)
                lines.append(outcome)
    if not lines:
        rules = Counter(line.rule for line in rejected).most_common(3)
        reasons = "; ".join(f"{count} x {rule}" for rule, count in rules) or "no lines"
        raise ValueError(f"nothing to prepare for {root}: every line of {source} was rejected ({reasons})")
    splits = complete_splits({f"{line.split}\n{line.text}": line.split for line in lines}, seed)
    lines = [line._replace(split=splits[f"{line.split}\n{line.text}"]) for line in lines]
    tokenizer = SentencePieceTokenizer.fit(
        (line.text for line in lines if line.split == "train"),
        vocab_size=vocab_size,
        max_length=max_length,
        model_type=model_type,
        normalization=normalization,
        character_coverage=character_coverage,
    )
    return prepare(
        root,
        lines,
        partial(_convert, tokenizer, min_length),
        tokenizer,
        kind="text",
        options={
            **tokenizer.options,
            "vocab_size": vocab_size,
            "min_length": min_length,
            "character_coverage": character_coverage,
        },
        seed=seed,
        engine=engine,
        jobs=jobs,
        key=digest.hexdigest(),
        earlier=rejected,
        drop_repeats=not came_split,
    )


def _read(
    path: Path, name: str, split: str | None, digest: Any, *, max_characters: int, normalize: Callable[[str], str]
) -> Iterator[_Line | Rejected]:
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            raise FileNotFoundError(None, "no such file")
        file = path.open("rb")
    except OSError as error:
        yield Rejected(name, "cannot be read", str(error.strerror))
        return
    with file:
        for number, (line, length) in enumerate(_lines(file, 4 * max_characters, digest), 1):
            found = _check_line(line, length, max_characters, "utf-8-sig" if number == 1 else "utf-8")
            text = normalize(found) if isinstance(found, str) else ""
            if text:
                yield _Line(f"{name}:{number}", text, split)
            else:
                yield Rejected(f"{name}:{number}", *(("empty line",) if isinstance(found, str) else found))


def _lines(file: BinaryIO, most: int, digest: Any) -> Iterator[tuple[bytes, int]]:
    """Yield every line with its length in bytes; of one beyond `most` bytes only its beginning is kept."""
    while part := file.readline(most):
        line, length = part, len(part)
        digest.update(part)
        while not part.endswith(b"\n") and (part := file.readline(most)):
            length += len(part)
            digest.update(part)
        yield line, length


def _check_line(line: bytes, length: int, max_characters: int, encoding: str) -> str | tuple[str, str]:
    """Return a line's text, or the rule that it breaks with a detail."""
    too_long = f"longer than {max_characters:,} characters"
    if length > 4 * max_characters:  # before anything that takes time
        return too_long, f"{length:,} bytes"
    try:
        text = line.decode(encoding)
    except UnicodeDecodeError as error:
        return "not UTF-8", str(error)
    if len(text) > max_characters:
        return too_long, f"{len(text):,} characters"
    return ("holds a NUL character", "UTF-16, or no text at all") if "\0" in text else text


def _convert(tokenizer: SentencePieceTokenizer, min_length: int, line: _Line) -> Outcome:
    ids = tokenizer.encode(line.text)
    if len(ids) > tokenizer.max_length:
        return Rejected(line.name, f"longer than {tokenizer.max_length} tokens", f"{len(ids)}: {_short(line.text)}")
    if len(ids) < min_length:
        return Rejected(line.name, f"shorter than {min_length} tokens", f"{len(ids)}: {_short(line.text)}")
    return Record(line.name, line.text, [torch.tensor(ids).numpy()], line.split)


@cache
def _normalizer(model_type: str, normalization: str) -> Callable[[str], str]:
    """Return the function that sentencepiece applies to text before it cuts it into pieces."""
    if model_type == "word":
        return lambda text: " ".join(text.split())
    if normalization == "identity":  # sentencepiece would keep tabs and line ends
        return lambda text: " ".join(text.replace("\u2581", " ").split())
    normalizer = sentencepiece.SentencePieceNormalizer(
        rule_name=NORMALIZATIONS[normalization],
        escape_whitespaces=False,
        add_dummy_prefix=False,
        remove_extra_whitespaces=True,
    )
    return lambda text: str(normalizer.normalize(text.replace("\u2581", " ")))  # its sign for a space is one


def _slices(sentence: str) -> Iterator[str]:
    sentence = " ".join(sentence.split())
    for start in range(0, len(sentence), SLICE):
        yield sentence[start : start + SLICE]


def _most_characters(max_length: int) -> int:
    """Return a length that no sentence of `max_length` tokens reaches (pieces have at most 16 characters)."""
    return max(SLICE, 32 * max_length)


def _unicode(sentence: str) -> str:
    """Return the sentence; ValueError for half of a surrogate pair, which sentencepiece cannot take."""
    try:
        sentence.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{_short(sentence)!a} is no Unicode text ({error.reason})") from None
    return sentence


def _short(text: str, width: int = 60) -> str:
    return text if len(text) <= width else f"{text[:width]}..."


def _check_int(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an int of at least {least}, got {value!r}")


def _check_name(name: str, value: Any, known: Iterable[str]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
