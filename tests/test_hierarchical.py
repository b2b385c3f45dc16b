"""The hierarchical decoder against brute force, its own steps and a core called bar by bar."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from seqvae.models import hierarchical
from seqvae.models.decoding import Beam, Temperature
from seqvae.models.hierarchical import HierarchicalDecoder
from seqvae.models.layers import past_of
from seqvae.models.lstm_encoder import LSTMEncoder

TINY: dict[str, Any] = {
    "latent_dim": 3,
    "embedding_dim": 4,
    "encoder_hidden_dim": 5,
    "conductor_dim": 7,
    "hidden_dim": 6,
    "segment_length": 2,
}
LAYERS = {"conductor_layers": 2, "num_layers": 2}


def tiny(**options: Any) -> tuple[LSTMEncoder, HierarchicalDecoder]:
    torch.manual_seed(0)
    encoder, decoder = hierarchical(**{"vocab_size": 3, "max_length": 4, **TINY, **options})
    return encoder.eval(), decoder.eval()


@pytest.mark.parametrize("length", [1, 2, 4, 5])
@pytest.mark.parametrize("options", [{}, LAYERS])
def test_likelihood_sums_to_one_over_every_sequence_of_the_length(options: dict[str, Any], length: int) -> None:
    _, decoder = tiny(max_length=5, **options)
    x = torch.tensor(list(itertools.product(range(3), repeat=length)))
    total = decoder.double().log_prob(x, torch.randn(1, 3).double().expand(len(x), -1)).exp().sum()
    assert total.item() == pytest.approx(1.0, abs=1e-12)


def bar_by_bar(decoder: HierarchicalDecoder, x: Tensor, z: Tensor) -> Tensor:
    """Return the logits as the paper has them: a plan a bar, a core begun anew with it, the last token carried over."""
    width, layers = decoder.conductor.hidden_size, decoder.conductor.num_layers
    states = torch.tanh(decoder.initial_state(z)).split(width, dim=1)
    state = torch.stack(states[1::2]), torch.stack(states[::2])  # h and c of every layer
    assert len(states) == 2 * layers
    logits = []
    for bar in past_of(x).split(decoder.segment_length, dim=1):
        plan, state = decoder.conductor(torch.ones(len(x), 1, 1), state)
        logits.append(decoder.core.logits(bar, plan[:, 0], bar))
    return torch.cat(logits, 1)


@pytest.mark.parametrize("length", [1, 3, 4, 6, 7])
@pytest.mark.parametrize("options", [{}, LAYERS])
def test_all_bars_at_once_are_one_bar_after_the_other(options: dict[str, Any], length: int) -> None:
    _, decoder = tiny(max_length=7, segment_length=3, **options)
    x, z = torch.randint(0, 3, (5, length)), torch.randn(5, 3)
    logits = decoder.logits(x, z)
    torch.testing.assert_close(logits, bar_by_bar(decoder, x, z))
    nats = torch.log_softmax(logits, -1).gather(-1, x.unsqueeze(-1)).sum((1, 2))
    torch.testing.assert_close(decoder.log_prob(x, z), nats)
    assert torch.equal(decoder.predict(x, z), logits.argmax(-1))


@pytest.mark.parametrize("batch", [1, 3])
def test_stepping_gives_the_logits_of_the_whole_sequence(batch: int) -> None:
    _, decoder = tiny(max_length=7, segment_length=3, **LAYERS)
    x, z = torch.randint(0, 3, (batch, 7)), torch.randn(batch, 3)
    state, token, logits = decoder.start(z), torch.full((batch,), -1), []
    for time in range(7):
        step, state = decoder.step(token, state)
        logits.append(step)
        token = x[:, time]
    torch.testing.assert_close(torch.stack(logits, 1), decoder.logits(x, z))


def test_a_token_is_known_to_the_rest_of_its_bar_and_through_a_bars_last_token_alone_to_the_next() -> None:
    _, decoder = tiny(max_length=9, segment_length=3, **LAYERS)
    x, z = torch.randint(0, 3, (2, 9)), torch.randn(2, 3)
    before = decoder.logits(x, z)
    reach = {0: (1, 2), 1: (2,), 2: (3, 4, 5), 3: (4, 5), 4: (5,), 5: (6, 7, 8), 6: (7, 8), 7: (8,), 8: ()}
    for time, moved in reach.items():
        changed = x.clone()
        changed[:, time] = (x[:, time] + 1) % 3
        differs = (decoder.logits(changed, z) - before).abs().amax((0, 2)) > 0
        assert tuple(differs.nonzero().flatten().tolist()) == moved


def test_the_plan_of_a_bar_reaches_both_states_of_every_layer_and_every_input_of_its_core() -> None:
    _, decoder = tiny(**LAYERS)
    z = torch.randn(2, 3)
    state = decoder.start(z)
    c0, h0, c1, h1 = torch.tanh(decoder.core.initial_state(state.core.z)).chunk(4, dim=-1)
    for got, expected in zip((*state.core.cell, *state.core.hidden), (c0, c1, h0, h1), strict=True):
        torch.testing.assert_close(got, expected)
    token = torch.tensor([1, 1])
    _, inside = decoder.step(token, state)
    assert torch.equal(inside.core.z, state.core.z)
    _, beyond = decoder.step(token, decoder.step(token, inside)[1])
    assert (beyond.core.z - state.core.z).abs().min() > 0  # the third token is the second bar's


def test_gradients_reach_every_parameter() -> None:
    encoder, decoder = tiny(encoder_layers=2, **LAYERS)
    x = torch.randint(0, 3, (8, 4))
    decoder.log_prob(x, encoder(x).rsample()[0]).sum().backward()
    for name, parameter in [*encoder.named_parameters(), *decoder.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_temperature_draws_from_the_models_own_distribution() -> None:
    _, decoder = tiny(max_length=3)
    z = torch.randn(1, 3).expand(40_000, -1)
    drawn = decoder.sample(z, strategy=Temperature(1.0), generator=torch.Generator().manual_seed(0))
    every = torch.tensor(list(itertools.product(range(3), repeat=3)))
    expected = decoder.log_prob(every, z[:27]).exp()
    counts = torch.bincount(drawn @ torch.tensor([9, 3, 1]), minlength=27) / 40_000
    torch.testing.assert_close(counts, expected, atol=0.01, rtol=0.0)


def test_a_wide_beam_finds_the_likeliest_of_all_sequences() -> None:
    _, decoder = tiny(max_length=4)
    z = 3 * torch.randn(4, 3)
    every = torch.tensor(list(itertools.product(range(3), repeat=4)))
    for row, latent in zip(decoder.sample(z, strategy=Beam(81)), z, strict=True):
        assert torch.equal(row, every[decoder.log_prob(every, latent.expand(81, -1)).argmax()])


def test_word_dropout_hides_whole_inputs_and_only_in_training() -> None:
    _, decoder = tiny(word_dropout=0.999)
    x, z = torch.randint(0, 3, (2, 4)), torch.randn(2, 3)
    reference = decoder.logits(x, z)
    hidden = decoder.logits(x, z, torch.full_like(x, -1))
    torch.testing.assert_close(decoder.train().logits(x, z), hidden)
    torch.testing.assert_close(decoder.eval().logits(x, z), reference)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segment_length": 0}, "segment_length must be a positive int, got 0"),
        ({"conductor_dim": "256"}, "conductor_dim must be a positive int, got '256'"),
        ({"conductor_layers": True}, "conductor_layers must be a positive int, got True"),
        ({"dropout": 1.0}, r"dropout must be a rate in \[0, 1\), got 1.0"),
        ({"posterior_gamma": 0}, "posterior_gamma must be a positive number or null, got 0"),
        ({"end_id": 1}, r"these end by themselves \(end_id 1\): use model=lstm"),
    ],
)
def test_what_it_cannot_be_built_of_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**options)
