"""What sampled sentences are worth: copies, repeats, variety, and what language models say of them.

Forward perplexity is what a language model of real text gives the samples: how much like text they are, each by
itself. Reverse perplexity is what a language model of the samples gives real text (Zhao et al., 2018): how much of
the text they cover, all together. Everything stands beside the same numbers of as many real sentences.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from seqvae.data.batching import stack
from seqvae.data.codec import Codec
from seqvae.data.dataset import WindowDataset
from seqvae.data.ngrams import distinct, self_bleu
from seqvae.data.preparation import Outcome, Record, prepare
from seqvae.evaluation import mean_and_error, score_examples
from seqvae.harness.config import Trained, load
from seqvae.harness.run import configuration, train
from seqvae.harness.scoring import open_split, perplexity, random_subset
from seqvae.vae import VAE

log = logging.getLogger(__name__)

SELF_BLEU_SENTENCES = 500  # as in Texygen (Zhu et al., 2018)
MOST_TOKENS = 4096  # of sentences that a language model reads at once
VALIDATIONS = 5  # of a language model's training, which keeps its best weights


class Quality(NamedTuple):
    """The numbers of the samples, of as many training sentences and of the test split, and how they were found."""

    rows: dict[str, dict[str, float]]  # what was measured -> metric -> value
    facts: dict[str, Any]


class _Sentences(NamedTuple):
    """Sentences as text and as the tokens that encoding it gives."""

    texts: list[str]
    windows: list[Tensor]

    def words(self, codec: Codec[Any]) -> int:
        """Return how many words there are, the end of each sentence among them."""
        return sum(codec.sizes(window)["word"] for window in self.windows)


def of_sentences(codec: Codec[Any]) -> bool:
    """Return whether a codec's items are sentences, which language models can judge."""
    return codec.suffix is None and codec.spec.get("end_id") is not None


def check(trained: Trained, judge: Trained | None = None) -> None:
    """Raise ValueError for a model of anything but text, or a judge that is no exact language model of its data."""
    codec = trained.codec
    if not of_sentences(codec):
        raise ValueError(
            f"quality is that of sentences; {trained.path} is a model of the {type(codec).__name__}'s items"
        )
    if judge is None:
        return
    if judge.vae.latent_dim:
        raise ValueError(
            f"{judge.path} has {judge.vae.latent_dim} latent dimensions, so that its NLL is only bounded; a language "
            "model is trained with: seqvae train experiment=text model=lstm_lm"
        )
    if judge.config["data"]["fingerprint"] != trained.config["data"]["fingerprint"]:
        raise ValueError(f"{judge.path} was trained on another dataset than {trained.path} (their sha256 differs)")


def quality(
    trained: Trained,
    samples: Sequence[str],
    root: Path,
    folder: Path,
    *,
    judge: Trained | None = None,
    steps: int = 1000,
    seed: int = 0,
) -> Quality:
    """Return what sampled sentences are worth; language models are trained in `folder`, `steps` each.

    They have the trained model's own decoder and settings of experiment=text. Without a `judge` the one that was
    trained on as many real sentences gives the forward perplexity.

    Raises:
        ValueError: for what `check` refuses, a dataset that is not the model's own, or samples that hold no text.
    """
    check(trained, judge)
    codec = trained.codec
    splits = {
        split: open_split(root, split, trained.config["data"]["fingerprint"]) for split in ("train", "valid", "test")
    }
    sampled = _readable(codec, samples)
    without_text = len(samples) - len(sampled.texts)
    count = min(len(sampled.texts), len(splits["train"]))
    if count < len(sampled.texts):
        log.warning("there are %s training sentences: as many samples are measured", f"{count:,}")
        sampled = _Sentences(sampled.texts[:count], sampled.windows[:count])
    held_out = {split: list(_windows(splits[split])) for split in ("valid", "test")}
    places = random_subset(splits["train"], count, seed).tolist()
    real = _of_windows(codec, list(_windows(splits["train"], places)))
    test = _of_windows(codec, held_out["test"])
    sets = {"samples": sampled, "training sentences": real, "test split": test}
    wanted = {text for one in sets.values() for text in one.texts}  # all of a large corpus might not fit into memory
    known = {text for text in (codec.join([window]) for window in _windows(splits["train"])) if text in wanted}
    compared = min(SELF_BLEU_SENTENCES, *(len(one.texts) for one in sets.values()))  # it grows with their number
    rows: dict[str, dict[str, float]] = {}
    models: dict[str, VAE] = {}
    for name, sentences in sets.items():
        rows[name] = _counted(codec, sentences, known, compared, seed)
        if name == "test split":
            continue
        rows[name] |= _variety(sentences)
        log.info("a language model of the %s (%s of them)", name, f"{len(sentences.texts):,}")
        data = {"train": sentences.windows, **held_out}
        models[name] = _language_model(trained, data, folder / name.replace(" ", "-"), steps, seed)
        rows[name] |= _given("reverse", models[name], codec, test)
    forward = models["training sentences"] if judge is None else judge.vae
    for name, sentences in sets.items():
        rows[name] |= _given("forward", forward, codec, sentences)
    facts = {
        "without_text": without_text,
        "self_bleu_sentences": compared,
        "judge": None if judge is None else str(judge.path),
        "language_model_steps": steps,
    }
    return Quality(rows, facts)


