"""Decoding strategies against brute force: every sequence of a tiny decoder, every token of a known distribution."""

import itertools
import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from seqvae.models import decoding, lstm
from seqvae.models.conv import conv
from seqvae.models.decoding import Beam, Found, Greedy, Strategy, Temperature, TopK, TopP, search
from seqvae.models.lstm import DecoderState, LSTMDecoder

KNOWN = torch.tensor([0.15, 0.5, 0.05, 0.3])


def tiny(*, late: float = 0.0, **options: Any) -> LSTMDecoder:
    """Return a decoder whose next token depends strongly on z and on the past."""
    torch.manual_seed(0)
    sizes = {"latent_dim": 3, "embedding_dim": 4, "encoder_hidden_dim": 5, "hidden_dim": 6}
    _, decoder = lstm(**{"vocab_size": 4, "max_length": 4, **sizes, **options})
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(5.0)
        decoder.output.bias[1] -= late  # so much less likely is the end
    return decoder.eval()


def find(decoder: LSTMDecoder, z: Tensor, beam: Beam) -> Found:
    facts = {"max_length": decoder.max_length, "end_id": decoder.end_id, "unk_id": decoder.unk_id}
    return search(decoder.step, decoder.start(z), beam, batch=len(z), device=z.device, **facts)  # type: ignore[arg-type]


def every_ended(decoder: LSTMDecoder, vocab_size: int) -> list[list[int]]:
    """Return every sequence that ends in time and holds no unknown token."""
    words = [token for token in range(vocab_size) if token not in (decoder.end_id, decoder.unk_id)]
    return [[*row, 1] for n in range(decoder.max_length) for row in itertools.product(words, repeat=n)]


def padded(rows: list[list[int]]) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows])


@pytest.mark.parametrize("unk_id", [None, 0])
@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0, 2.0])
def test_a_beam_as_wide_as_everything_finds_the_best_sequence(unk_id: int | None, penalty: float) -> None:
    decoder = tiny(late=2.0, end_id=1, unk_id=unk_id)
    rows = every_ended(decoder, 4)
    z = 4 * torch.randn(16, 3)
    found = find(decoder, z, Beam(len(rows), penalty))
    lengths = torch.tensor([float(len(row)) for row in rows])
    winners = []
    for latent, tokens, log_prob in zip(z, found.tokens, found.log_prob, strict=True):
        nats = decoder.log_prob(padded(rows), latent.expand(len(rows), -1))
        best = int((nats / lengths**penalty).argmax())
        assert tokens[tokens >= 0].tolist() == rows[best]
        torch.testing.assert_close(log_prob, nats[best])
        winners.append(rows[best])
    assert len({tuple(row) for row in winners}) > 3  # the rows of the batch do not all agree


def test_a_length_penalty_finds_longer_sequences() -> None:
    decoder, z = tiny(end_id=1, max_length=8), torch.randn(64, 3)
    lengths = [float((find(decoder, z, Beam(8, penalty)).tokens >= 0).sum()) for penalty in (0.0, 1.0, 3.0)]
    assert lengths[0] < lengths[1] < lengths[2]


def test_without_an_end_the_best_sequence_of_the_length_is_found() -> None:
    decoder, z = tiny(max_length=3), torch.randn(8, 3)
    every = torch.tensor(list(itertools.product(range(4), repeat=3)))
    for latent, tokens in zip(z, find(decoder, z, Beam(64)).tokens, strict=True):
        assert torch.equal(tokens, every[decoder.log_prob(every, latent.expand(64, -1)).argmax()])


@pytest.mark.parametrize("options", [{}, {"end_id": 1}, {"end_id": 1, "unk_id": 0}, {"num_layers": 2}])
def test_a_beam_of_width_one_is_greedy(options: dict[str, Any]) -> None:
    decoder = tiny(vocab_size=7, max_length=12, **options)
    z = 8 * torch.randn(64, 3)
    greedy = decoder.sample(z, strategy=Greedy())
    assert len(greedy.unique(dim=0)) > 8
    assert torch.equal(decoder.sample(z, strategy=Beam(1)), greedy)


