"""What each token costs: the cross-entropy of a linear layer over a vocabulary, without all of its logits at once."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

CHUNK = 2**22  # logits computed at once: 16 MiB, which a CPU's last cache holds
CHUNK_ROWS = 256  # fewer rows make slow matrix products, however large the vocabulary
WORTHWHILE = 2**20  # logits: below, one pass over all of them costs no more
KEPT = 2**26  # logits whose gradient a CPU keeps from the forward to the backward pass: 256 MiB
SPARED = 2**28  # logits that another device computes at once: 1 GiB, and three times that in the backward pass


def token_nats(
    features: Float[Tensor, "rows features"],
    weight: Float[Tensor, "vocab features"],
    bias: Float[Tensor, " vocab"],
    targets: Int[Tensor, " rows"],
) -> Float[Tensor, " rows"]:
    """Return -log softmax(weight @ features + bias)[target] in nats of each row, and 0 where the target is -1.

    Large products are computed in chunks of rows, which saves memory everywhere and time on a CPU; no gradient of
    the gradient goes through them.
    """
    logits = len(features) * len(weight)
    bound = WORTHWHILE if features.device.type == "cpu" else SPARED
    # a lower precision needs autocast's own casts, and a compiler fuses what it can see
    plain = torch.is_autocast_enabled(features.device.type) or torch.compiler.is_compiling()
    if plain or logits <= bound or features.dtype not in (torch.float32, torch.float64):
        return F.cross_entropy(F.linear(features, weight, bias), targets, ignore_index=-1, reduction="none")
    scored = targets >= 0
    ragged = not bool(scored.all())
    if ragged:  # copying rows costs time, and batches of equal length are the rule
        rows = scored.nonzero().squeeze(1)
        features, targets = features.index_select(0, rows), targets[rows]
    keeps = torch.is_grad_enabled() and logits <= KEPT
    nats: Tensor = _TokenNats.apply(features, weight, bias, targets, keeps)  # type: ignore[no-untyped-call]
    return features.new_zeros(len(scored)).masked_scatter(scored, nats) if ragged else nats


class _TokenNats(torch.autograd.Function):
    """The loss of each row, whose gradient with respect to the row's logits is softmax(logits) - onehot(target).

    Up to KEPT logits that gradient is made where the logits are still in the cache and kept; what arrives from above
    is one number a row, so it scales rows of features. Beyond, it is made anew in the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, keeps: bool) -> Tensor:
        buffer = None if keeps else _buffer(features, weight)
        nats, kept = [], []
        for part, target in _chunks(weight, features, targets):
            logits = _logits(part, weight, bias, buffer)
            if keeps:
                nats.append(_to_gradient(logits, target))
                kept.append(logits)
            else:
                nats.append(logits.logsumexp(1) - logits.gather(1, target.unsqueeze(1)).squeeze(1))
        ctx.save_for_backward(features, weight, bias, targets, *kept)
        return torch.cat(nats)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # with create_graph; once_differentiable would let a constant gradient through
            raise RuntimeError("the loss in chunks has no gradient of its gradient (create_graph=True)")
        features, weight, bias, targets, *kept = ctx.saved_tensors
        needs_features, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        buffer = None if kept else _buffer(features, weight)
        of_features = []
        of_weight = torch.zeros_like(weight) if needs_weight else None
        of_bias = torch.zeros_like(bias) if needs_bias else None
        for place, (part, target, above) in enumerate(_chunks(weight, features, targets, gradient)):
            if kept:
                of_logits = kept[place]
            else:
                of_logits = _logits(part, weight, bias, buffer)
                _to_gradient(of_logits, target)
            if needs_features:
                of_features.append((of_logits @ weight).mul_(above.unsqueeze(1)))
            if of_weight is not None:
                of_weight.addmm_(of_logits.T, part * above.unsqueeze(1))
            if of_bias is not None:
                of_bias.addmv_(of_logits.T, above)
        return torch.cat(of_features) if needs_features else None, of_weight, of_bias, None, None


def _rows(weight: Tensor) -> int:
    return max(CHUNK_ROWS, CHUNK // len(weight))


def _buffer(features: Tensor, weight: Tensor) -> Tensor:
    """Return room for a chunk's logits, which every chunk uses again: fresh memory costs as much as a pass over it."""
    return features.new_empty(min(len(features), _rows(weight)), len(weight))


def _chunks(weight: Tensor, *columns: Tensor) -> Any:
    """Return the same rows of every column, a chunk at a time."""
    return zip(*(column.split(_rows(weight)) for column in columns), strict=True)


def _logits(features: Tensor, weight: Tensor, bias: Tensor, buffer: Tensor | None) -> Tensor:
    return torch.addmm(bias, features, weight.T, out=None if buffer is None else buffer[: len(features)])


def _to_gradient(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the nats of each row, and leave their gradient where the logits were."""
    target = targets.unsqueeze(1)
    truth, top = logits.gather(1, target), logits.amax(1, keepdim=True)
    total = logits.sub_(top).exp_().sum(1, keepdim=True)
    nats = top + total.log() - truth
    logits.div_(total).scatter_add_(1, target, torch.full_like(nats, -1.0))
    return nats.squeeze(1)
