"""The quality of sampled sentences: n-grams counted by hand, sacrebleu itself, and language models that are known."""

import json
import logging
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sacrebleu
import torch

from seqvae.cli import main
from seqvae.data import ngrams
from seqvae.data.dataset import WindowDataset
from seqvae.data.ngrams import bleu, distinct, self_bleu
from seqvae.harness import quality as harness_quality
from seqvae.harness.config import Trained, load
from seqvae.harness.quality import check, negative_log_likelihood, quality
from seqvae.harness.scoring import perplexity
from seqvae.models import lstm
from seqvae.priors import StandardNormal
from seqvae.vae import VAE
from tests.helpers.worlds import Run, World, train_tiny

GetRun = Callable[[str], Run]
GetWorld = Callable[[str], World]
Capture = pytest.CaptureFixture[str]

SENTENCES = ["the cat saw the dog .", "the cat saw a ring .", "her son hid the bread ."]


@pytest.fixture
def _without_sacrebleu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    ngrams._sacrebleu.cache_clear()
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    yield
    ngrams._sacrebleu.cache_clear()


@pytest.fixture(scope="module")
def language_model(get_world: GetWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny language model of the text world."""
    return train_tiny(get_world("text"), tmp_path_factory.mktemp("lm") / "run", "model=lstm_lm").path


def sentences_of(trained: Trained, root: Path, split: str) -> list[str]:
    dataset = WindowDataset(root, split)
    return [trained.codec.join([dataset[place]]) for place in range(len(dataset))]


def test_distinct_is_the_share_of_different_ngrams() -> None:
    sentences = ["a b a b", "a b c", ""]
    assert distinct(sentences, 1) == 3 / 7
    assert distinct(sentences, 2) == 3 / 5  # ab ba ab, ab bc
    assert distinct(sentences, 3) == 3 / 3  # aba bab, abc
    assert distinct(sentences, 5) == 0.0


def test_bleu_is_that_of_sacrebleu() -> None:
    guesses = ["the cat saw the dog.", "a cat saw a ring.", "the king"]
    assert bleu(guesses, SENTENCES) == pytest.approx(sacrebleu.corpus_bleu(guesses, [SENTENCES]).score)
    assert bleu(SENTENCES, SENTENCES) == pytest.approx(100.0)
    assert bleu(["the cat"], ["the cat"]) == pytest.approx(100.0)  # it has no 4-grams
    assert bleu(["a <unk> b"], ["a < unk > b"]) == pytest.approx(100.0)
    assert bleu(["a <unk> b"], ["a < unk > b"], tokenized=True) != pytest.approx(100.0)


def test_self_bleu_is_the_mean_bleu_against_all_others() -> None:
    expected = [sacrebleu.sentence_bleu(one, [other for other in SENTENCES if other != one]).score for one in SENTENCES]
    assert self_bleu(SENTENCES) == pytest.approx(sum(expected) / 3)
    assert self_bleu([SENTENCES[0]] * 4) == pytest.approx(100.0)
    with pytest.raises(ValueError, match="compares sentences with each other, got 1"):
        self_bleu(SENTENCES[:1])


@pytest.mark.usefixtures("_without_sacrebleu")
def test_without_sacrebleu_there_is_no_bleu_and_one_line_says_how_to_get_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert bleu(SENTENCES, SENTENCES) is None
        assert self_bleu(SENTENCES) is None
    assert caplog.messages == ['there is no BLEU without sacrebleu; get it with: pip install "seqvae[metrics]"']


@pytest.mark.usefixtures("_without_sacrebleu")
def test_an_evaluation_without_sacrebleu_lacks_only_the_column(get_run: GetRun, capsys: Capture) -> None:
    command = ["evaluate", str(get_run("text").path), "--json"]
    assert main(command) == 0
    without = json.loads(capsys.readouterr().out)["reconstruction"]["free-running"]
    assert without.keys() == {"accuracy", "exact_match"}


def test_an_evaluation_has_the_bleu_of_text_alone(run: Run, capsys: Capture) -> None:
    assert main(["evaluate", str(run.path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["reconstruction"]
    assert all(("bleu" in row) == (run.world.experiment == "text") for row in rows.values())


def test_bleu_of_a_reconstruction_is_that_of_its_sentences(get_run: GetRun) -> None:
    trained = load(get_run("text").path)
    root = get_run("text").world.root
    dataset = WindowDataset(root, "train")
    truth, guesses = [dataset[0], dataset[1]], [dataset[1], dataset[1]]
    sentences = sentences_of(trained, root, "train")
    expected = sacrebleu.corpus_bleu([sentences[1]] * 2, [sentences[:2]], force=True).score
    assert trained.codec.evaluation_score(truth, guesses)["bleu"] == pytest.approx(expected)


def uniform(vocab_size: int) -> VAE:
    encoder, decoder = lstm(
        vocab_size=vocab_size, max_length=10, end_id=1, hidden_dim=4, embedding_dim=4, language_model=True
    )
    torch.nn.init.zeros_(decoder.output.weight)
    torch.nn.init.zeros_(decoder.output.bias)
    return VAE(encoder, decoder, StandardNormal(0)).eval()


def test_a_uniform_model_gives_every_token_the_log_of_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = [torch.tensor([*range(2, 2 + length), 1]) for length in (5, 1, 7, 1, 3)]
    expected = torch.tensor([float(len(window)) for window in windows]).double() * math.log(11)
    for budget in (1, 12, 4096):  # however they are cut into batches
        monkeypatch.setattr(harness_quality, "MOST_TOKENS", budget)
        nats = negative_log_likelihood(uniform(11), windows)
        torch.testing.assert_close(nats, expected, rtol=1e-6, atol=0.0)


def test_a_perplexity_beyond_all_floats_is_infinite() -> None:  # as of Chinese, whose sentences are single words
    assert perplexity(12.0, 4) == pytest.approx(math.exp(3.0))
    with pytest.raises(OverflowError):
        math.exp(1600.0 / 2)
    assert perplexity(1600.0, 2) == math.inf


def test_training_sentences_are_as_good_as_themselves(
    get_run: GetRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = get_run("text")
    trained = load(run.path)
    real = sentences_of(trained, run.world.root, "train")
    found = quality(trained, [*real, "", *real[:2]], run.world.root, tmp_path, steps=3)
    assert "there are 54 training sentences: as many samples are measured" in caplog.messages
    assert found.rows["samples"] == found.rows["training sentences"]
    assert found.rows["samples"]["in_training_data"] == found.rows["samples"]["unique"] == 1.0
    assert found.facts["without_text"] == 1
    assert found.facts["self_bleu_sentences"] == 3  # as many as the smallest set has
    assert found.rows["test split"]["self_bleu"] == pytest.approx(
        self_bleu(sentences_of(trained, run.world.root, "test"))
    )
    test = sentences_of(trained, run.world.root, "test")
    words = sum(len(sentence.split()) for sentence in test)
    assert found.rows["test split"]["mean_words"] == pytest.approx(words / len(test))
    assert found.rows["test split"]["in_training_data"] == 0.0
    row = found.rows["samples"]  # judged by the model whose reverse perplexity is theirs
    test_row = found.rows["test split"]
    assert test_row["forward_nll"] == row["reverse_nll"]
    assert test_row["forward_perplexity"] == pytest.approx(
        math.exp(test_row["forward_nll"] * len(test) / (words + len(test)))
    )


def test_the_command_says_what_the_language_model_gives(
    get_run: GetRun, language_model: Path, tmp_path: Path, capsys: Capture
) -> None:
    run = str(get_run("text").path)
    command = ["quality", run, "-n", "12", "--lm", str(language_model), "--lm-steps", "2"]
    assert main([*command, "--json", "--keep", str(tmp_path / "kept")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"]["samples"]["sentences"] == found["rows"]["training sentences"]["sentences"] <= 12
    assert found["facts"]["judge"].startswith(str(language_model))
    assert load(tmp_path / "kept" / "samples" / "run").vae.latent_dim == 0
    assert main(["evaluate", str(language_model), "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    row = found["rows"]["test split"]
    assert row["forward_nll"] == pytest.approx(metrics["nll"], rel=1e-5)
    assert row["forward_perplexity"] == pytest.approx(metrics["perplexity"], rel=1e-5)
    assert main([*command, "--json", "--keep", str(tmp_path / "kept")]) == 2
    assert "File exists" in capsys.readouterr().err
    assert main(command) == 0
    table = capsys.readouterr().out
    line = next(line for line in table.splitlines() if line.startswith("reverse_perplexity"))
    assert line.split()[1:] == [
        f"{found['rows'][name]['reverse_perplexity']:.6g}" for name in ("samples", "training sentences")
    ] + ["-"]


def test_what_cannot_judge_is_refused(
    get_run: GetRun, get_world: GetWorld, language_model: Path, tmp_path: Path
) -> None:
    trained = load(get_run("text").path)
    check(trained, load(language_model))
    with pytest.raises(ValueError, match=r"quality is that of sentences; .* is a model of the MelodyTokenizer's items"):
        check(load(get_run("melody").path))
    with pytest.raises(ValueError, match="has 4 latent dimensions, so that its NLL is only bounded"):
        check(trained, trained)
    other = train_tiny(get_world("melody"), tmp_path / "other", "model.language_model=true")
    with pytest.raises(ValueError, match="was trained on another dataset"):
        check(trained, load(other.path))
    with pytest.raises(ValueError, match="0 of 2 samples hold text"):
        quality(trained, ["", " "], get_run("text").world.root, tmp_path)