def _readable(codec: Codec[Any], samples: Sequence[str]) -> _Sentences:
    """Return the samples as encoding their text gives them: what was cut unlike that is one sentence all the same."""
    windows: list[Tensor] = []
    for sentence in samples:
        try:
            windows += codec.windows(sentence)
        except ValueError:  # no text, or too long when cut anew
            continue
    if len(windows) < 2:
        raise ValueError(f"{len(windows)} of {len(samples)} samples hold text; there is nothing to measure")
    return _of_windows(codec, windows)


def _windows(dataset: WindowDataset, places: Iterable[int] | None = None) -> Iterator[Tensor]:
    return (dataset[place] for place in (range(len(dataset)) if places is None else places))


def _of_windows(codec: Codec[Any], windows: list[Tensor]) -> _Sentences:
    return _Sentences([codec.join([window]) for window in windows], windows)


def _counted(codec: Codec[Any], sentences: _Sentences, known: set[str], compared: int, seed: int) -> dict[str, float]:
    count = len(sentences.texts)
    row = {
        "sentences": float(count),
        "mean_words": sentences.words(codec) / count - 1,
        "in_training_data": sum(text in known for text in sentences.texts) / count,
    }
    chosen = np.random.default_rng(seed).permutation(count)[:compared]
    tokenized = codec.options.get("model_type") == "word"
    alike = self_bleu([sentences.texts[place] for place in chosen], tokenized=tokenized) if compared > 1 else None
    return row if alike is None else {**row, "self_bleu": alike}


def _variety(sentences: _Sentences) -> dict[str, float]:
    """Return what depends on how many sentences there are."""
    unique = len(set(sentences.texts)) / len(sentences.texts)
    return {"unique": unique, **{f"distinct_{n}": distinct(sentences.texts, n) for n in (1, 2, 3)}}


def _given(name: str, language_model: VAE, codec: Codec[Any], sentences: _Sentences) -> dict[str, float]:
    """Return what a language model gives sentences: nats a sentence, and perplexity with the word denominator."""
    nats = negative_log_likelihood(language_model, sentences.windows)
    mean, error = mean_and_error(nats)
    found = perplexity(float(nats.sum()), sentences.words(codec))
    return {f"{name}_nll": mean, f"{name}_nll_error": error, f"{name}_perplexity": found}


def negative_log_likelihood(language_model: VAE, windows: Sequence[Tensor]) -> Tensor:
    """Return -log p(x) of each window in nats, exact for a model without a latent."""
    device = next(language_model.parameters()).device
    order = sorted(range(len(windows)), key=lambda place: len(windows[place]))
    batches: list[list[int]] = [[]]
    for place in order:
        if (len(batches[-1]) + 1) * len(windows[place]) > MOST_TOKENS and batches[-1]:
            batches.append([])
        batches[-1].append(place)
    stacked = (stack([windows[place] for place in batch]).to(device) for batch in batches)
    nats = torch.empty(len(windows), dtype=torch.float64)
    nats[order] = -score_examples(language_model, stacked).elbo
    return nats


def _language_model(
    trained: Trained, splits: Mapping[str, Sequence[Tensor]], folder: Path, steps: int, seed: int
) -> VAE:
    """Train a language model with the trained model's decoder on a dataset made of these windows; return its best."""
    records = [
        Record(f"{split}:{place}", str(place), [window.numpy()], split)
        for split, windows in splits.items()
        for place, window in enumerate(windows)
    ]
    codec = trained.codec
    prepare(folder / "data", records, _kept, codec, kind="text", options=codec.options, seed=seed, drop_repeats=False)
    config = configuration(["experiment=text", "model=lstm_lm"])
    config.run_dir, config.seed, config.data.root = str(folder / "run"), seed, str(folder / "data")
    config.model = {**trained.config["model"], "language_model": True}
    config.trainer.max_steps, config.trainer.devices = steps, 1
    config.trainer.valid_every = config.trainer.save_every = math.ceil(steps / VALIDATIONS)
    train(config)
    return load(folder / "run").vae


def _kept(record: Record) -> Outcome:
    return record
