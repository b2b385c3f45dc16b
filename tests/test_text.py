"""Sentences to tokens and back, and text files of every kind of people to a prepared dataset."""

import hashlib
import json
import pickle
import random
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqvae.data import load_codec
from seqvae.data.dataset import SPLITS, WindowDataset, read_manifest
from seqvae.data.text import SentencePieceTokenizer, fitting, prepare_text
from seqvae.data.text.fitting import END_ID, UNK_ID
from seqvae.data.text.reading import _lines
from seqvae.data.text.tokenizer import MODEL_FILE, MODEL_TYPES

SUBJECTS = ("the old man", "a small dog", "my sister", "the king of the town", "one of us", "nobody")
VERBS = ("saw", "gave bread to", "went away from", "was waiting for", "made a song about")
PLACES = ("by the river", "in the morning", "under the trees", "without a word", "for three days")


def sentences(count: int, seed: int = 0) -> list[str]:
    """Return different sentences of a tiny language."""
    draw = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        words = (draw.choice(SUBJECTS), draw.choice(VERBS), draw.choice(SUBJECTS), draw.choice(PLACES))
        found[" ".join(words) + draw.choice((".", "!", "?"))] = None
    return list(found)


def fit(model_type: str = "unigram", **options: Any) -> SentencePieceTokenizer:
    chosen = {"vocab_size": 60, "max_length": 400, "model_type": model_type, **options}
    return SentencePieceTokenizer.fit(sentences(150), **chosen)


TOKENIZERS = {model_type: fit(model_type) for model_type in MODEL_TYPES}
each_type = pytest.mark.parametrize("model_type", MODEL_TYPES)


def write_lines(path: Path, lines: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="")
    return path


def read_back(root: Path) -> dict[str, list[str]]:
    codec = load_codec(root / "codec")
    datasets = {split: WindowDataset(root, split) for split in SPLITS}
    return {split: [codec.join([dataset[i]]) for i in range(len(dataset))] for split, dataset in datasets.items()}


@each_type
def test_a_sentence_comes_back_from_its_window(model_type: str) -> None:
    tokenizer = TOKENIZERS[model_type]
    for sentence in sentences(150):
        (window,) = tokenizer.windows(sentence)
        assert tokenizer.join([window]) == sentence
        assert window.dtype == torch.int64
        assert window.tolist().count(END_ID) == 1
        assert window[-1] == END_ID


@each_type
@settings(deadline=None, max_examples=200)
@given(text=st.text(max_size=80))
def test_any_text_encodes_to_known_ids_or_is_refused_with_a_reason(model_type: str, text: str) -> None:
    tokenizer = TOKENIZERS[model_type]
    if not tokenizer.normalize(text):
        with pytest.raises(ValueError, match="holds no text"):
            tokenizer.windows(text)
        return
    (window,) = tokenizer.windows(text)
    assert ((window >= 0) & (window < tokenizer.spec["vocab_size"])).all()
    if UNK_ID not in window:
        assert tokenizer.join([window]) == tokenizer.normalize(text)


