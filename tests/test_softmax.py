"""The loss in chunks against PyTorch's own cross-entropy of a linear layer."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from seqvae.models import lstm, softmax
from seqvae.models.softmax import token_nats


@pytest.fixture(params=["kept", "made anew"])
def in_chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make chunks of three rows worthwhile, and keep the gradient of the logits or make it in the backward pass."""
    for name, value in {"WORTHWHILE": 0, "CHUNK": 0, "CHUNK_ROWS": 3}.items():
        monkeypatch.setattr(softmax, name, value)
    if request.param == "made anew":
        monkeypatch.setattr(softmax, "KEPT", 0)


def problem(dtype: torch.dtype = torch.float32) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """Return features, weight and bias for eight rows over a vocabulary of eleven, and the rows' targets."""
    torch.manual_seed(0)
    features, weight, bias = (2 * torch.randn(*shape, dtype=dtype) for shape in ((8, 5), (11, 5), (11,)))
    inputs = features.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()
    return inputs, torch.randint(0, 11, (8,))


def oracle(features: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(features, weight, bias), targets, ignore_index=-1, reduction="none")


def gradients(nats: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    weights = torch.linspace(-1, 2, len(nats), dtype=nats.dtype)  # as importance weights make them, row by row
    return torch.autograd.grad((nats * weights).sum(), inputs)


def is_in_chunks(nats: Tensor) -> bool:
    assert nats.grad_fn is not None
    return "_TokenNats" in f"{nats.grad_fn} {nats.grad_fn.next_functions}"


@pytest.mark.usefixtures("in_chunks")
@pytest.mark.parametrize("filling", [[], [1, 2, 7], list(range(8))], ids=["full", "ragged", "empty"])
def test_loss_and_gradients_are_those_of_cross_entropy(filling: list[int]) -> None:
    inputs, targets = problem()
    targets[filling] = -1
    nats, expected = token_nats(*inputs, targets), oracle(*inputs, targets)
    assert is_in_chunks(nats)
    torch.testing.assert_close(nats, expected, rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(gradients(nats, *inputs), gradients(expected, *inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("in_chunks")
def test_gradients_are_the_slopes_of_the_loss() -> None:
    inputs, targets = problem(dtype=torch.float64)
    assert is_in_chunks(token_nats(*inputs, targets))
    assert torch.autograd.gradcheck(lambda a, b, c: token_nats(a, b, c, targets), inputs)


@pytest.mark.usefixtures("in_chunks")
def test_logits_far_apart_cost_what_they_differ_by() -> None:
    features, bias = torch.ones(4, 1, requires_grad=True), torch.zeros(3)
    weight = torch.tensor([[0.0], [2000.0], [-2000.0]])
    nats = token_nats(features, weight, bias, torch.tensor([0, 1, 2, 0]))
    torch.testing.assert_close(nats, torch.tensor([2000.0, 0.0, 4000.0, 2000.0]))


@pytest.mark.usefixtures("in_chunks")
def test_without_gradients_nothing_is_kept_and_the_loss_is_the_same() -> None:
    inputs, targets = problem()
    expected = token_nats(*inputs, targets)
    with torch.no_grad():
        nats = token_nats(*inputs, targets)
    assert nats.grad_fn is None
    torch.testing.assert_close(nats, expected)


@pytest.mark.usefixtures("in_chunks")
def test_only_the_gradients_that_are_asked_for_are_made() -> None:
    (features, weight, bias), targets = problem()
    nats = token_nats(features, weight.detach(), bias.detach(), targets)
    (ours,) = gradients(nats, features)
    (theirs,) = gradients(oracle(features, weight, bias, targets), features)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.usefixtures("in_chunks")
def test_a_gradient_of_the_gradient_is_refused() -> None:
    (features, weight, bias), targets = problem()
    nats = token_nats(features, weight, bias, targets).sum()
    with pytest.raises(RuntimeError, match="no gradient of its gradient"):
        torch.autograd.grad(nats, features, create_graph=True)


@pytest.mark.usefixtures("in_chunks")
def test_under_autocast_the_loss_is_pytorchs_own() -> None:
    inputs, targets = problem()
    with torch.autocast("cpu", torch.bfloat16):
        nats, expected = token_nats(*inputs, targets), oracle(*inputs, targets)
    assert not is_in_chunks(nats)
    assert torch.equal(nats, expected)


@pytest.mark.usefixtures("in_chunks")
@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_a_decoder_scores_and_learns_as_by_all_its_logits(tie_embeddings: bool) -> None:
    torch.manual_seed(0)
    _, decoder = lstm(
        vocab_size=7, max_length=4, end_id=1, latent_dim=3, embedding_dim=4, hidden_dim=6, tie_embeddings=tie_embeddings
    )
    x = torch.tensor([[2, 3, 4, 1], [5, 1, -1, -1], [2, 2, 2, 2]])  # the last one cannot end in time
    z = torch.randn(3, 3)
    ours = decoder.log_prob(x, z)
    theirs = -oracle_of_logits(decoder.logits(x, z), x)
    assert ours[2] == -torch.inf
    torch.testing.assert_close(ours, theirs)
    parameters = list(decoder.parameters())
    for a, b in zip(
        torch.autograd.grad(ours[:2].sum(), parameters), torch.autograd.grad(theirs[:2].sum(), parameters), strict=True
    ):
        torch.testing.assert_close(a, b)


def oracle_of_logits(logits: Tensor, x: Tensor) -> Tensor:
    nats = F.cross_entropy(logits.flatten(0, 1), x.flatten(), ignore_index=-1, reduction="none")
    return nats.view(x.shape).sum(1)


@pytest.mark.usefixtures("in_chunks")
def test_filling_is_never_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    logits = softmax._logits

    def counting(features: Tensor, *arguments: Tensor | None) -> Tensor:
        rows.append(len(features))
        return logits(features, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(softmax, "_logits", counting)
    inputs, targets = problem()
    token_nats(*inputs, targets)
    assert rows == [3, 3, 2]
    rows.clear()
    targets[[0, 3, 4]] = -1
    token_nats(*inputs, targets)
    assert rows == [3, 2]
