"""Stable ranks of what all ranks have kept of the inputs: a few numbers a column are summed up over them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alphadecay_dist.condition.activations import DOUBLE, Kept
from alphadecay_dist.errors import warn
from alphadecay_dist.sharding.collectives import Collectives
from alphadecay_dist.spectral.batch import one_blas_thread
from alphadecay_dist.spectral.condition import BLOCK, STEPS, largest_eigenvalues
from alphadecay_dist.spectral.report import FAILED, NON_FINITE, OK, ZERO

UNSEEN = "no_input"  # the status where no rank has seen an input
COUNTS, GRAM, ROWS = "counts", "gram", "rows"  # what a stable rank is computed from
AT_ONCE = 64 * 2**20  # bytes of the spaces that are searched together


@dataclass(frozen=True)
class StableRank:
    """The stable rank of one input over all ranks.

    Attributes:
        value: None unless ``status`` is "ok".
        tokens: rows that it is of, on all ranks together.
        method: ``gram`` or ``rows``, both exact; ``counts`` of an embedding.
        status: "ok", "no_input", "zero", "non_finite" or "failed".
    """

    value: float | None = None
    tokens: int = 0
    method: str | None = None
    status: str = UNSEEN


def stable_ranks(kept: Mapping[str, Kept], ranks: Collectives) -> dict[str, StableRank]:
    """The stable rank of each weight's input over all ranks. Collective, and equal on all.

    Args:
        kept: of this rank, by weight.
        ranks: all of them.
    """
    inputs = _distinct(kept, ranks)
    if not inputs:
        return {}
    local = [own.kept or Kept(own.width) for own in inputs]
    sums = ranks.sum(*[number for own in local for number in (own.squares, float(own.count))])
    squares, counts = sums[::2], sums[1::2]
    grams = ranks.sum(*(float(own.method == GRAM) for own in local))
    defined = [place for place, total in enumerate(squares) if 0 < total < float("inf")]
    largest: dict[int, float] = {}
    for batch in _batches(defined, inputs):
        found = _largest([local[place] for place in batch], ranks)
        largest.update(zip(batch, found, strict=True))
    rows = [
        _rank(squares[place], counts[place], grams[place] > 0, largest.get(place))
        for place in range(len(inputs))
    ]
    shared = ranks.broadcast(rows)  # LAPACK may round otherwise on another machine
    return {name: row for own, row in zip(inputs, shared, strict=True) for name in own.names}


def token_ranks(
    counts: Mapping[str, Tensor], sizes: Mapping[str, int], ranks: Collectives
) -> dict[str, StableRank]:
    """The stable rank of one-hot tokens, 1 / the most frequent one's share, by embedding. Collective.

    Args:
        counts: how often this rank has read each token, by embedding.
        sizes: of the vocabularies of all embeddings.
        ranks: all of them.
    """
    found = {}
    for name, size in sizes.items():
        mine = counts.get(name, torch.zeros(size, dtype=torch.float64))
        total = ranks.add_up(mine.cpu())
        read, most = float(total.sum()), float(total.max())
        found[name] = StableRank(read / most, int(read), COUNTS, OK) if most else StableRank()
    return found


@dataclass(frozen=True)
class _Input:
    """One input, and the weights that multiply it; what is kept of it here, if anything is."""

    names: Sequence[str]
    width: int
    kept: Kept | None


def _distinct(kept: Mapping[str, Kept], ranks: Collectives) -> list[_Input]:
    """The inputs, the same ones on every rank: what several weights share on all ranks is one."""
    first: dict[int, str] = {}
    mine = {name: (first.setdefault(id(own), name), own.width) for name, own in kept.items()}
    everyone = ranks.gather(mine)
    names = dict.fromkeys(name for own in everyone for name in own)
    alike: dict[tuple[object, ...], list[str]] = {}
    for name in names:
        seen = tuple(own.get(name) for own in everyone)
        widths = {found[1] for found in seen if found is not None}
        if len(widths) == 1:  # else it is cut by tensor parallelism, in no way that is known here
            alike.setdefault((*widths, *seen), []).append(name)
    return [_Input(own, int(str(key[0])), kept.get(own[0])) for key, own in alike.items()]


def _batches(places: Sequence[int], inputs: Sequence[_Input]) -> Iterator[list[int]]:
    """Places of inputs in turn, as many at once as there is memory for."""
    batch: list[int] = []
    held = 0
    for place in places:
        size = inputs[place].width * BLOCK * (STEPS + 1) * DOUBLE
        if batch and held + size > AT_ONCE:
            yield batch
            batch, held = [], 0
        batch.append(place)
        held += size
    if batch:
        yield batch


def _largest(local: Sequence[Kept], ranks: Collectives) -> list[float]:
    """The largest eigenvalue of each sum over all ranks; NaN where a rank failed. Collective."""

    def products(blocks: Mapping[int, Tensor]) -> list[Tensor]:
        mine = [_times(local[place], block) for place, block in blocks.items()]
        total = ranks.add_up(torch.cat([own.flatten() for own in mine]))
        pieces = total.split([own.numel() for own in mine])
        return [piece.view(own.shape) for piece, own in zip(pieces, mine, strict=True)]

    with one_blas_thread():
        return largest_eigenvalues([own.width for own in local], products, ranks.broadcast)


def _times(kept: Kept, block: Tensor) -> Tensor:
    """This rank's product; NaN where it fails, for the other ranks wait for its part of the sum."""
    try:
        return kept.times(block)
    except Exception as error:  # such as no memory on the device
        warn(
            f"the stable rank of an input of width {kept.width} failed: {str(error) or type(error).__name__}"
        )
        return torch.full_like(block, math.nan)


def _rank(squares: float, count: float, gram: bool, largest: float | None) -> StableRank:
    method = GRAM if gram else ROWS
    if not count:
        return StableRank()
    if not largest or not math.isfinite(largest):
        status = ZERO if squares == 0 else FAILED if 0 < squares < math.inf else NON_FINITE
        return StableRank(None, int(count), method, status)
    return StableRank(max(1.0, squares / largest), int(count), method, OK)
