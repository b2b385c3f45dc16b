"""What n-grams say of sentences: BLEU against references, and how much a set of sentences repeats itself."""

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any

log = logging.getLogger(__name__)


def bleu(sentences: Sequence[str], references: Sequence[str], *, tokenized: bool = False) -> float | None:
    """Return corpus BLEU (Papineni et al., 2002) from 0 to 100, each sentence against its one reference.

    It is sacrebleu's number (Post, 2018), with its tokenizer unless words are set apart by spaces already; of a
    single sentence it is over the n-gram orders that the sentence has. None where sacrebleu is not installed, which
    the log tells once.
    """
    sacrebleu = _sacrebleu()
    if sacrebleu is None:
        return None
    scorer = _scorer(sacrebleu, tokenized, effective_order=len(sentences) == 1)
    return float(scorer.corpus_score(list(sentences), [list(references)]).score)


def self_bleu(sentences: Sequence[str], *, tokenized: bool = False) -> float | None:
    """Return the mean BLEU, from 0 to 100, of each sentence with all others as its references (Zhu et al., 2018).

    The higher, the more alike the sentences are. It grows with their number, whose square its cost grows with.
    None where sacrebleu is not installed.

    Raises:
        ValueError: for fewer than two sentences.
    """
    if len(sentences) < 2:
        raise ValueError(f"self-BLEU compares sentences with each other, got {len(sentences)}")
    sacrebleu = _sacrebleu()
    if sacrebleu is None:
        return None
    scorer = _scorer(sacrebleu, tokenized, effective_order=True)
    scores = [
        scorer.sentence_score(sentence, [*sentences[:place], *sentences[place + 1 :]]).score
        for place, sentence in enumerate(sentences)
    ]
    return float(sum(scores) / len(scores))


def distinct(sentences: Sequence[str], n: int) -> float:
    """Return the share of the n-grams of words that are different ones (Li et al., 2016); 0 where there are none.

    It falls with the number of sentences: compare sets of one size.
    """
    different: set[tuple[str, ...]] = set()
    total = 0
    for sentence in sentences:
        words = sentence.split()
        found = list(zip(*(words[start:] for start in range(n)), strict=False))
        different.update(found)
        total += len(found)
    return len(different) / max(total, 1)


def _scorer(sacrebleu: Any, tokenized: bool, effective_order: bool) -> Any:
    return sacrebleu.BLEU(tokenize="none" if tokenized else "13a", effective_order=effective_order, force=True)


@cache
def _sacrebleu() -> Any | None:
    try:
        import sacrebleu
    except ImportError:
        log.warning('there is no BLEU without sacrebleu; get it with: pip install "seqvae[metrics]"')
        return None
    return sacrebleu
