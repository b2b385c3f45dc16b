"""Tokens of several parts: one network, one latent, a softmax a part; and what carries them from disk to scores."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from seqvae.data.batching import stack, valid_loader
from seqvae.data.codec import strip
from seqvae.data.dataset import WindowDataset, read_manifest
from seqvae.data.preparation import Record, prepare
from seqvae.harness.scoring import evaluate
from seqvae.latent import decode
from seqvae.models import lstm
from seqvae.models.decoding import Beam, Greedy, Temperature, TopK, TopP
from seqvae.models.layers import TokenEmbedding, hide_tokens, lengths_of
from seqvae.models.lstm import LSTMDecoder
from seqvae.models.lstm_encoder import LSTMEncoder
from seqvae.priors import StandardNormal
from seqvae.vae import VAE
from tests.helpers.letters import Letters

SIZES = [3, 2, 4]
TINY: dict[str, Any] = {"latent_dim": 3, "embedding_dim": 4, "encoder_hidden_dim": 5, "hidden_dim": 6}


class Chords(Letters):
    """Windows of three letters side by side, of alphabets of their own."""

    @property
    def spec(self) -> dict[str, Any]:
        return {"vocab_size": SIZES, "max_length": 5, "end_id": None, "unk_id": None}

    def score(self, truth: Any, predicted: Any) -> dict[str, float]:
        equal = [bool((true == guess).all()) for true, guess in zip(truth, predicted, strict=True)]
        return {"exact": sum(equal) / len(equal)}


def tiny(**options: Any) -> tuple[LSTMEncoder, LSTMDecoder]:
    torch.manual_seed(0)
    encoder, decoder = lstm(**{"vocab_size": SIZES, "max_length": 5, **TINY, **options})
    assert isinstance(encoder, LSTMEncoder)
    return encoder.eval(), decoder.eval()


def windows(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.stack([torch.randint(size, (length,), generator=generator) for size in SIZES], -1) for length in lengths
    ]


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"tie_embeddings": True}, {"z_to_output": True}])
def test_likelihood_sums_to_one_over_every_sequence_of_every_part(options: dict[str, Any]) -> None:
    _, decoder = tiny(max_length=2, **options)
    elements = list(itertools.product(*map(range, SIZES)))
    x = torch.tensor(list(itertools.product(elements, repeat=2)))
    assert x.shape == (24**2, 2, 3)
    total = decoder.double().log_prob(x, torch.randn(1, 3).double().expand(len(x), -1)).exp().sum()
    assert total.item() == pytest.approx(1.0, abs=1e-12)


def test_the_log_likelihood_is_the_sum_of_the_parts_cross_entropies() -> None:
    _, decoder = tiny()
    x, z = stack(windows(5, 5)), torch.randn(2, 3)
    expected = torch.zeros(2)
    for part, logits in enumerate(decoder.logits(x, z).split(SIZES, -1)):
        expected -= F.cross_entropy(logits.transpose(1, 2), x[..., part], reduction="none").sum(1)
    torch.testing.assert_close(decoder.log_prob(x, z), expected)


def test_the_input_is_a_linear_layer_of_the_parts_one_hot_vectors_side_by_side() -> None:
    embedding = TokenEmbedding(SIZES, 4)
    x = stack(windows(5, 5))
    one_hot = torch.cat([F.one_hot(part, size) for part, size in zip(x.unbind(-1), SIZES, strict=True)], -1)
    torch.testing.assert_close(embedding(x), one_hot.float() @ embedding.weight)
    x[0, 2, 1] = -1  # a part that is hidden adds nothing
    one_hot[0, 2, 3:5] = 0
    torch.testing.assert_close(embedding(x), one_hot.float() @ embedding.weight)
    assert not embedding(torch.full((2, 1, 3), -1)).any()


def test_a_sum_of_embeddings_varies_as_one_embedding_does() -> None:
    torch.manual_seed(0)
    embedding = TokenEmbedding([100, 100, 100], 200)
    assert embedding(torch.randint(100, (1000, 3))).std().item() == pytest.approx(1.0, abs=0.02)


def test_perturbing_one_part_moves_only_the_logits_behind_it_and_those_of_every_part() -> None:
    _, decoder = tiny(num_layers=2)
    (x,), z = windows(5), torch.randn(1, 3)
    before = decoder.logits(x[None], z)
    for time, part in itertools.product(range(5), range(3)):
        changed = x.clone()
        changed[time, part] = (x[time, part] + 1) % SIZES[part]
        moved = (decoder.logits(changed[None], z) - before).abs()[0] > 0
        assert not moved[: time + 1].any()
        assert moved[time + 1 :].all()


@pytest.mark.parametrize("batch", [1, 2])
def test_stepping_gives_the_logits_of_the_whole_sequence(batch: int) -> None:
    _, decoder = tiny(num_layers=2)
    x, z = stack(windows(5, 5))[:batch], torch.randn(batch, 3)
    state, token, logits = decoder.start(z), torch.full((batch, 3), -1), []
    for time in range(5):
        step, state = decoder.step(token, state)
        logits.append(step)
        token = x[:, time]
    torch.testing.assert_close(torch.stack(logits, 1), decoder.logits(x, z))


@pytest.mark.parametrize("strategy", [None, TopK(1), TopP(1e-6), Temperature(1e-6)])
def test_the_likeliest_sequence_is_what_is_predicted_of_itself(strategy: Any) -> None:
    _, decoder = tiny()
    z = 3 * torch.randn(8, 3)
    written = decoder.sample(z, strategy=strategy)
    assert written.shape == (8, 5, 3)
    assert torch.equal(decoder.predict(written, z), written)
    assert len(written.unique(dim=0)) > 1


def test_parts_are_drawn_with_the_probabilities_the_likelihood_gives_them() -> None:
    _, decoder = tiny(max_length=1)
    elements = torch.tensor(list(itertools.product(*map(range, SIZES))))[:, None]
    z, draws = torch.randn(1, 3), 20_000
    expected = decoder.log_prob(elements, z.expand(len(elements), -1)).exp()
    written = decoder.sample(z.expand(draws, -1), strategy=Temperature(), generator=torch.Generator().manual_seed(0))
    found = (written[None] == elements[:, None]).all((2, 3))
    assert (found.float().mean(1) - expected).abs().max() < 4 * (0.25 / draws) ** 0.5


def test_a_beam_over_parts_is_refused() -> None:
    _, decoder = tiny()
    with pytest.raises(ValueError, match="a beam search needs tokens of one part, got 3"):
        decoder.sample(torch.randn(1, 3), strategy=Beam(2))
    assert decoder.sample(torch.randn(1, 3), strategy=Greedy()).shape == (1, 5, 3)


@pytest.mark.parametrize("pooling", ["final", "max"])
def test_neither_posterior_nor_likelihood_depends_on_what_fills_a_row(pooling: str) -> None:
    encoder, decoder = tiny(pooling=pooling)
    rows = windows(2, 5, 1)
    x, z = stack(rows), torch.randn(3, 3)
    torch.testing.assert_close(encoder(x).mean, torch.cat([encoder(row[None]).mean for row in rows]))
    alone = [decoder.log_prob(row[None], z[place : place + 1]) for place, row in enumerate(rows)]
    torch.testing.assert_close(decoder.log_prob(x, z), torch.cat(alone))
    predicted = [strip(row) for row in decoder.predict(x, z)]
    assert [tuple(row.shape) for row in predicted] == [(2, 3), (5, 3), (1, 3)]


def test_filling_and_stripping_are_inverse_and_lengths_are_counted_in_elements() -> None:
    rows = windows(2, 5, 1)
    x = stack(rows)
    assert x.shape == (3, 5, 3)
    assert lengths_of(x).tolist() == [2, 5, 1]
    assert all(torch.equal(strip(filled), row) for filled, row in zip(x, rows, strict=True))
    pixels = torch.zeros(1, 2, 2, dtype=torch.uint8)
    assert strip(pixels) is pixels


def test_word_dropout_hides_each_part_by_itself() -> None:
    torch.manual_seed(0)
    hidden = hide_tokens(torch.zeros(100, 100, 3, dtype=torch.long), 0.5) < 0
    assert hidden.float().mean((0, 1)).tolist() == pytest.approx([0.5] * 3, abs=0.03)
    assert hidden.all(-1).float().mean().item() == pytest.approx(0.125, abs=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": []}, r"vocab_size must be a positive int, or one for each of several parts, got \[\]"),
        ({"vocab_size": [90]}, r"vocab_size must be a positive int, or one for each of several parts, got \[90\]"),
        ({"vocab_size": [90, 0]}, "vocab_size must be a positive int, got 0"),
        ({"vocab_size": "abc"}, "vocab_size must be a positive int, got 'abc'"),
        ({"end_id": 1}, "elements of several parts have no end_id and no unk_id, got 1 and None"),
    ],
)
def test_the_builder_refuses_parts_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**options)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of windows of five elements in three parts."""
    made = [window.numpy() for window in windows(*[5] * 40)]
    path = tmp_path_factory.mktemp("chords") / "data"
    prepare(path, range(40), lambda n: Record(str(n), str(n), [made[n]]), Chords(), kind="chords", options={})
    return path


