"""Vocabularies: sentencepiece's trainer and what it has to be told, and the counting of whole words."""

import heapq
import io
import itertools
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

import sentencepiece

UNK_ID, END_ID = 0, 1
UNK, END = "<unk>", "</s>"
SLICE = 10_000  # characters; longer lines crash sentencepiece's trainer, so it sees them in slices
MOST_WORDS = 1_000_000  # different ones that are counted in memory at a time, about 100 MB
RESERVED = (
    "\u2581\u2585"  # a space and an unknown character to the trainer, which leaves out a whole line for the latter
)


def train_pieces(
    sentences: Iterable[str],
    *,
    model_type: str,
    vocab_size: int,
    normalization: str,
    character_coverage: float,
    byte_fallback: bool,
) -> bytes:
    """Return a sentencepiece model of at most `vocab_size` pieces.

    With `byte_fallback` and the normalization "identity" the model takes white space as it comes, and adds none.

    Raises:
        ValueError: without text, or for a vocabulary smaller than its characters.
    """
    exact = byte_fallback and normalization == "identity"
    # what is not chosen is not said: the model's file holds all that is, and would differ
    chosen = {"byte_fallback": True} if byte_fallback else {}
    chosen |= {"add_dummy_prefix": False, "remove_extra_whitespaces": False} if exact else {}
    slices = (part for sentence in sentences for part in _slices(sentence, exact))
    try:
        return _train(
            slices,
            model_type=model_type,
            vocab_size=vocab_size,
            normalization_rule_name=normalization,
            character_coverage=character_coverage,
            **chosen,
        )
    except RuntimeError as error:
        required = re.search(r"required_chars\. \d+ vs (\d+)", str(error))
        bytes_too = " and the 256 bytes" if byte_fallback else ""
        if required:
            raise ValueError(
                f"vocab_size must be at least {required[1]} for the different characters of this text{bytes_too} "
                f"(fewer with a character_coverage below {character_coverage}), got {vocab_size}"
            ) from None
        if byte_fallback and vocab_size < 260:
            raise ValueError(f"vocab_size must be at least 260 for the 256 bytes, got {vocab_size}") from None
        raise ValueError(f"no {model_type} vocabulary of {vocab_size} fits this text ({error})") from None


def train_words(sentences: Iterable[str], vocab_size: int) -> bytes:
    """Return a sentencepiece model of the most frequent words; of equally frequent ones the first by alphabet.

    Words are counted here, exactly, because the trainer would keep every sentence in memory.

    Raises:
        ValueError: without words.
    """
    words = frequent_words(sentences, vocab_size - 2)
    rows = (f"{word}\t{count}" for word, count in words)
    return _train(
        rows,
        model_type="word",
        vocab_size=vocab_size,
        normalization_rule_name="identity",
        character_coverage=1.0,  # else words with rare characters would have no place
        input_format="tsv",
    )


def _train(sentences: Iterable[str], **options: Any) -> bytes:
    sentences = iter(sentences)
    first = next(sentences, None)
    if first is None:
        raise ValueError("there is no text to fit a tokenizer on")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=itertools.chain([first], sentences),  # never `input`, which splits a path at its commas
        model_writer=model,
        hard_vocab_limit=False,  # a text with fewer pieces gives fewer
        unk_id=UNK_ID,
        eos_id=END_ID,
        bos_id=-1,
        pad_id=-1,
        unk_surface="\N{DOUBLE QUESTION MARK}",  # the default has spaces around, which would count as words
        max_sentence_length=4 * SLICE + 4,  # bytes; longer ones would be left out without a word
        num_threads=1,  # the vocabulary depends on it
        minloglevel=2,
        **options,
    )
    return model.getvalue()


def _slices(sentence: str, exact: bool) -> Iterator[str]:
    """Yield a sentence in parts that the trainer can take, without what it would not."""
    sentence = re.sub(rf"[{RESERVED}\s]", " ", sentence)
    sentence = f" {sentence}" if exact else " ".join(sentence.split())
    if sentence.strip():
        for start in range(0, len(sentence), SLICE):
            yield sentence[start : start + SLICE]


def frequent_words(sentences: Iterable[str], number: int) -> list[tuple[str, int]]:
    """Return the most frequent words with their exact counts, but those that sentencepiece lets into no vocabulary.

    What is counted goes to disk whenever it fills the memory set aside for it.
    """
    counts: Counter[str] = Counter()
    runs: list[TextIO] = []
    for sentence in sentences:
        counts.update(sentence.split())
        if len(counts) > MOST_WORDS:
            runs.append(_spilled(counts))
            counts.clear()
    merged = heapq.merge(*map(_read_run, runs), sorted(counts.items()))
    totals = ((word, sum(n for _, n in same)) for word, same in itertools.groupby(merged, key=lambda pair: pair[0]))
    allowed = (pair for pair in totals if not any(part in pair[0] for part in (UNK, END, *RESERVED)))
    return heapq.nsmallest(number, allowed, key=lambda pair: (-pair[1], pair[0]))


def _spilled(counts: Counter[str]) -> TextIO:
    run = tempfile.TemporaryFile("w+", encoding="utf-8", newline="\n")  # noqa: SIM115 - lives until it is merged
    run.writelines(f"{word}\t{count}\n" for word, count in sorted(counts.items()))
    return run


def _read_run(run: TextIO) -> Iterator[tuple[str, int]]:
    run.seek(0)
    with run:
        for row in run:
            word, _, count = row.rpartition("\t")
            yield word, int(count)
