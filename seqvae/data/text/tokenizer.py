"""Sentences <-> sentencepiece tokens (Kudo & Richardson, 2018)."""

import json
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Self

import sentencepiece
import torch
from torch import Tensor

from seqvae.data.codec import CODEC_FILE, Codec, Gapped, Preview, strip
from seqvae.data.ngrams import bleu
from seqvae.data.text.fitting import END_ID, UNK, UNK_ID, train_pieces, train_words

log = logging.getLogger(__name__)

MODEL_FILE = "tokenizer.model"
MODEL_TYPES = ("unigram", "bpe", "char", "word")
NORMALIZATIONS = {"nfkc": "nmt_nfkc", "nfkc_lowercase": "nmt_nfkc_cf", "identity": "identity"}  # sentencepiece's names
SPACE = "\u2581"  # sentencepiece's sign for one, within a piece
GAP = re.compile(r"_{3,}|\[\.\.\.\]")  # as people mark one: ___ or [...]
MARK = "\ue000"  # private use: no text holds it, no piece does


class SentencePieceTokenizer(Codec[str]):
    """Sentences as tokens of a trained sentencepiece model, closed by an end symbol.

    The vocabulary is the model's own: the unknown piece, the end, and pieces of text; nothing is padding.
    `max_length` counts the end symbol. The type "word" is for text that is tokenised already: it splits at
    white space only, and the word <unk> stands for the unknown piece both ways.

    A model that was fitted with a byte fallback has a piece for each of the 256 bytes, and nothing is unknown to it;
    with the normalization "identity" any string then comes back exactly, white space included.
    """

    def __init__(self, model: bytes, *, max_length: int, model_type: str, normalization: str) -> None:
        check_int("max_length", max_length, 2)
        check_name("model_type", model_type, MODEL_TYPES)
        check_name("normalization", normalization, NORMALIZATIONS)
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
        byte_fallback: bool = False,
    ) -> Self:
        """Train a vocabulary of at most `vocab_size` pieces (unknown, end and bytes included) on the sentences.

        Raises:
            ValueError: for an option out of its range, no text, or a vocabulary smaller than its characters.
        """
        check_int("vocab_size", vocab_size, 3)
        check_name("model_type", model_type, MODEL_TYPES)
        check_name("normalization", normalization, NORMALIZATIONS)
        if not 0.9 <= character_coverage <= 1:
            raise ValueError(f"character_coverage must be between 0.9 and 1, got {character_coverage!r}")
        if model_type == "word" and (byte_fallback or character_coverage < 1):
            what = "byte_fallback" if byte_fallback else f"a character_coverage of {character_coverage}"
            raise ValueError(f"{what} is of no use to a vocabulary of whole words (model_type word)")
        if model_type == "word":
            model = train_words(sentences, vocab_size)
        else:
            model = train_pieces(
                (_unicode(sentence) for sentence in sentences),
                model_type=model_type,
                vocab_size=vocab_size,
                normalization=NORMALIZATIONS[normalization],
                character_coverage=character_coverage,
                byte_fallback=byte_fallback,
            )
        tokenizer = cls(model, max_length=max_length, model_type=model_type, normalization=normalization)
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
    def exact(self) -> bool:
        """Whether any string comes back from its tokens as it is."""
        return self.normalization == "identity" and any(map(self._processor.is_byte, range(self.vocab_size)))

    @cached_property
    def _words(self) -> list[str]:
        return [UNK, "", *(self._processor.id_to_piece(index)[1:] for index in range(2, self.vocab_size))]

    def normalize(self, sentence: str) -> str:
        """Return the canonical sentence: the one that encodes to the same tokens and comes back from them."""
        return normalizer(self.model_type, self.normalization, self.exact)(_unicode(sentence))

    def encode(self, sentence: str) -> list[int]:
        """Return the sentence's ids with the end. Raises ValueError when it holds no text, or far too much."""
        if len(sentence) > most_characters(self.max_length):
            raise ValueError(f"{short(sentence)!r} has {len(sentence):,} characters, too many for max_length")
        text = self.normalize(sentence)
        if self.model_type == "word":  # sentencepiece would merge neighbours that are both unknown
            ids = [self._processor.piece_to_id(SPACE + word) for word in text.split(" ") if word]
        elif self.exact:
            ids = self._encode_exactly(text) if text else []
        else:
            ids = self._processor.encode(text)
        if not ids:
            raise ValueError(f"{short(sentence)!r} holds no text")
        return [*ids, END_ID]

    def _encode_exactly(self, text: str) -> list[int]:
        """Return the ids of any string; in front stands a space, so that a first word is spelled as any other."""
        first, *rest = (self._processor.encode(part) for part in f" {text}".split(SPACE))
        sign = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        return [*first, *(index for part in rest for index in (*sign, *part))]

    @cached_property
    def _bytes(self) -> list[bytes]:
        """What each piece spells."""
        pieces = [self._processor.id_to_piece(index) for index in range(self.vocab_size)]
        return [
            bytes([int(piece[3:5], 16)]) if self._processor.is_byte(index) else piece.replace(SPACE, " ").encode()
            for index, piece in enumerate(pieces)
        ]

    def windows(self, item: str) -> list[Tensor]:
        ids = self.encode(item)
        if len(ids) > self.max_length:
            raise ValueError(f"{short(item)!r} has {len(ids)} tokens, max_length is {self.max_length}")
        return [torch.tensor(ids, dtype=torch.int64)]

    def join(self, tensors: Sequence[Tensor], like: str | None = None) -> str:
        """Return the sentence of the one window, up to its first end symbol.

        An unknown piece shows as a mark, and bytes that spell no character do too.
        """
        assert len(tensors) == 1, f"a sentence is one window, got {len(tensors)}"
        ids: list[int] = strip(tensors[0]).tolist()
        assert all(index < self.vocab_size for index in ids), f"an id is beyond the vocabulary of {self.vocab_size}"
        ids = ids[: ids.index(END_ID)] if END_ID in ids else ids
        if self.model_type == "word":
            return " ".join(self._words[index] for index in ids)
        if self.exact:
            spelled = b"".join(self._bytes[index] for index in ids)
            return spelled.decode(errors="replace").removeprefix(" ")
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

    def attributes(self, window: Tensor) -> dict[str, float]:
        """Return the length in words."""
        return {"length": float(len(self.join([window]).split()))}

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
        lines = [line.removesuffix("\r") for line in text.split("\n")]
        sentences = [line if self.exact and line.strip() else line.strip() for line in lines]
        while sentences and not sentences[-1]:
            sentences.pop()
        if not sentences:
            raise ValueError(f"{path} holds no sentences")
        return sentences

    def write(self, item: str, path: Path) -> None:
        path.write_text(one_line(item) + "\n", encoding="utf-8", newline="")

    def gapped(self, item: str, marker: str | None = None) -> Gapped:
        """Return the tokens around the gaps of a sentence, which are marked ___ or [...], or by a marker of one's own.

        A gap may stand beside a word, within one, or before a full stop; a fill keeps the known text apart or
        together as it is.

        Raises:
            ValueError: when there is no gap, or one within a word where tokens are words.
        """
        parts = _gap(marker).split(_unicode(item))
        if len(parts) == 1:
            raise ValueError(f"{short(item)!r} has no gap; mark one with {marker or '___ or [...]'}")
        pieces = [str(self._processor.id_to_piece(index)) for index in range(self.vocab_size)]
        begins = torch.tensor([piece.startswith("\u2581") for piece in pieces])
        inside = torch.tensor([index not in (UNK_ID, END_ID) for index in range(self.vocab_size)])
        known, first = [], []
        for place, part in enumerate(parts):
            apart, spaced, body = self._around(part, place == 0, place == len(parts) - 1)
            touches = (part != "" and not apart) or (place < len(parts) - 1 and not spaced)
            if self.model_type == "word" and touches:
                raise ValueError(f"{short(item)!r} has a gap that touches a word, and this model's tokens are words")
            known += [torch.tensor(self._part(body, apart), dtype=torch.int64)]
            first += [inside & (begins if spaced else ~begins)] if place < len(parts) - 1 else []
        known[-1] = torch.cat([known[-1], torch.tensor([END_ID])])
        return Gapped(known, first, inside)

    def filled(self, item: str, fills: Sequence[Tensor], marker: str | None = None) -> str:
        """Return the sentence with the text of the fills in its gaps, and its own characters around them."""
        texts = iter([self.join([fill]) for fill in fills])
        return _gap(marker).sub(lambda gap: next(texts), item)

    def _around(self, part: str, begins: bool, ends: bool) -> tuple[bool, bool, str]:
        """Return whether a part of a sentence stands apart from the gap before it, and from that behind; and its text.

        A space goes with what comes after it: that before a gap with the filling's own tokens.
        """
        if not self.exact:
            return begins or part[:1].isspace(), part[-1:].isspace() or (begins and not part), part.strip()
        text = part if begins else part.removeprefix(" ")
        spaced = part.endswith(" ") or (begins and not part)
        return begins or part.startswith(" "), spaced, text if ends else text.removesuffix(" ")

    def _part(self, text: str, apart: bool) -> list[int]:
        """Return the ids of a part of a sentence, which begins with a word or (not apart) goes on with one."""
        if not text:
            return []
        if apart:
            return self.encode(text)[:-1]
        mark = self.encode(MARK)
        ids = self.encode(MARK + text)[len(mark) - 1 : -1]
        first = self._processor.encode(self.normalize(text)[:1])
        return [UNK_ID, *ids] if UNK_ID in mark and UNK_ID in first else ids  # neighbours both unknown are one token

    def preview(self, items: Sequence[str], columns: int | None = None, sound: bool = True) -> Preview:
        return Preview(text="\n".join(map(one_line, items)))

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