def test_windows_come_back_from_the_disk_in_parts(root: Path) -> None:
    dataset = WindowDataset(root, "train")
    assert read_manifest(root)["parts"] == 3
    assert set(dataset.lengths) == {5}
    wanted = {window.numpy().tobytes() for window in windows(*[5] * 40)}
    assert {dataset[place].numpy().tobytes() for place in range(len(dataset))} <= wanted
    assert dataset[0].dtype == torch.int64
    (batch, *_) = valid_loader(dataset, Chords(), batch_size=len(dataset))
    assert batch.x.shape == (len(dataset), 5, 3)


def test_an_evaluation_guesses_the_commonest_of_each_part(root: Path) -> None:
    vae = VAE(*tiny(), StandardNormal(latent_dim=3))
    dataset = WindowDataset(root, "train")
    seen: list[Tensor] = []

    class Watched(Chords):
        def score(self, truth: Any, predicted: Any) -> dict[str, float]:
            seen[:] = predicted  # the trivial guess comes last
            return super().score(truth, predicted)

    report = evaluate(vae, Watched(), dataset, importance_samples=2)
    columns = np.concatenate([dataset[place].numpy() for place in range(len(dataset))]).T
    assert seen[0].tolist() == [[int(np.bincount(column).argmax()) for column in columns]] * 5
    assert set(report.reconstruction) == {"given the true past", "free-running", "always the commonest"}
    assert report.metrics["nats_per_letter"] == pytest.approx(report.metrics["nll"] / 5)


def test_latents_decode_to_windows_of_parts() -> None:
    vae = VAE(*tiny(), StandardNormal(latent_dim=3))
    assert [tuple(window.shape) for window in decode(vae, torch.randn(2, 3))] == [(5, 3), (5, 3)]
