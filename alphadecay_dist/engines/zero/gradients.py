"""The gradients of a DeepSpeed engine as sources of an exchange: pieces of flat tensors, see ``state.py``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from alphadecay_dist.engines.zero.shares import gradient_pieces
from alphadecay_dist.params.inventory import Weight
from alphadecay_dist.sharding.collectives import Collectives
from alphadecay_dist.sharding.layout import Flat, Layout, Piece, ShardSource


class FlatGradient:
    """The averaged gradient of a weight at stages 1 to 3: a range of it on any of the ranks.

    Args:
        weight: whose gradient it is.
        ranges: what each rank has of it, flattened; equal bounds for nothing.
        piece: this rank's, (n,); None where it has none.
    """

    def __init__(self, weight: Weight, ranges: Sequence[Flat], piece: Tensor | None) -> None:
        self.name = weight.name
        self.shape = weight.shape
        self.dtype = torch.float32
        self.layout = Layout(Piece((rank,), part) for rank, part in enumerate(ranges) if part.numel)
        self._piece = piece

    def local(self) -> Tensor | None:
        """This rank's piece, (n,), as it lies: some stages keep bf16, which is copied to fp32."""
        return self._piece


def flat_gradients(engine: Any, weights: Sequence[Weight], ranks: Collectives) -> list[ShardSource]:
    """The gradients of weights at stages 1 to 3, after the backward at a boundary. Collective.

    Raises:
        UserError: the gradients are not there.
    """
    with ranks.raise_on_all_ranks():
        pieces = gradient_pieces(engine, weights)
        bounds = [bound for weight in weights for bound in _bounds(pieces[weight.name][0])]
    everyone = ranks.all_gather_checked(bounds)  # by rank: start and stop of each piece in turn
    return [
        FlatGradient(
            weight, [Flat(*row[2 * place : 2 * place + 2]) for row in everyone], pieces[weight.name][1]
        )
        for place, weight in enumerate(weights)
    ]


def _bounds(piece: Flat) -> tuple[int, int]:
    return piece.start, piece.stop
