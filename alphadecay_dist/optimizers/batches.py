"""Which blocks of matrices are orthogonalised, and together with which others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from alphadecay_dist.optimizers.newton_schulz import orthogonalize, work_of
from alphadecay_dist.params.fused import Cut


@dataclass(frozen=True)
class Rule:
    """How a matrix is orthogonalised.

    Attributes:
        cut: into heads, each of which is a block of its own; None takes the matrix whole. All heads have one
            shape.
        steps: iterations.
        coefficients: of the quintic.
        eps: least norm to divide by.
    """

    cut: Cut | None
    steps: int
    coefficients: tuple[float, float, float]
    eps: float

    def block_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the blocks of a matrix of that shape."""
        return shape if self.cut is None else self.cut.shapes(shape)[0]

    def work(self, shape: tuple[int, ...]) -> float:
        """Floating-point operations for a matrix of that shape."""
        blocks = 1 if self.cut is None else len(self.cut.names)
        return blocks * work_of(self.block_shape(shape), self.steps)


def orthogonalized(matrices: Mapping[str, Tensor], rules: Mapping[str, Rule]) -> dict[str, Tensor]:
    """The orthogonalised matrices; blocks of one shape and one rule go through the products together.

    Args:
        matrices: by name, (m, n) each, of one type.
        rules: by name.
    """
    blocks = {name: _blocks_of(matrix, rules[name].cut) for name, matrix in matrices.items()}
    batches: dict[tuple[object, ...], list[str]] = {}
    for name, own in blocks.items():
        rule = rules[name]
        key = own[0].shape, rule.steps, rule.coefficients, rule.eps
        batches.setdefault(key, []).append(name)
    found: dict[str, Tensor] = {}
    for names in batches.values():
        rule = rules[names[0]]
        batch = [block for name in names for block in blocks[name]]
        made = iter(orthogonalize(batch, rule.steps, rule.coefficients, rule.eps).unbind())
        for name in names:
            found[name] = _joined([next(made) for _ in blocks[name]], rules[name].cut)
    return found


def _blocks_of(matrix: Tensor, cut: Cut | None) -> list[Tensor]:
    return [matrix] if cut is None else [part for _, part in cut.parts(matrix)]


def _joined(blocks: list[Tensor], cut: Cut | None) -> Tensor:
    return blocks[0] if cut is None else torch.cat(blocks, dim=cut.axis)
