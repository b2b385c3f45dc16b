"""The LSTM VAE against brute force, causality and its own parts."""

import itertools
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from seqvae.models import lstm
from seqvae.models.decoding import Greedy, Temperature
from seqvae.models.layers import LockedDropout, dropout_of
from seqvae.models.lstm import LSTMDecoder
from seqvae.models.lstm_encoder import LSTMEncoder

TINY: dict[str, Any] = {"latent_dim": 3, "embedding_dim": 4, "encoder_hidden_dim": 5, "hidden_dim": 6}


def tiny(**options: Any) -> tuple[LSTMEncoder, LSTMDecoder]:
    torch.manual_seed(0)
    encoder, decoder = lstm(**{"vocab_size": 4, "max_length": 3, **TINY, **options})
    assert isinstance(encoder, LSTMEncoder)
    return encoder.eval(), decoder.eval()


def padded(rows: list[list[int]]) -> Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows])


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"tie_embeddings": True}, {"z_to_output": True}])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_likelihood_sums_to_one_over_every_sequence_of_the_length(
    options: dict[str, Any], dtype: torch.dtype, error: float
) -> None:
    _, decoder = tiny(**options)
    x = torch.tensor(list(itertools.product(range(4), repeat=3)))
    total = decoder.to(dtype).log_prob(x, torch.randn(1, 3).to(dtype).expand(len(x), -1)).exp().sum()
    assert total.item() == pytest.approx(1.0, abs=error)


def test_likelihood_sums_to_one_over_every_sequence_that_ends_in_time() -> None:
    _, decoder = tiny(end_id=1, unk_id=0)
    rows = [[*words, 1] for n in range(3) for words in itertools.product((0, 2, 3), repeat=n)]
    z = torch.randn(1, 3).double()
    together = decoder.double().log_prob(padded(rows), z.expand(len(rows), -1))
    assert together.exp().sum().item() == pytest.approx(1.0, abs=1e-12)
    alone = torch.cat([decoder.log_prob(torch.tensor([row]), z) for row in rows])
    torch.testing.assert_close(together, alone)  # what fills a row is never scored


def test_perturbing_a_token_moves_only_the_logits_behind_it() -> None:
    _, decoder = tiny(max_length=6, num_layers=2)
    x, z = torch.randint(0, 4, (2, 6)), torch.randn(2, 3)
    before = decoder.logits(x, z)
    for time in range(6):
        changed = x.clone()
        changed[:, time] = (x[:, time] + 1) % 4
        moved = (decoder.logits(changed, z) - before).abs().amax((0, 2)) > 0
        assert not moved[: time + 1].any()
        assert moved[time + 1 :].all()


@pytest.mark.parametrize("batch", [1, 2])
def test_stepping_gives_the_logits_of_the_whole_sequence(batch: int) -> None:
    _, decoder = tiny(max_length=6, num_layers=2)
    x, z = torch.randint(0, 4, (batch, 6)), torch.randn(batch, 3)
    state, token, logits = decoder.start(z), torch.full((batch,), -1), []
    for time in range(6):
        step, state = decoder.step(token, state)
        logits.append(step)
        token = x[:, time]
    torch.testing.assert_close(torch.stack(logits, 1), decoder.logits(x, z))


def test_z_reaches_every_step_and_both_states_of_every_layer() -> None:
    _, decoder = tiny(num_layers=2)
    z = torch.randn(2, 3)
    state = decoder.start(z)
    c0, h0, c1, h1 = torch.tanh(decoder.initial_state(z)).chunk(4, dim=-1)
    for got, expected in zip((*state.cell, *state.hidden), (c0, c1, h0, h1), strict=True):
        torch.testing.assert_close(got, expected)
    other = decoder.step(torch.tensor([1, 1]), state._replace(z=z + 1))[0]
    assert (other - decoder.step(torch.tensor([1, 1]), state)[0]).abs().min() > 0


