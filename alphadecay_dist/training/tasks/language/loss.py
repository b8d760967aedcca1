"""The loss of a language model without the logits of a whole batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

IGNORE = -100  # the label of padding
LOGITS_AT_ONCE = 2**25  # 128 MiB in fp32


class LossHead(nn.Linear):
    """The projection to the vocabulary, and the loss of what it predicts.

    torch.nn.functional.linear_cross_entropy does the same in pieces, but returns the sum in bf16 for bf16
    inputs: 2 % off over a thousand tokens.
    """

    def forward(  # type: ignore[override]
        self, hidden: Tensor, targets: Tensor, scale: float = 1.0, cap: float | None = None
    ) -> Tensor:
        """The summed loss.

        Args:
            hidden: (n, h).
            targets: (n,) int64; ``IGNORE`` is left out.
            scale: factor of the logits.
            cap: c of the logits' c * tanh(logits / c); None without.

        Returns:
            The fp32 sum of the cross entropies, a scalar.
        """
        return _SummedLoss.apply(hidden, self.weight, self.bias, targets, scale, cap)


class _SummedLoss(torch.autograd.Function):
    """Cross entropy of ``hidden @ weight.T``, some rows at a time; gradients are computed on the way.

    Computing them in the backward would need the logits again: as much work as the head's forward.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scale: float,
        cap: float | None,
    ) -> Tensor:
        """Loss, and the gradients where one is wanted."""
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        rows = max(1, LOGITS_AT_ONCE // weight.shape[0])
        learning = any(ctx.needs_input_grad[:3])
        of_hidden = torch.empty_like(hidden) if learning else None
        of_weight = torch.zeros_like(weight) if learning else None
        of_bias = torch.zeros_like(bias) if learning and bias is not None else None
        for start in range(0, len(hidden), rows):
            piece, wanted = hidden[start : start + rows], targets[start : start + rows]
            raw = functional.linear(piece, weight, bias)  # (rows, vocabulary)
            logits = _shaped(raw.float(), scale, cap)
            logs = logits.log_softmax(-1)
            total += functional.nll_loss(logs, wanted, ignore_index=IGNORE, reduction="sum")
            if of_hidden is not None and of_weight is not None:
                # The softmax less one at the target, and nothing where the label is padding. Not a bool:
                # that would be converted for each logit.
                known = (wanted != IGNORE).unsqueeze(1).to(logs.dtype)
                slope = logs.exp_().scatter_add_(1, wanted.clamp_min(0).unsqueeze(1), -known).mul_(known)
                slope = _slope_of_shape(slope, logits, scale, cap).to(raw.dtype)
                of_hidden[start : start + rows] = slope @ weight
                of_weight += slope.T @ piece
                if of_bias is not None:
                    of_bias += slope.sum(0)
        ctx.save_for_backward(of_hidden, of_weight, of_bias)
        return total

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients, times the loss's own."""
        found = (None if own is None else own * slope.to(own.dtype) for own in ctx.saved_tensors)
        return (*found, None, None, None)


def _shaped(logits: Tensor, scale: float, cap: float | None) -> Tensor:
    """The logits as the architecture has them."""
    if scale != 1:
        logits = logits * scale
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _slope_of_shape(slope: Tensor, shaped: Tensor, scale: float, cap: float | None) -> Tensor:
    """The gradient of raw logits from that of the shaped ones."""
    if cap is not None:
        slope = slope * (1 - (shaped / cap).square())
    return slope if scale == 1 else slope * scale


def balance_loss(router: Sequence[Tensor], labels: Tensor, chosen: int) -> Tensor:
    """The experts' load-balancing loss of each sequence (arXiv 2101.03961, equations 4 to 6).

    Each is weighted by the number of its targets, as its token losses are. Over all tokens of a batch, as
    transformers takes it, it would depend on how many ranks and micro-batches share them. With one sequence
    both are the same.

    Args:
        router: a layer each, (b * s, experts): the logits of the router.
        labels: (b, s), IGNORE for padding, which is left out.
        chosen: experts a token.

    Returns:
        The fp32 sum, a scalar.
    """
    known = (labels != IGNORE).float()  # (b, s)
    logits = torch.stack([own.view(*labels.shape, -1) for own in router]).float()  # (layers, b, s, experts)
    shares = logits.softmax(-1)
    taken = torch.zeros_like(shares).scatter_(-1, shares.topk(chosen, -1).indices, 1.0)
    rows = known.sum(1).clamp_min(1) * len(router)
    used = torch.einsum("lbse,bs->be", taken, known) / rows[:, None]
    given = torch.einsum("lbse,bs->be", shares, known) / rows[:, None]
    targets = (labels[:, 1:] != IGNORE).sum(1)
    return (logits.shape[-1] * (used * given).sum(-1) * targets).sum()