@pytest.mark.parametrize("width", [1, 3, 8])
def test_a_score_is_the_likelihood_of_its_sequence(width: int) -> None:
    decoder = tiny(vocab_size=7, max_length=9, end_id=1, unk_id=0)
    z = torch.randn(32, 3)
    found = find(decoder, z, Beam(width, 0.5))
    torch.testing.assert_close(decoder.log_prob(found.tokens, z), found.log_prob)


@pytest.mark.parametrize("strategy", [Beam(5), Beam(5, 1.0), TopK(3), TopP(0.9), Temperature(1.5)])
def test_what_is_written_ends_once_and_holds_nothing_unreadable(strategy: Strategy | Beam) -> None:
    decoder = tiny(vocab_size=7, max_length=9, end_id=1, unk_id=0)
    rows = decoder.sample(torch.randn(64, 3), strategy=strategy)
    assert rows.shape[1] <= 9
    assert (rows[:, -1] >= 0).any()  # no column that nobody wrote in
    for row in rows:
        tokens = row[row >= 0]
        assert tokens[-1] == 1
        assert (tokens[:-1] > 1).all()
        assert (row[len(tokens) :] == -1).all()


def test_rows_that_have_ended_are_no_longer_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, z = tiny(end_id=1, max_length=6), torch.randn(32, 3)
    rows: list[int] = []
    step = decoder.step

    def counting(token: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        rows.append(len(token))
        return step(token, state)

    monkeypatch.setattr(decoder, "step", counting)
    tokens = decoder.sample(z, strategy=Temperature(), generator=torch.Generator().manual_seed(0))
    assert rows == (tokens >= 0).sum(0).tolist()
    assert rows[0] == 32 > rows[-1] > 0


def test_tokens_chosen_some_rows_at_a_time_are_those_chosen_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, z = tiny(), torch.randn(7, 3)

    def drawn() -> Tensor:
        return decoder.sample(z, strategy=TopP(0.9), generator=torch.Generator().manual_seed(0))

    at_once = drawn()
    monkeypatch.setattr(decoding, "CACHED", 2 * 4)  # two rows of four logits
    assert torch.equal(drawn(), at_once)


def test_the_rows_of_a_beam_do_not_depend_on_their_company() -> None:
    decoder = tiny(vocab_size=7, max_length=9, end_id=1)
    z = 2 * torch.randn(16, 3)
    together = decoder.sample(z, strategy=Beam(4))
    for row, latent in zip(together, z, strict=True):
        assert torch.equal(row[row >= 0], decoder.sample(latent[None], strategy=Beam(4))[0])


class _Told(NamedTuple):
    """A state for a decoder told token by token: what each row has written."""

    written: Tensor

    def select(self, rows: Tensor) -> "_Told":
        return _Told(self.written[rows])


def test_a_search_goes_on_while_a_longer_sequence_may_still_be_better() -> None:
    first, then = torch.tensor([0.3, 0.45, 0.25]).log(), torch.tensor([0.999, 0.0005, 0.0005]).log()

    def step(token: Tensor, state: _Told) -> tuple[Tensor, _Told]:
        return torch.where(token[:, None] < 0, first, then), _Told(torch.cat([state.written, token[:, None]], 1))

    def best(penalty: float) -> list[int]:
        start = _Told(torch.empty(1, 0, dtype=torch.long))
        facts = {"batch": 1, "max_length": 4, "end_id": 1, "unk_id": None, "device": torch.device("cpu")}
        tokens: list[int] = search(step, start, Beam(2, penalty), **facts).tokens[0].tolist()  # type: ignore[arg-type]
        return tokens

    assert best(0.0) == [1]  # log 0.45
    assert best(1.0) == [0, 0, 0, 1]  # log 0.3 / 4, though log 0.3 is the less after one token


def test_a_beam_stops_when_every_row_is_settled() -> None:
    decoder = tiny(max_length=50, end_id=1)
    steps = 0
    step = decoder.step

    def counted(token: Tensor, state: Any) -> Any:
        nonlocal steps
        steps += 1
        return step(token, state)

    decoder.step = counted  # type: ignore[method-assign]
    decoder.sample(torch.randn(4, 3), strategy=Beam(4))
    assert steps > 2
    with torch.no_grad():
        decoder.output.bias[1] = 100.0
    steps = 0
    assert decoder.sample(torch.randn(4, 3), strategy=Beam(4)).shape == (4, 1)
    assert steps == 1


def test_a_length_penalty_needs_sequences_of_several_lengths() -> None:
    with pytest.raises(ValueError, match=r"length_penalty is for sequences that end by themselves, got 1.0"):
        tiny().sample(torch.randn(1, 3), strategy=Beam(2, 1.0))


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (TopK(1), [0, 1, 0, 0]),
        (TopK(2), [0, 5 / 8, 0, 3 / 8]),
        (TopK(4), [0.15, 0.5, 0.05, 0.3]),
        (TopK(99), [0.15, 0.5, 0.05, 0.3]),
        (TopK(2, temperature=0.5), [0, 25 / 34, 0, 9 / 34]),
        (TopP(0.01), [0, 1, 0, 0]),
        (TopP(0.49), [0, 1, 0, 0]),
        (TopP(0.51), [0, 5 / 8, 0, 3 / 8]),
        (TopP(0.79), [0, 5 / 8, 0, 3 / 8]),
        (TopP(0.81), [15 / 95, 50 / 95, 0, 30 / 95]),
        (TopP(1.0), [0.15, 0.5, 0.05, 0.3]),
        (TopP(0.9, temperature=0.5), [0, 25 / 34, 0, 9 / 34]),  # squares: 0.69 + 0.25
        (TopP(0.6, temperature=0.5), [0, 1, 0, 0]),
    ],
    ids=str,
)
def test_draws_have_the_probabilities_of_the_tokens_that_are_left(strategy: Strategy, expected: list[float]) -> None:
    logits = (KNOWN.log() + 3.0).expand(100_000, -1)
    drawn = strategy(logits, torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    assert ((shares > 0) == (torch.tensor(expected) > 0)).all()
    torch.testing.assert_close(shares, torch.tensor(expected, dtype=torch.float32), atol=0.006, rtol=0.0)


@pytest.mark.parametrize("strategy", [TopK(4), TopP(1.0)])
def test_a_token_that_must_not_be_chosen_is_never_among_the_likeliest(strategy: Strategy) -> None:
    logits = torch.tensor([-math.inf, 0.0, -math.inf, 1.0]).expand(1000, -1)
    assert set(strategy(logits, None).tolist()) == {1, 3}


@pytest.mark.parametrize("strategy", [TopK(3), TopP(0.9), Beam(2)])
def test_pixels_have_no_next_token(strategy: Strategy | Beam) -> None:
    _, decoder = conv(image_shape=(1, 8, 8), levels=2, latent_dim=2, width=2, features=4)
    with pytest.raises(ValueError, match=f"pixels are independent given z: {type(strategy).__name__} decoding"):
        decoder.sample(torch.zeros(1, 2), strategy=strategy)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TopK(0), "top-k must be a positive int, got 0"),
        (lambda: TopK(True), "top-k must be a positive int, got True"),
        (lambda: TopK(3, 0.0), "temperature must be positive, got 0.0"),
        (lambda: TopP(0.0), "top-p must be above 0 and at most 1, got 0.0"),
        (lambda: TopP(1.1), "top-p must be above 0 and at most 1, got 1.1"),
        (lambda: TopP(float("nan")), "top-p must be above 0 and at most 1, got nan"),
        (lambda: TopP(0.5, -1.0), "temperature must be positive, got -1.0"),
        (lambda: Beam(0), "beam width must be a positive int, got 0"),
        (lambda: Beam(2, -1.0), "length_penalty must be 0 or more, got -1.0"),
        (lambda: Beam(2, float("nan")), "length_penalty must be 0 or more, got nan"),
    ],
)
def test_a_number_out_of_its_range_is_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
