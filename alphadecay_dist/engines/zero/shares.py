"""The shares of parameters under ZeRO, and what its step will multiply their gradients with.

Stages 1 to 3: after the last backward of an update this rank has the averaged gradients of the flat fp32
tensors that it steps, see ``zero/state.py``. They are whole before ``engine.step()``, which clips them. With
an offloaded optimizer they lie in the flat tensors' own ``grad``; else in lists of pieces, which DeepSpeed
joins to flat ones when it steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from alphadecay_dist.engines.shares import Share
from alphadecay_dist.engines.zero.state import ZeroState
from alphadecay_dist.errors import UserError
from alphadecay_dist.params.inventory import Weight
from alphadecay_dist.sharding.layout import Flat


def zero_shares(engine: Any, weights: Sequence[Weight]) -> Iterator[Share]:
    """The shares of all trained parameters at stages 1 to 3.

    Args:
        engine: after the backward at an accumulation boundary.
        weights: those that are tuned.

    Raises:
        UserError: the gradients are not there.
    """
    state, names = ZeroState(engine), {weight.parameter: weight.name for weight in weights}
    flats, gradients = state.flats(), _FlatGradients(engine.optimizer)
    for place in state.places():
        if place.index.numel and place.parameter.requires_grad:
            weight = flats[place.flat].detach().narrow(0, place.at, place.index.numel)
            gradient = gradients.of(place.flat, flats[place.flat])
            yield Share(names.get(place.parameter), weight, gradient.narrow(0, place.at, place.index.numel))


def gradient_pieces(engine: Any, weights: Sequence[Weight]) -> dict[str, tuple[Flat, Tensor | None]]:
    """This rank's piece of each weight's gradient at stages 1 to 3, by the weight's name.

    Args:
        engine: after the backward at an accumulation boundary.
        weights: whose gradients are wanted.

    Returns:
        Which elements of the flattened gradient it has, (n,), and these; None where it has none.

    Raises:
        UserError: the gradients are not there.
    """
    state, names = ZeroState(engine), {weight.parameter: weight.name for weight in weights}
    flats, gradients = state.flats(), _FlatGradients(engine.optimizer)
    found: dict[str, tuple[Flat, Tensor | None]] = {name: (Flat(0, 0), None) for name in names.values()}
    for place in state.places():
        if place.parameter in names and place.index.numel:
            whole = gradients.of(place.flat, flats[place.flat])
            piece = whole.narrow(0, place.at, place.index.numel).detach()
            found[names[place.parameter]] = place.index, piece
    return found


class _FlatGradients:
    """The gradient of each flat tensor; the last one is kept, for the places of one stand together."""

    def __init__(self, zero: Any) -> None:
        self._zero = zero
        self._last: tuple[int, Tensor] | None = None

    def of(self, number: int, flat: Tensor) -> Tensor:
        """The gradient of a flat tensor, (P,) or a little shorter: without the padding at its end."""
        if self._last is None or self._last[0] != number:
            self._last = (number, self._joined(number, flat))
        return self._last[1]

    def _joined(self, number: int, flat: Tensor) -> Tensor:
        if flat.grad is not None:
            return flat.grad
        pieces = self._zero.averaged_gradients.get(number)
        if pieces is None:
            raise UserError(
                "step(): DeepSpeed has no gradients yet; call it after engine.backward() of the last "
                "micro-batch and before engine.step()"
            )
        return pieces if isinstance(pieces, Tensor) else torch.cat([piece.reshape(-1) for piece in pieces])


def gradient_scale(engine: Any, norm: float) -> float:
    """What ``engine.step()`` will multiply the gradients with: clipping, and the loss scale undone.

    Args:
        engine: the engine.
        norm: of all gradients as they are now.
    """
    loss_scale = float(getattr(engine.optimizer, "loss_scale", 1.0))
    clip = engine.gradient_clipping()
    return 1 / (loss_scale * max(1.0, (norm / loss_scale + 1e-6) / clip if clip > 0 else 1.0))
