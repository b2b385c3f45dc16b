"""Running text cut into sentences: by whichever mark ends one, and not where a full stop means something else."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqvae.data.text.sentences import split_sentences


@pytest.mark.parametrize(
    "sentences",
    [
        ["He came.", "She went!", "Did they?", "Nobody knows"],
        ["Mr. Smith met Dr. J. R. Jones at St. Mary's.", "They spoke."],
        ["It was I.", "No one else came."],
        ["See No. 5, p. 12 and Fig. 3 of vol. 2.", "No.", "He left."],
        ["On Jan. 3 he left.", "It was January."],
        ["Fruit, e.g. apples, i.e. Pippins, cost 3.14 a pound.", "Buy some."],
        ["The U.S. Army came.", "It left."],
        ["Wait ... what?", "Well...", "Perhaps\u2026", "Yes."],
        ['"Go!" he said.', '"Stay."', "She left."],
        ["(He came.)", "[She went.]", "\u201cWho?\u201d", "\u00abMoi.\u00bb", "\u00bfQu\u00e9?", "\u00a1Nada!"],
        ["What?!", "Really?!?", "Yes."],
        ["1. Introduction to it.", "A. First part.", "In 1999.", "Then"],
        ["\u4ed6\u6765\u4e86\u3002", "\u5979\u8d70\u4e86\uff01", "\u8c01\uff1f"],
        ["\u300c\u884c\u304f\u3002\u300d", "\u300c\u6765\u308b\u3002\u300d"],
        ["\u300c\u884c\u304f\u3002\u300d\u3068\u8a00\u3063\u305f\u3002", "\u6771"],
        ["\u300c\u884c\u304f\uff01\uff01\u300d\u3068\u8a00\u3063\u305f\u3002", "\u6771"],
        ["\u0647\u0644 \u062c\u0627\u0621\u061f", "\u0646\u0639\u0645.", "\u06c1\u06d2\u06d4", "\u0627"],
        ["\u092f\u0939 \u0939\u0948\u0964", "\u0935\u0939 \u0939\u0948\u0964"],
        ["\u1230\u120b\u121d\u1362", "\u12a5\u1295"],
    ],
    ids=lambda sentences: sentences[0],
)
def test_sentences_that_are_joined_come_apart_again(sentences: list[str]) -> None:
    joint = "" if "\u3002" in sentences[0] else " "
    assert list(split_sentences(joint.join(sentences))) == sentences
    assert list(split_sentences("\n\n".join(sentences))) == sentences


def test_an_empty_line_ends_a_sentence_and_a_line_break_does_not() -> None:
    text = "A Title\n \n\nIt was the\nbest of times.\r\nIt was  the worst.\n\n\n"
    assert list(split_sentences(text)) == ["A Title", "It was the best of times.", "It was the worst."]


@settings(deadline=None)
@given(st.text(st.characters() | st.sampled_from(" .!?\u2026\u3002\u300d\"')(\naA1")))
def test_nothing_but_white_space_is_lost(text: str) -> None:
    sentences = list(split_sentences(text))
    assert "".join("".join(sentences).split()) == "".join(text.split())
    assert all(sentence == " ".join(sentence.split()) != "" for sentence in sentences)


@pytest.mark.parametrize(
    "unit", ["a ", "a. ", "A. ", "e.g. ", "\u3002a", "Yes. ", ".", "?\u2026", "\uff01", "\n", "\u3002\u300d"]
)
def test_a_megabyte_of_anything_takes_a_moment(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    assert sum(len(sentence) for sentence in split_sentences(text)) <= len(text)
