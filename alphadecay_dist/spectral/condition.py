"""The two sides of the spectral-update condition (arXiv 2512.04299): nuclear rank against stable rank.

    nr(G) = (sum s)^2 / sum s^2     of a gradient, from 1 to its rank
    st(A) = sum s^2 / max s^2       of the activations that its matrix acts on, from 1 to their rank

where s are the singular values. Both are free of scale. A nuclear rank needs all singular values, and small
ones count: eigenvalues are computed in fp64, for those of an fp32 Gram matrix are off by up to 1e-2 there. Of
a stable rank the largest one is enough, which needs no Gram matrix: see :func:`largest_eigenvalues`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alphadecay_dist.spectral.esd import esd
from alphadecay_dist.spectral.metrics import nuclear_to_frobenius, stable_rank
from alphadecay_dist.spectral.report import NON_FINITE, OK, ZERO

BLOCK, STEPS = 4, 24  # directions that are multiplied at once, and how often at most
ROUND = 3  # products between two looks at whether more are needed
SETTLED = 1e-8  # an error that is no more than this of the eigenvalue
EXTREME = 1e100  # entries up to this are squared as they are
INVARIANT = 1e-10  # a product's part outside of the space that is no more than this of it is rounding
_SEED = 0  # of the directions to begin with


@dataclass(frozen=True)
class GradientSpectrum:
    """What the spectrum of one gradient says. Undefined values are None; no NaN and no infinity is in it.

    Attributes:
        nuclear_rank: squared nuclear over squared Frobenius norm; None unless ``status`` is "ok".
        norm: Frobenius norm; None where an entry is not finite.
        blocks: the nuclear rank of each block of rows or columns, where there are some.
        status: "ok", "zero" (nothing but zeros) or "non_finite".
    """

    nuclear_rank: float | None = None
    norm: float | None = None
    blocks: tuple[float | None, ...] = ()
    status: str = OK


@torch.no_grad()
def gradient_spectrum(gradient: Tensor, blocks: int = 0, axis: int = 0) -> GradientSpectrum:
    """The nuclear rank of a gradient, and of its blocks.

    Args:
        gradient: (m, n), or a Conv2d's (out, in, height, width), taken as (out, in * height * width); real
            floating point on any device. Entries of 1e-20 and 1e20 give the same.
        blocks: number of equal blocks to look at too, such as the heads of an attention; 0 for none.
        axis: 0 where they are blocks of rows, 1 of columns.

    Raises:
        ValueError: the axis cannot be divided into so many blocks.
        torch.linalg.LinAlgError: the eigensolver did not converge.
    """
    matrix = gradient.detach().flatten(1).double()
    if blocks and matrix.shape[axis] % blocks:
        raise ValueError(
            f"blocks: found {blocks}, expected a divisor of {matrix.shape[axis]} {('rows', 'columns')[axis]}"
        )
    largest = max(abs(float(end)) for end in matrix.aminmax())
    if not math.isfinite(largest):
        return GradientSpectrum(None, None, (None,) * blocks, NON_FINITE)
    if largest == 0:
        return GradientSpectrum(None, 0.0, (None,) * blocks, ZERO)
    scale = 1.0 if 1 / EXTREME < largest < EXTREME else largest  # squares are fp64 numbers
    matrix = matrix if scale == 1 else matrix / scale
    (rank,) = _nuclear_ranks(matrix[None])
    norm = scale * float(torch.linalg.vector_norm(matrix))
    parts = matrix.unflatten(axis, (blocks, -1)).movedim(axis, 0) if blocks else None
    return GradientSpectrum(rank, norm, () if parts is None else tuple(_nuclear_ranks(parts)))


def nuclear_rank(matrix: Tensor) -> float | None:
    """Squared nuclear over squared Frobenius norm of an (m, n) matrix; None where it is undefined."""
    return gradient_spectrum(matrix).nuclear_rank


def activation_rank(rows: Tensor) -> float | None:
    """The stable rank of (n, d) activations, not centred, by all of their spectrum; None where undefined."""
    total = rows.double().square().sum()
    if not bool(total.isfinite()) or total == 0:
        return None
    return float(stable_rank(esd(rows.double()).values))


def _nuclear_ranks(stack: Tensor) -> list[float | None]:
    """The nuclear rank of each of (k, m, n) finite fp64 matrices; None of one that is zero."""
    density = esd(stack)
    # Below the rounding of the largest eigenvalue there is noise, whose roots would add up.
    values = torch.where(density.values > density.error, density.values, 0)  # (k, N)
    ranks = nuclear_to_frobenius(values).tolist()
    return [rank if math.isfinite(rank) else None for rank in ranks]


def largest_eigenvalues(
    widths: Sequence[int],
    products: Callable[[Mapping[int, Tensor]], Sequence[Tensor]],
    agreed: Callable[[list[int]], list[int]] = list,
) -> list[float]:
    """The largest eigenvalue of each of several positive semidefinite matrices, by their products alone.

    Block Krylov iteration: what is found is right to 1e-6 and better, also where no eigenvalue stands out.
    Where one does, as in activations that have a mean, a few products are enough.

    Args:
        widths: the size d of each matrix.
        products: from a block of vectors, (d, k) fp64 on the host, by the matrix's place to the products with
            them in turn; k is ``BLOCK``, or less at the end of a small matrix.
        agreed: where ranks take part, what all of them take for the places that need more products.

    Returns:
        The eigenvalues, each at most the true one but for rounding; NaN where a product was not finite.
    """
    generator = torch.Generator().manual_seed(_SEED)
    starts = [torch.randn(d, min(BLOCK, d), generator=generator, dtype=torch.float64) for d in widths]
    spaces = [_Krylov(start) for start in starts]
    left = list(range(len(spaces)))
    for step in range(1, STEPS + 1):
        blocks = {place: spaces[place].newest for place in left}
        for place, product in zip(left, products(blocks), strict=True):
            spaces[place].grow(product)
        if step % ROUND == 0 and step < STEPS:
            left = agreed([place for place in left if not spaces[place].is_settled()])
        if not left:
            break
    return [space.largest() for space in spaces]


class _Krylov:
    """The space that one matrix has been multiplied in, and the matrix within it.

    Args:
        start: (d, k) vectors to begin with.

    Attributes:
        newest: (d, k) orthonormal vectors whose products are wanted, or 0; none once the space is whole.
    """

    def __init__(self, start: Tensor) -> None:
        self.newest = torch.linalg.qr(start).Q
        self._basis = self.newest
        self._within = start.new_zeros(0, 0)
        self._left = start.new_zeros(0, 0)  # of the last products what is outside of the space, squared
        self._finite = True

    def grow(self, product: Tensor) -> None:
        """Take up the matrix's product with the newest vectors, (d, k)."""
        self._finite = self._finite and bool(product.isfinite().all())
        if not self.newest.shape[1] or not self._finite:
            return
        own = self._basis.T @ product  # (b, k)
        within = own.new_zeros(len(own), len(own))
        within[: len(self._within), : len(self._within)] = self._within
        within[:, -own.shape[1] :] = own
        within[-own.shape[1] :, :] = own.T
        self._within = within
        outside = product - self._basis @ own
        self._left = outside.T @ outside
        left = min(own.shape[1], len(self._basis) - len(own))  # of d dimensions
        self.newest = self._orthonormal(product[:, :left])
        self._basis = torch.cat([self._basis, self.newest], 1)

    def is_settled(self) -> bool:
        """Whether the largest eigenvalue within the space is that of the matrix, as far as the space tells.

        Its error is at most its vector's residual r, and about r^2 over the gap to the next eigenvalue.
        """
        if not self._finite or not self.newest.shape[1]:
            return True
        values, vectors = torch.linalg.eigh(self._within)
        last = vectors[-len(self._left) :, -1]
        squared = max(0.0, float(last @ self._left @ last))
        gap = float(values[-1] - values[-2]) if len(values) > 1 else 0.0
        error = min(math.sqrt(squared), squared / gap if gap > 0 else math.inf)
        return error <= SETTLED * float(values[-1])

    def largest(self) -> float:
        """The largest eigenvalue of the matrix within the space."""
        if not self._finite:
            return math.nan
        return max(0.0, float(torch.linalg.eigvalsh(self._within)[-1]))

    def _orthonormal(self, vectors: Tensor) -> Tensor:
        """The part of vectors outside of the space, made orthonormal; 0 in place of what is rounding."""
        least = INVARIANT * torch.linalg.vector_norm(vectors)
        outside = self._outside(self._outside(vectors))
        found, sizes, _ = torch.linalg.svd(outside, full_matrices=False)
        found = self._outside(torch.where(sizes > least, found, 0))
        return found / torch.linalg.vector_norm(found, dim=0).clamp_min(0.5)

    def _outside(self, vectors: Tensor) -> Tensor:
        return vectors - self._basis @ (self._basis.T @ vectors)
