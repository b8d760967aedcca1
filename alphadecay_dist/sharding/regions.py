"""What two parts of one tensor have in common, whatever their index ranges are.

A part is cut into regions: boxes of the tensor, each of which is a plain view of the part's values. A flat
range of a matrix, say, is the end of a row, whole rows, and the beginning of a row. Boxes are intersected
dimension by dimension, so that flat pieces and grids go together in both directions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from alphadecay_dist.sharding.layout import Flat, Grid, with_offsets

Box = tuple[Flat, ...]  # a range in every dimension


@dataclass(frozen=True)
class Region:
    """A box of a tensor, as it lies in one part of it.

    Attributes:
        box: where in the tensor.
        at: where in the part it begins: an index, or in a flat part one number for all dimensions.
    """

    box: Box
    at: tuple[int, ...]


@dataclass(frozen=True)
class Common:
    """A box that two parts have in common.

    Attributes:
        source: the source's region that it lies in.
        target: the target's.
        box: where in the tensor.
    """

    source: Region
    target: Region
    box: Box

    @property
    def numel(self) -> int:
        """Number of elements in common."""
        return math.prod(part.numel for part in self.box)


def common(source: Flat | Grid, target: Flat | Grid, shape: Sequence[int]) -> Iterator[Common]:
    """All that two parts of a tensor of that shape have in common, in boxes that do not overlap."""
    if isinstance(source, Flat) and isinstance(target, Flat):
        shape = (math.prod(shape),)  # one box instead of rows and their ends
    own = regions(target, shape)
    for region in regions(source, shape):
        for other in own:
            box = _intersection(region.box, other.box)
            if box is not None:
                yield Common(region, other, box)


def regions(index: Flat | Grid, shape: Sequence[int]) -> list[Region]:
    """The regions of a part, in its own order."""
    if isinstance(index, Grid):
        products = itertools.product(*map(with_offsets, index.ranges))
        return [Region(tuple(part for part, _ in own), tuple(at for _, at in own)) for own in products]
    boxes = list(_boxes(index.start, index.stop, tuple(shape))) if index.numel else []
    ends = itertools.accumulate((_numel(box) for box in boxes), initial=0)
    return [Region(box, (at,)) for box, at in zip(boxes, ends, strict=False)]


def view_of(values: Tensor, region: Region, box: Box) -> Tensor:
    """The elements of a box inside a region, as a view of the part's values."""
    if len(region.at) == 1:  # flat, or of one dimension, where it is the same
        extents = [part.numel for part in region.box]
        values = values.narrow(0, region.at[0], math.prod(extents)).view(extents)
        return values[_inside(region.box, box)]
    own = zip(region.at, _inside(region.box, box), strict=True)
    return values[tuple(slice(at + part.start, at + part.stop) for at, part in own)]


def read(get: Callable[[tuple[slice, ...]], Tensor], region: Region, box: Box) -> Tensor:
    """The elements of a box inside a region of a part that is read by slices, such as a stored one.

    Of a flat part whole rows are read, and then cut.

    Args:
        get: gives a slice of the part, which has one dimension or the tensor's.
        region: which lies in the part.
        box: which lies in the region.
    """
    inside = _inside(region.box, box)
    if len(region.at) > 1:
        own = zip(region.at, inside, strict=True)
        return get(tuple(slice(at + part.start, at + part.stop) for at, part in own))
    extents = [part.numel for part in region.box]
    # The first dimension in which the region has several indices: before it is one index, after it are all.
    dim = next((d for d, extent in enumerate(extents) if extent > 1), len(extents) - 1)
    row, rows = math.prod(extents[dim + 1 :]), inside[dim]
    begin = region.at[0] + rows.start * row
    values = get((slice(begin, begin + (rows.stop - rows.start) * row),))
    values = values.view([*extents[:dim], rows.stop - rows.start, *extents[dim + 1 :]])
    within = (*inside[:dim], slice(None), *inside[dim + 1 :])
    return values[within]


def _boxes(start: int, stop: int, shape: tuple[int, ...]) -> Iterator[Box]:
    """The elements [start, stop) of a flattened tensor as boxes, in order."""
    if len(shape) == 1:
        yield (Flat(start, stop),)
        return
    row = math.prod(shape[1:])
    first, last = start // row, stop // row
    if start % row:
        end = min(stop, (first + 1) * row)
        for box in _boxes(start - first * row, end - first * row, shape[1:]):
            yield (Flat(first, first + 1), *box)
        first += 1
    if first < last:
        yield (Flat(first, last), *(Flat(0, size) for size in shape[1:]))
    if stop % row and first <= last:
        for box in _boxes(0, stop - last * row, shape[1:]):
            yield (Flat(last, last + 1), *box)


def _intersection(left: Box, right: Box) -> Box | None:
    ranges = [Flat(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(left, right, strict=True)]
    return tuple(ranges) if all(part.start < part.stop for part in ranges) else None


def _inside(outer: Box, box: Box) -> tuple[slice, ...]:
    """A box, counted from the beginning of one that it lies in."""
    pairs = zip(outer, box, strict=True)
    return tuple(slice(part.start - whole.start, part.stop - whole.start) for whole, part in pairs)


def _numel(box: Box) -> int:
    return math.prod(part.numel for part in box)