@cache
def normalizer(model_type: str, normalization: str, exact: bool = False) -> Callable[[str], str]:
    """Return the function that is applied to text before it is cut into pieces."""
    if exact:
        return str
    if model_type == "word":
        return lambda text: " ".join(text.split())
    if normalization == "identity":  # sentencepiece would keep tabs and line ends
        return lambda text: " ".join(text.replace(SPACE, " ").split())
    made = sentencepiece.SentencePieceNormalizer(
        rule_name=NORMALIZATIONS[normalization],
        escape_whitespaces=False,
        add_dummy_prefix=False,
        remove_extra_whitespaces=True,
    )
    return lambda text: str(made.normalize(text.replace(SPACE, " ")))  # its sign for a space is one


def most_characters(max_length: int) -> int:
    """Return a length that no sentence of `max_length` tokens reaches (pieces have at most 16 characters)."""
    return max(10_000, 32 * max_length)


def one_line(text: str) -> str:
    """Return the text with a space for every line break."""
    return re.sub(r"\r\n|\r|\n", " ", text)


def _unicode(sentence: str) -> str:
    """Return the sentence; ValueError for half of a surrogate pair, which sentencepiece cannot take."""
    try:
        sentence.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{short(sentence)!a} is no Unicode text ({error.reason})") from None
    return sentence


def short(text: str, width: int = 60) -> str:
    """Return the beginning of a text, for a message."""
    return text if len(text) <= width else f"{text[:width]}..."


def check_int(name: str, value: Any, least: int) -> None:
    """Raise ValueError unless an option is an int of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an int of at least {least}, got {value!r}")


def check_name(name: str, value: Any, known: Iterable[str]) -> None:
    """Raise ValueError unless an option is one of the known names."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def _gap(marker: str | None) -> re.Pattern[str]:
    """Return the pattern of a gap. Raises ValueError for a marker of no characters but spaces."""
    if marker is None:
        return GAP
    if not marker.strip():
        raise ValueError(f"the marker of a gap must be visible, got {marker!r}")
    return re.compile(re.escape(marker))