def written_out(weights: Any, inputs: Tensor, hidden: Tensor, cell: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return an LSTM layer's output at every time, and the last, as its equations say."""
    outputs = []
    for x in inputs.unbind(1):
        w_x, w_h, b_x, b_h = weights
        i, f, g, o = (x @ w_x.T + b_x + hidden @ w_h.T + b_h).chunk(4, dim=-1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        hidden = o.sigmoid() * cell.tanh()
        outputs.append(hidden)
    return outputs, hidden


def test_the_flat_model_is_musicvaes_written_out() -> None:
    """Roberts et al. (2018), and what an export to its own library relies on."""
    encoder, decoder = tiny(num_layers=2)
    x, z = torch.randint(0, 4, (2, 3)), torch.randn(2, 3)
    one_hot = F.one_hot(x, 4).float()
    # one bidirectional layer, the last states of both directions
    embedded, nothing = one_hot @ encoder.embedding.weight, torch.zeros(2, 5)
    forwards, backwards = encoder.lstm.all_weights
    _, last = written_out(forwards, embedded, nothing, nothing)
    _, first = written_out(backwards, embedded.flip(1), nothing, nothing)
    torch.testing.assert_close(encoder(x).mean, encoder.head.mean(torch.cat([last, first], -1)))
    # every layer's states from z, z in the first layer's inputs, the first token a zero vector
    c0, h0, c1, h1 = torch.tanh(decoder.initial_state(z)).chunk(4, dim=-1)
    past = torch.cat([torch.zeros(2, 1, 4), one_hot[:, :-1]], 1)
    inputs = torch.cat([past @ decoder.embedding.weight, z.unsqueeze(1).expand(-1, 3, -1)], -1)
    lower, _ = written_out(decoder.lstm.all_weights[0], inputs, h0, c0)
    upper, _ = written_out(decoder.lstm.all_weights[1], torch.stack(lower, 1), h1, c1)
    torch.testing.assert_close(
        decoder.logits(x, z), torch.stack(upper, 1) @ decoder.output.weight.T + decoder.output.bias
    )


def test_the_first_input_is_the_zero_vector() -> None:
    _, decoder = tiny()
    assert not decoder.embedding(torch.tensor([-1])).any()
    assert not tiny(tie_embeddings=True)[1].embedding(torch.tensor([-1])).any()


@pytest.mark.parametrize("pooling", ["final", "max"])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("layers", [1, 2])
def test_the_posterior_does_not_depend_on_what_fills_a_row(pooling: str, bidirectional: bool, layers: int) -> None:
    encoder, _ = tiny(pooling=pooling, bidirectional=bidirectional, encoder_layers=layers)
    rows = [[1, 2], [3, 0, 2, 1], [2]]
    together = encoder(padded(rows)).mean
    alone = torch.cat([encoder(torch.tensor([row])).mean for row in rows])
    torch.testing.assert_close(together, alone)


def test_the_final_state_of_the_backward_half_has_read_the_whole_sequence() -> None:
    encoder, _ = tiny(encoder_layers=2)
    embedded = encoder.embedding(torch.tensor([[1, 2, 3]]))
    outputs, _ = encoder.lstm(embedded)
    final = encoder._features(torch.tensor([[1, 2, 3]]))
    torch.testing.assert_close(final, torch.cat([outputs[:, -1, :5], outputs[:, 0, 5:]], -1))


def test_the_decoder_stays_unidirectional() -> None:
    assert not tiny(bidirectional=True)[1].lstm.bidirectional


def test_word_dropout_hides_whole_inputs_and_only_in_training() -> None:
    _, decoder = tiny(word_dropout=0.999)
    x, z = torch.randint(0, 4, (2, 3)), torch.randn(2, 3)
    reference = decoder.logits(x, z)
    hidden = decoder.logits(torch.full_like(x, -1), z)
    torch.testing.assert_close(decoder.train().logits(x, z), hidden)
    torch.testing.assert_close(decoder.eval().logits(x, z), reference)


def test_a_denoising_encoder_sees_hidden_tokens_in_training_alone_and_knows_how_long_the_row_is() -> None:
    for pooling in ("final", "max"):
        encoder, decoder = tiny(encoder_word_dropout=0.999, pooling=pooling)
        x, z = padded([[1, 2, 3], [2]]), torch.randn(2, 3)
        reference, likelihood = encoder(x).mean, decoder.log_prob(x, z)
        assert not torch.allclose(encoder.train()(x).mean, reference)
        torch.nn.init.zeros_(encoder.embedding.weight)
        torch.testing.assert_close(encoder(x).mean, encoder.eval()(x).mean)  # what is hidden is the zero vector
        torch.testing.assert_close(decoder.train().log_prob(x, z), likelihood)  # and still scored


@pytest.mark.parametrize("tied", [True, False])
def test_z_reaches_the_softmax_without_the_lstm(tied: bool) -> None:
    _, decoder = tiny(z_to_output=True, tie_embeddings=tied)
    x, z, other = torch.randint(0, 4, (2, 3)), torch.randn(2, 3), torch.randn(2, 3)
    for weight in (decoder.initial_state.weight, decoder.lstm.weight_ih_l0):
        assert isinstance(weight, Tensor)
        torch.nn.init.zeros_(weight)
    assert decoder.from_z is not None
    moved = decoder.logits(x, other) - decoder.logits(x, z)
    expected = (other - z) @ (decoder.output.weight @ decoder.from_z.weight).T
    torch.testing.assert_close(moved, expected.unsqueeze(1).expand_as(moved))


@pytest.mark.parametrize("locked", [True, False])
def test_locked_dropout_drops_the_same_features_at_every_time_of_a_sequence(locked: bool) -> None:
    torch.manual_seed(0)
    x, dropout = torch.randn(500, 5, 8), dropout_of(0.25, locked)
    dropped = dropout(x)
    kept = dropped != 0
    assert bool((kept == kept[:, :1]).all()) == locked
    assert not bool((kept == kept[:1]).all())  # every sequence has features of its own
    torch.testing.assert_close(dropped[kept], x[kept] / 0.75)
    assert kept.double().mean().item() == pytest.approx(0.75, abs=0.02)
    assert torch.equal(dropout.eval()(x), x)


def test_locked_dropout_stands_on_embeddings_and_outputs() -> None:
    encoder, decoder = tiny(dropout=0.5, locked_dropout=True)
    assert isinstance(encoder.dropout, LockedDropout)
    assert isinstance(decoder.dropout, LockedDropout)
    x, z = torch.ones(1, 3, dtype=torch.int64), torch.zeros(1, 3)
    seen: list[Tensor] = []
    decoder.dropout.register_forward_hook(lambda module, inputs, output: seen.append(output != 0))
    decoder.train().logits(x, z)
    assert [mask.shape[-1] for mask in seen] == [4, 6]
    assert all(torch.equal(mask[:, 1:], mask[:, 1:2].expand_as(mask[:, 1:])) for mask in seen)


def test_weight_drop_is_an_lstm_with_those_weights_left_out_and_only_in_training() -> None:
    _, decoder = tiny(weight_drop=0.5, num_layers=2)
    x, z = torch.randint(0, 4, (2, 3)), torch.randn(2, 3)
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    assert before.keys() == tiny(num_layers=2)[1].state_dict().keys()
    reference = decoder.logits(x, z)
    with mock.patch.object(
        F, "dropout", lambda weight, rate, *_: weight * (weight > 0) / (1 - rate) if rate else weight
    ):
        dropped = decoder.train().logits(x, z)
    dropped.sum().backward()
    for name, value in decoder.state_dict().items():
        assert torch.equal(value, before[name])
    torch.testing.assert_close(decoder.eval().logits(x, z), reference)
    for layer in (0, 1):
        weight = decoder.lstm.get_parameter(f"weight_hh_l{layer}")
        assert weight.grad is not None
        assert torch.equal(weight.grad != 0, weight > 0)
        with torch.no_grad():
            weight.mul_(2 * (weight > 0))
    torch.testing.assert_close(decoder.logits(x, z), dropped)


def test_predict_is_the_most_likely_token_given_the_true_past() -> None:
    _, decoder = tiny(end_id=1, max_length=5)
    x = padded([[2, 3, 1], [0, 1]])
    z = torch.randn(2, 3)
    expected = decoder.logits(x, z).argmax(-1)
    assert torch.equal(decoder.predict(x, z), torch.where(x >= 0, expected, -1))


def test_gradients_reach_every_parameter() -> None:
    encoder, decoder = tiny(num_layers=2, encoder_layers=2, z_to_output=True, weight_drop=0.5)
    x = torch.randint(0, 4, (8, 3))
    decoder.log_prob(x, encoder(x).rsample()[0]).sum().backward()
    for name, parameter in [*encoder.named_parameters(), *decoder.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_greedy_sampling_is_the_likeliest_next_token_each_time_and_stops_at_the_end() -> None:
    _, decoder = tiny(vocab_size=6, max_length=12, end_id=1, unk_id=0)
    z = 3 * torch.randn(64, 3)
    batch = decoder.sample(z)
    for row, latent in zip(batch, z, strict=True):
        alone = decoder.sample(latent[None])[0]
        tokens = row[row >= 0]
        assert torch.equal(tokens, alone)
        assert int(tokens[-1]) == 1
        assert not (tokens[:-1] <= 1).any()  # the end comes once, the unknown word never
        assert len(tokens) <= 12
        assert not (row[len(tokens) :] != -1).any()


def test_a_batch_stops_when_every_row_has_ended() -> None:
    _, decoder = tiny(max_length=50, end_id=1)
    with torch.no_grad():
        decoder.output.bias[1] = 100.0
    assert decoder.sample(torch.randn(4, 3)).shape == (4, 1)


def test_temperature_draws_from_the_models_own_distribution() -> None:
    _, decoder = tiny(max_length=2, vocab_size=3)
    z = torch.randn(1, 3).expand(40_000, -1)
    drawn = decoder.sample(z, strategy=Temperature(1.0), generator=torch.Generator().manual_seed(0))
    every = torch.tensor(list(itertools.product(range(3), repeat=2)))
    expected = decoder.log_prob(every, z[:9]).exp()
    counts = torch.bincount(drawn[:, 0] * 3 + drawn[:, 1], minlength=9) / 40_000
    torch.testing.assert_close(counts, expected, atol=0.01, rtol=0.0)


def test_a_low_temperature_is_greedy_and_seeds_repeat() -> None:
    _, decoder = tiny(max_length=8, vocab_size=6)
    z = torch.randn(16, 3)
    assert torch.equal(decoder.sample(z, strategy=Temperature(1e-4)), decoder.sample(z, strategy=Greedy()))
    draws = [
        decoder.sample(z, strategy=Temperature(1.0), generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_dim": "abc"}, "latent_dim must be a positive int, got 'abc'"),
        ({"hidden_dim": 0}, "hidden_dim must be a positive int, got 0"),
        ({"num_layers": True}, "num_layers must be a positive int, got True"),
        ({"posterior_gamma": 0}, "posterior_gamma must be a positive number or null, got 0"),
        ({"word_dropout": 1.0}, r"word_dropout must be a rate in \[0, 1\), got 1.0"),
        ({"encoder_word_dropout": -0.1}, r"encoder_word_dropout must be a rate in \[0, 1\), got -0.1"),
        ({"weight_drop": 1}, r"weight_drop must be a rate in \[0, 1\), got 1"),
        ({"locked_dropout": 1}, "locked_dropout must be true or false, got 1"),
        ({"z_to_output": "no"}, "z_to_output must be true or false, got 'no'"),
        ({"pooling": "mean"}, "pooling must be one of final, max, got 'mean'"),
        ({"bidirectional": "yes"}, "bidirectional must be true or false, got 'yes'"),
    ],
)
def test_a_persons_numbers_are_checked_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**options)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_none_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be positive"):
        Temperature(temperature)


def test_every_layer_starts_with_memories_of_all_lengths() -> None:
    encoder, decoder = lstm(vocab_size=5, max_length=32, hidden_dim=64, encoder_hidden_dim=64, num_layers=2)
    assert isinstance(encoder, LSTMEncoder)
    for network in (encoder.lstm, decoder.lstm):
        biases = {name: bias for name, bias in network.named_parameters() if name.startswith("bias_ih")}
        assert len(biases) == 2  # two directions; two layers
        for name, bias in biases.items():
            total = bias + network.get_parameter(name.replace("_ih_", "_hh_"))
            steps = total[64:128].exp()  # that a unit remembers
            assert 1 <= steps.min() < 4
            assert 28 < steps.max() <= 31
            torch.testing.assert_close(total[:64], -total[64:128])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cpu_and_gpu_agree() -> None:
    encoder, decoder = tiny(num_layers=2, end_id=1, unk_id=0, z_to_output=True)
    x, z = padded([[2, 3, 1], [3, 1]]), torch.randn(2, 3)
    here = encoder(x).mean, decoder.log_prob(x, z), decoder.sample(z)
    there = encoder.cuda()(x.cuda()).mean, decoder.cuda().log_prob(x.cuda(), z.cuda()), decoder.sample(z.cuda())
    for on_cpu, on_gpu in zip(here, there, strict=True):
        torch.testing.assert_close(on_cpu, on_gpu.cpu(), rtol=1e-3, atol=1e-4)