@each_type
@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_whatever_ids_a_network_gives_spell_a_sentence(model_type: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[model_type]
    ids = data.draw(st.lists(st.integers(-1, tokenizer.spec["vocab_size"] - 1), max_size=30))
    sentence = tokenizer.join([torch.tensor(ids, dtype=torch.int64)])
    ended = ids[: ids.index(END_ID)] if END_ID in ids else ids
    assert sentence == tokenizer.join([torch.tensor(ended, dtype=torch.int64)])
    assert tokenizer.sizes(torch.tensor(ids, dtype=torch.int64))["word"] == len(sentence.split()) + 1


def test_an_id_beyond_the_vocabulary_is_our_bug() -> None:
    tokenizer = TOKENIZERS["unigram"]
    with pytest.raises(AssertionError, match="beyond the vocabulary"):
        tokenizer.join([torch.tensor([tokenizer.spec["vocab_size"]])])


@each_type
def test_no_id_is_padding_or_a_beginning(model_type: str) -> None:
    tokenizer = TOKENIZERS[model_type]
    spec = tokenizer.spec
    pieces = [tokenizer._processor.id_to_piece(index) for index in range(spec["vocab_size"])]
    assert [index for index in range(len(pieces)) if tokenizer._processor.is_control(index)] == [spec["end_id"]]
    assert [index for index in range(len(pieces)) if tokenizer._processor.is_unknown(index)] == [spec["unk_id"]]
    assert len(set(pieces)) == len(pieces)


@each_type
def test_names_of_control_symbols_in_text_are_text(model_type: str) -> None:
    tokenizer = TOKENIZERS[model_type]
    (window,) = tokenizer.windows("the </s> <s> <pad> man")
    assert window.tolist().count(END_ID) == 1
    assert window[-1] == END_ID


SCRIPTS = [
    "the \U0001f469\u200d\U0001f680 saw a \U0001f30d!",
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd",
    "\u0645\u0631\u062d\u0628\u0627, 123",
    "\u97f3\u697d\u306f\u697d\u3057\u3044",
    "na\u00efve caf\u00e9",
    "and/or a, b; c | d\\e \"f\" 'g'",
    "<s> </s> <unk> <pad> <sep> [MASK] \u2047",
]


@each_type
@pytest.mark.parametrize("normalization", ["nfkc", "identity"])
def test_every_script_and_whatever_looks_like_a_symbol_comes_back(model_type: str, normalization: str) -> None:
    tokenizer = fit_on([*SCRIPTS, *sentences(20)], model_type=model_type, normalization=normalization)
    for sentence in SCRIPTS:
        (window,) = tokenizer.windows(sentence)
        assert window.tolist().count(END_ID) == 1
        expected = tokenizer.normalize(sentence)
        if model_type == "word":
            expected = expected.replace("</s>", "<unk>")  # sentencepiece lets no word of that name in
        assert tokenizer.join([window]) == expected


def fit_on(corpus: list[str], **options: Any) -> SentencePieceTokenizer:
    return SentencePieceTokenizer.fit(corpus, **{"vocab_size": 300, "max_length": 200, **options})


@each_type
def test_one_line_is_enough_to_fit_on(model_type: str) -> None:
    tokenizer = fit_on(["the old man saw nobody."], model_type=model_type)
    assert tokenizer.join(tokenizer.windows("the old man saw nobody.")) == "the old man saw nobody."


def test_one_thread_fits_whatever_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sentencepiece's vocabulary depends on its number of threads, which is 16 unless it is told."""
    told: dict[str, Any] = {}
    train = sentencepiece.SentencePieceTrainer.train

    def noted(**options: Any) -> None:
        told.update(options)
        train(**options)

    monkeypatch.setattr(sentencepiece.SentencePieceTrainer, "train", noted)
    fit()
    assert told["num_threads"] == 1


def test_words_are_split_at_spaces_alone_and_unknown_ones_are_not_merged() -> None:
    corpus = ["the <unk> said <unk> <unk> .", "n't the <unk> of $ N million", "the the said"] * 3
    tokenizer = SentencePieceTokenizer.fit(corpus, vocab_size=50, max_length=10, model_type="word")
    words = {word for line in corpus for word in line.split()} - {"<unk>"}
    assert tokenizer.spec["vocab_size"] == len(words) + 2
    for line in corpus:
        (window,) = tokenizer.windows(line)
        assert len(window) == len(line.split()) + 1
        assert (window == tokenizer.spec["unk_id"]).sum() == line.split().count("<unk>")
        assert tokenizer.join([window]) == line
    (window,) = tokenizer.windows("the zebra quagga said")
    assert tokenizer.join([window]) == "the <unk> <unk> said"


def test_the_vocabulary_of_words_is_the_most_frequent_ones() -> None:
    draw = random.Random(0)
    corpus = [" ".join(draw.choices("abcdefgh", weights=range(8, 0, -1), k=20)) for _ in range(50)]
    counts = Counter(word for line in corpus for word in line.split())
    tokenizer = SentencePieceTokenizer.fit(corpus, vocab_size=6, max_length=30, model_type="word")
    kept = {word for word in counts if tokenizer.encode(word) != [UNK_ID, END_ID]}
    assert kept == {word for word, _ in counts.most_common(4)}


def test_a_word_has_its_place_however_rare_its_letters() -> None:
    tokenizer = fit_on([*["the old man"] * 3000, "\u97f3\u697d \U0001f30d na\u00efve"], model_type="word")
    assert UNK_ID not in tokenizer.encode("na\u00efve \U0001f30d \u97f3\u697d")


def test_words_are_counted_exactly_in_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(1)
    corpus = [" ".join(f"w{int(draw.paretovariate(0.5))}" for _ in range(20)) for _ in range(100)]
    counts = Counter(word for line in corpus for word in line.split())
    expected = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    for most in (5, 40, 10_000):  # different words in memory
        monkeypatch.setattr(fitting, "MOST_WORDS", most)
        assert fitting.frequent_words(corpus, 10**6) == expected
        assert fitting.frequent_words(corpus, 7) == expected[:7]


def test_no_line_is_left_out_of_fitting_for_a_sign_that_the_trainer_keeps_to_itself() -> None:
    for model_type in MODEL_TYPES:
        tokenizer = fit_on([*sentences(30), "zyx \u2585 \t zyx"], model_type=model_type)
        assert UNK_ID not in tokenizer.encode("zyx")


def test_fitting_twice_gives_the_same_bytes() -> None:
    for model_type in MODEL_TYPES:
        assert fit(model_type)._processor.serialized_model_proto() == (
            TOKENIZERS[model_type]._processor.serialized_model_proto()
        )


@pytest.mark.parametrize("model_type", ["unigram", "bpe", "word"])
def test_a_vocabulary_too_high_for_the_text_becomes_what_there_is(model_type: str) -> None:
    tokenizer = fit(model_type, vocab_size=50_000)
    assert tokenizer.spec["vocab_size"] < 5_000
    assert (
        tokenizer.join(tokenizer.windows("nobody saw my sister by the river.")) == "nobody saw my sister by the river."
    )


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_a_vocabulary_too_small_is_told_what_would_fit(model_type: str) -> None:
    with pytest.raises(ValueError, match=r"vocab_size must be at least \d+ for the different characters") as caught:
        fit(model_type, vocab_size=8)
    assert str(caught.value).endswith("got 8")
    needed = next(int(word) for word in str(caught.value).split() if word.isdigit())
    assert fit(model_type, vocab_size=needed + 2).spec["vocab_size"] <= needed + 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be an int of at least 3, got 0"),
        ({"vocab_size": "8000"}, "vocab_size must be an int of at least 3, got '8000'"),
        ({"max_length": 1}, "max_length must be an int of at least 2, got 1"),
        ({"model_type": "wordpiece"}, "model_type must be one of unigram, bpe, char, word, got 'wordpiece'"),
        ({"normalization": "nfd"}, "normalization must be one of nfkc, nfkc_lowercase, identity, got 'nfd'"),
        ({"character_coverage": 2}, "character_coverage must be between 0.9 and 1, got 2"),
        (
            {"model_type": "word", "character_coverage": 0.95},
            "a character_coverage of 0.95 is of no use to a vocabulary",
        ),
        ({"model_type": "word", "byte_fallback": True}, "byte_fallback is of no use to a vocabulary of whole words"),
    ],
)
def test_a_wrong_option_is_named_with_its_value_and_bound(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SentencePieceTokenizer.fit(sentences(10), **{"vocab_size": 60, "max_length": 20, **options})


@pytest.mark.parametrize("corpus", [[], [""], ["  ", "\t"]])
@each_type
def test_a_corpus_without_text_is_refused(corpus: list[str], model_type: str) -> None:
    with pytest.raises(ValueError, match="no text to fit a tokenizer on"):
        SentencePieceTokenizer.fit(corpus, vocab_size=60, max_length=20, model_type=model_type)


def test_long_lines_take_part_in_fitting() -> None:
    rare = "zyx " * 40_000
    tokenizer = SentencePieceTokenizer.fit([*sentences(50), rare], vocab_size=80, max_length=20)
    assert UNK_ID not in tokenizer.encode("zyx")
    assert UNK_ID in TOKENIZERS["unigram"].encode("zyx")


@each_type
def test_a_saved_tokenizer_is_the_same_after_loading_and_pickling(model_type: str, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS[model_type]
    tokenizer.save(tmp_path)
    for copy in (load_codec(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert isinstance(copy, SentencePieceTokenizer)
        assert (copy.options, copy.spec) == (tokenizer.options, tokenizer.spec)
        assert [copy.encode(line) for line in sentences(20)] == [tokenizer.encode(line) for line in sentences(20)]


@pytest.mark.parametrize("kept", [0, 1, 1000])
def test_an_empty_or_damaged_model_is_refused_on_loading(kept: int, tmp_path: Path) -> None:
    TOKENIZERS["unigram"].save(tmp_path)
    model = (tmp_path / MODEL_FILE).read_bytes()
    (tmp_path / MODEL_FILE).write_bytes(model[:kept])
    with pytest.raises(ValueError, match=r"tokenizer\.model cannot be used: the sentencepiece model is"):
        load_codec(tmp_path)


def test_a_missing_or_foreign_file_is_refused_on_loading(tmp_path: Path) -> None:
    TOKENIZERS["unigram"].save(tmp_path)
    (tmp_path / MODEL_FILE).unlink()
    with pytest.raises(ValueError, match="holds no readable tokenizer"):
        load_codec(tmp_path)
    (tmp_path / MODEL_FILE).touch()
    (tmp_path / "codec.json").write_text(json.dumps({"codec": "Other", "options": {}}))
    with pytest.raises(ValueError, match="holds a 'Other', not a SentencePieceTokenizer"):
        SentencePieceTokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("sentence", "message"),
    [
        ("", "'' holds no text"),
        (" \t\n ", "holds no text"),
        ("half \ud800 a pair", "is no Unicode text"),
        ("the old man " * 100, r"'the old man the old man .*\.\.\.' has \d+ tokens, max_length is 400"),
        ("x" * 10_000_000, "10,000,000 characters, too many for max_length"),
    ],
)
def test_a_sentence_that_cannot_be_a_window_is_refused_with_the_reason(sentence: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        TOKENIZERS["unigram"].windows(sentence)
    assert len(str(caught.value)) < 200


def test_a_nul_is_no_end_of_the_sentence() -> None:
    tokenizer = TOKENIZERS["unigram"]
    (window,) = tokenizer.windows("the old\0man")
    assert tokenizer.join([window]).endswith("man")


@pytest.mark.parametrize(
    ("normalization", "expected"),
    [("nfkc", "The fine man"), ("nfkc_lowercase", "the fine man"), ("identity", "The \ufb01ne man")],
)
def test_normalization_is_the_one_that_was_chosen(normalization: str, expected: str) -> None:
    tokenizer = SentencePieceTokenizer.fit(
        ["The \ufb01ne man", "the fine old man"] * 9,
        vocab_size=40,
        max_length=30,
        normalization=normalization,
    )
    assert tokenizer.normalize("  The \ufb01ne\tman ") == expected
    assert tokenizer.join(tokenizer.windows("  The \ufb01ne\tman ")) == expected


EXACT = {
    model_type: fit(model_type, vocab_size=330, normalization="identity", byte_fallback=True)
    for model_type in ("unigram", "bpe", "char")
}
ODD_TEXTS = [
    "  two  spaces   and more ",
    "\U0001f469\u200d\U0001f680 \U0001f1e9\U0001f1ea \u05e9\u05dc\u05d5\u05dd \u200fe\u0301\u0308 \ufb01",
    "\u2581 \u2581the\u2581 \u2585 \u2047 <0x41> <unk> </s>",
    "\ttab \x0b \x1c \x85 \u2028 \u00a0 \u3000\r",
    "nul \0 \ufeff \x1b[2J \U0010ffff \ue000",
    " ",
    "\n",
]


@pytest.mark.parametrize("model_type", EXACT)
@settings(deadline=None, max_examples=200)
@given(text=st.text(min_size=1, max_size=60) | st.sampled_from(ODD_TEXTS))
def test_with_bytes_any_string_comes_back_exactly_and_nothing_is_unknown(model_type: str, text: str) -> None:
    tokenizer = EXACT[model_type]
    (window,) = tokenizer.windows(text)
    assert UNK_ID not in window
    assert tokenizer.join([window]) == tokenizer.normalize(text) == text


def test_without_bytes_the_same_strings_do_not_come_back() -> None:
    """The guard above can fail: a vocabulary of characters alone loses what it has not seen, and white space."""
    tokenizer = fit("char", normalization="identity")
    assert not any(tokenizer.join(tokenizer.windows(text)) == text for text in ODD_TEXTS if text.strip())


@pytest.mark.parametrize("model_type", EXACT)
def test_a_first_word_is_spelled_as_any_other(model_type: str) -> None:
    tokenizer = EXACT[model_type]
    assert tokenizer.encode("the old the old")[:-1] == 2 * tokenizer.encode("the old")[:-1]


@pytest.mark.parametrize("model_type", EXACT)
@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_bytes_that_spell_no_character_show_as_marks_and_encode_again(model_type: str, data: st.DataObject) -> None:
    tokenizer = EXACT[model_type]
    ids = data.draw(st.lists(st.integers(2, 258), min_size=1, max_size=20))  # nearly all of them bytes
    sentence = tokenizer.join([torch.tensor(ids)])
    if sentence:
        assert tokenizer.join(tokenizer.windows(sentence)) == sentence
    assert tokenizer.sizes(torch.tensor(ids))["word"] == len(sentence.split()) + 1


def test_a_torn_character_is_one_mark() -> None:
    tokenizer = EXACT["char"]
    ids = tokenizer.encode("a\u97f3b")
    first = next(place for place, index in enumerate(ids) if tokenizer._processor.is_byte(index))
    assert tokenizer.join([torch.tensor([*ids[: first + 1], *ids[first + 3 :]])]) == "a\ufffdb"


def test_bytes_below_a_normalization_spell_what_it_leaves() -> None:
    tokenizer = fit("unigram", vocab_size=330, byte_fallback=True)
    (window,) = tokenizer.windows("the \ufb01ne \u97f3  man")
    assert UNK_ID not in window
    assert tokenizer.join([window]) == "the fine \u97f3 man"


@pytest.mark.parametrize("model_type", EXACT)
def test_an_exact_tokenizer_is_one_after_loading_and_reads_lines_as_they_are(model_type: str, tmp_path: Path) -> None:
    EXACT[model_type].save(tmp_path)
    copy = load_codec(tmp_path)
    assert isinstance(copy, SentencePieceTokenizer)
    assert [copy.join(copy.windows(text)) for text in ODD_TEXTS] == ODD_TEXTS
    (tmp_path / "lines.txt").write_bytes(b" a  b \r\n \nc\xe2\x80\xa8d\n")
    assert copy.read(f"@{tmp_path / 'lines.txt'}") == [" a  b ", "", "c\u2028d"]
    copy.write("a \n b\u2028", tmp_path / "item.txt")
    assert copy.read(f"@{tmp_path / 'item.txt'}") == ["a   b\u2028"]


@pytest.mark.parametrize("model_type", EXACT)
def test_a_vocabulary_with_too_little_room_for_the_bytes_says_so(model_type: str) -> None:
    with pytest.raises(ValueError, match=r"vocab_size must be at least \d+ for the .*256 bytes.*got 200$"):
        fit(model_type, vocab_size=200, byte_fallback=True)


def test_sizes_count_the_end_as_a_token_and_as_a_word() -> None:
    tokenizer = TOKENIZERS["unigram"]
    (window,) = tokenizer.windows("the old man saw nobody.")
    filled = torch.cat([window, torch.tensor([-1, -1])])
    assert tokenizer.sizes(window) == tokenizer.sizes(filled) == {"token": len(window), "word": 6}


def test_score_counts_the_places_of_the_truth() -> None:
    truth = [torch.tensor([5, 6, 7, 1]), torch.tensor([8, 1, -1, -1])]
    guess = [torch.tensor([5, 9, 7]), torch.tensor([8, 1, -1, -1])]
    assert TOKENIZERS["unigram"].score(truth, guess) == {"accuracy": 4 / 6, "exact_match": 0.5}
    assert TOKENIZERS["unigram"].score(truth, truth) == {"accuracy": 1.0, "exact_match": 1.0}


def test_a_sentence_or_a_file_of_them_is_read(tmp_path: Path) -> None:
    tokenizer = TOKENIZERS["unigram"]
    path = tmp_path / "a, b.txt"  # sentencepiece itself would take it for two files
    path.write_bytes("\ufeffone\r\n\r\ntwo \u2028 three\n".encode())
    assert tokenizer.read("one, two") == ["one, two"]
    assert tokenizer.read(f"@{path}") == ["one", "", "two \u2028 three"]
    tokenizer.write("one", tmp_path / "item.txt")
    assert tokenizer.read(f"@{tmp_path / 'item.txt'}") == ["one"]
    assert tokenizer.preview(["one\nmore", "two"]).text == "one more\ntwo"


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file"), (b"\xff\xfe\x00", "not UTF-8"), (b"\n \n", "holds no sentences")],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "lines.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"lines\.txt.*{reason}"):
        TOKENIZERS["unigram"].read(f"@{path}")


def test_prepared_text_comes_back_and_repeats_are_left_out(tmp_path: Path) -> None:
    lines = sentences(120)
    source = write_lines(tmp_path / "a, b.txt", [*lines, *(f"  {line} " for line in lines[:7]), "", " "])
    report = prepare_text(source, tmp_path / "data", vocab_size=60, max_length=100)
    split = read_back(tmp_path / "data")
    assert sorted(line for part in split.values() for line in part) == sorted(lines)
    assert report.rejected == {"repeats an earlier sentence": 7, "empty line": 2}
    assert report.seen_in_train == {"train": 0, "valid": 0, "test": 0}
    assert all(split.values())


def test_the_tokenizer_knows_train_alone(tmp_path: Path) -> None:
    write_lines(tmp_path / "source" / "train.txt", sentences(60))
    write_lines(tmp_path / "source" / "test.txt", ["qqq", "zzz"])
    write_lines(tmp_path / "source" / "valid.txt", ["xxx jjj"])
    prepare_text(tmp_path / "source", tmp_path / "data", vocab_size=60)
    for split in ("valid", "test"):
        dataset = WindowDataset(tmp_path / "data", split)
        assert all(UNK_ID in dataset[i] for i in range(len(dataset)))


def test_a_published_split_stays_exactly_as_it_is(tmp_path: Path) -> None:
    parts = {"train": sentences(30), "valid": sentences(40)[28:33], "test": [*sentences(40)[33:], "nobody saw nobody."]}
    parts["train"] += parts["train"][:5]
    parts["test"] += [parts["test"][0], parts["train"][0]]
    for split, lines in parts.items():
        write_lines(tmp_path / "source" / f"{split}.txt", lines)
    report = prepare_text(tmp_path / "source", tmp_path / "data", vocab_size=60, max_length=100)
    assert read_back(tmp_path / "data") == parts
    assert report.seen_in_train == {"train": 0, "valid": 2, "test": 1}


def test_two_preparations_give_the_same_fingerprint_whatever_the_engine(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "lines.txt", sentences(100))
    prints = []
    for name, options in (("a", {}), ("b", {"engine": "loky", "jobs": 2}), ("c", {"seed": 1})):
        prepare_text(source, tmp_path / name, vocab_size=60, **options)
        prints.append(read_manifest(tmp_path / name)["fingerprint"])
    assert prints[0] == prints[1] != prints[2]


def test_hostile_lines_are_rejected_by_rule_and_the_rest_is_kept(tmp_path: Path) -> None:
    lines = [line.encode() for line in sentences(60)]
    hostile = [b"caf\xe9 au lait", b"x" * 10_000_000, b"word " * 2_100, b"the old man " * 30, b"", b"\xed\xa0\x80"]
    path = tmp_path / "lines.txt"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join([*lines[:30], *hostile, *lines[30:]]))
    report = prepare_text(path, tmp_path / "data", vocab_size=60, max_length=64)
    assert report.rejected == {
        "not UTF-8": 2,
        "longer than 10,000 characters": 2,
        "longer than 64 tokens": 1,
        "empty line": 1,
    }
    assert sorted(line for part in read_back(tmp_path / "data").values() for line in part) == sorted(sentences(60))
    names = [json.loads(line)["name"] for line in (tmp_path / "data" / "rejected.jsonl").read_text().splitlines()]
    assert sorted(names) == [f"lines.txt:{number}" for number in range(31, 37)]


def test_a_line_that_fills_the_disk_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    with path.open("wb") as file:
        file.write("\n".join([*sentences(30), ""]).encode())
        for _ in range(50):
            file.write(b"x" * 2**20)
        file.write("\n".join(["", *sentences(40)[30:]]).encode())
    digest, most = hashlib.sha256(), 40_000
    tracemalloc.start()
    with path.open("rb") as file:
        lengths = [(len(line), length) for line, length in _lines(file, most, digest)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert lengths[30] == (most, 50 * 2**20 + 1)
    assert all(kept == length for kept, length in lengths[:30] + lengths[31:])
    assert digest.hexdigest() == hashlib.sha256(path.read_bytes()).hexdigest()
    assert peak < 5 * 2**20
    report = prepare_text(path, tmp_path / "data", vocab_size=60, max_length=100)
    assert (report.kept, report.rejected) == (40, {"longer than 10,000 characters": 1})


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_text_of_wide_characters_is_refused_and_not_learnt_with_its_zeros(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "lines.txt").write_bytes("\n".join(sentences(30)).encode(encoding))
    with pytest.raises(ValueError, match=r"every line of .*lines\.txt was rejected \(\d+ x holds a NUL character"):
        prepare_text(tmp_path / "lines.txt", tmp_path / "data")


def test_a_file_that_cannot_be_opened_is_rejected_and_the_rest_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lines(tmp_path / "source" / "a.txt", sentences(30))
    closed = write_lines(tmp_path / "source" / "sub" / "b.txt", sentences(9))
    opened = Path.open

    def refuse(path: Path, *arguments: Any, **options: Any) -> Any:
        if path == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    report = prepare_text(tmp_path / "source", tmp_path / "data", vocab_size=60, max_length=100)
    assert (report.kept, report.rejected) == (30, {"cannot be read": 1})
    (row,) = map(json.loads, (tmp_path / "data" / "rejected.jsonl").read_text().splitlines())
    assert row == {"name": "sub/b.txt", "rule": "cannot be read", "detail": "Permission denied"}


def test_lines_of_files_with_one_name_are_told_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_lines(tmp_path / "source" / folder / "x.txt", [*sentences(20, seed=ord(folder)), ""])
    prepare_text(tmp_path / "source", tmp_path / "data", vocab_size=60, max_length=100)
    rows = [json.loads(line) for line in (tmp_path / "data" / "rejected.jsonl").read_text().splitlines()]
    assert [row["name"] for row in rows if row["rule"] == "empty line"] == ["a/x.txt:21", "b/x.txt:21"]


def test_min_length_leaves_short_sentences_out(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "lines.txt", [*sentences(30), "no", "the"])
    report = prepare_text(source, tmp_path / "data", model_type="word", min_length=4)
    assert report.rejected == {"shorter than 4 tokens": 2}


def test_a_source_without_sentences_is_an_error_that_names_the_rule(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "lines.txt", ["", " "])
    with pytest.raises(ValueError, match=r"every line of .*lines\.txt was rejected \(2 x empty line\)"):
        prepare_text(source, tmp_path / "data")
    with pytest.raises(ValueError, match=r"no such file or folder: .*nowhere"):
        prepare_text(tmp_path / "nowhere", tmp_path / "data")
    with pytest.raises(ValueError, match="at least 3 different items"):
        prepare_text(write_lines(tmp_path / "two.txt", ["one", "two"]), tmp_path / "data")
    assert not (tmp_path / "data").exists()
