"""WordNet (Princeton University; a permissive licence of its own): definitions and quoted examples, short sentences.

    apt-get install wordnet-base
    python -m data_prep.wordnet --root data/wordnet

The files data.noun, data.verb, data.adj and data.adv come from --source DIR, else from the Debian package wordnet-base.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from seqvae.data.preparation import hold, refuse_existing
from seqvae.data.text import prepare_text

DEBIAN = Path("/usr/share/wordnet")
FILES = ("data.noun", "data.verb", "data.adj", "data.adv")
LEAST_WORDS, MOST_WORDS = 3, 30

_EXAMPLE = re.compile(r'(?:^|;)\s*"([^"]+)"')  # not what is quoted within a definition
_QUOTED = re.compile(r"`([^`']*)'")


def glosses(folder: Path) -> Iterator[str]:
    """Yield the gloss of every synset: a definition, then examples in quotes.

    Raises:
        ValueError: when one of the files is not there or cannot be read.
    """
    for name in FILES:
        try:
            lines = (folder / name).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ValueError(
                f"{folder / name} cannot be read ({reason}); install the Debian package wordnet-base or give --source"
            ) from None
        yield from (line.partition(" | ")[2] for line in lines if not line.startswith("  "))  # that is the licence


def sentences(gloss: str) -> Iterator[str]:
    """Yield the definition and the examples of a gloss; torn ones and those beyond the lengths are left out."""
    examples = list(_EXAMPLE.finditer(gloss))
    definition = gloss[: examples[0].start()] if examples else gloss
    if gloss.count('"') % 2:  # a quote is missing somewhere
        definition, examples = definition.partition('"')[0], []
    for text in (definition, *(example[1] for example in examples)):
        plain = " ".join(_QUOTED.sub(r"'\1'", text).replace("`", "'").split()).strip(" ;")
        if LEAST_WORDS <= len(plain.split()) <= MOST_WORDS and plain.count("(") == plain.count(")"):
            yield plain


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data_prep.wordnet", description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path("data/wordnet"), help="the folder to make")
    parser.add_argument("--source", type=Path, default=DEBIAN, help=f"the folder with data.noun ... (default {DEBIAN})")
    parser.add_argument("--vocab-size", type=int, default=8000)
    parser.add_argument("--max-length", type=int, default=48, help="tokens with the end symbol")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    try:
        refuse_existing(options.root)
        lines = [line for gloss in glosses(options.source) for line in sentences(gloss)]
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
