"""Parts of one tensor, cut in any two ways, fit together."""

from __future__ import annotations

import itertools
import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from alphadecay_dist.sharding.layout import Flat, Grid
from alphadecay_dist.sharding.regions import common, read, regions, view_of


@st.composite
def cuts(draw, size, at_most=4):
    """[0, size) in pieces, none of them empty."""
    inner = draw(st.sets(st.integers(1, size - 1), max_size=at_most - 1)) if size > 1 else set()
    bounds = [0, *sorted(inner), size]
    return [Flat(start, stop) for start, stop in itertools.pairwise(bounds)]


@st.composite
def layouts(draw, shape):
    """A tensor of that shape in parts: flat ranges, or a mesh that may deal out the chunks of a dimension."""
    if draw(st.booleans()):
        return draw(cuts(math.prod(shape)))
    dim = draw(st.integers(0, len(shape) - 1))
    chunks = draw(cuts(shape[dim]))
    hands = draw(st.integers(1, len(chunks)))
    dealt = [tuple(chunks[hand::hands]) for hand in range(hands)]
    return [Grid(tuple(own if d == dim else (Flat(0, n),) for d, n in enumerate(shape))) for own in dealt]


shapes = st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple)


def shape_of(index):
    return index.shape if isinstance(index, Grid) else (index.numel,)


def elements(index, tensor):
    """A part of a tensor, by the definition of its index."""
    if isinstance(index, Flat):
        return tensor.flatten()[index.start : index.stop].clone()
    for dim, own in enumerate(index.ranges):
        places = [place for part in own for place in range(part.start, part.stop)]
        tensor = tensor.index_select(dim, torch.tensor(places))
    return tensor.clone()


@given(st.data())
def test_any_parts_are_put_together_from_any_others(data):
    shape = data.draw(shapes)
    sources, targets = data.draw(layouts(shape)), data.draw(layouts(shape))
    tensor = torch.arange(math.prod(shape), dtype=torch.float32).view(shape)
    stored = [elements(index, tensor) for index in sources]
    for target in targets:
        values, copied = torch.full(shape_of(target), -1.0), 0
        for source, piece in zip(sources, stored, strict=True):
            for box in common(source, target, shape):
                found = read(piece.__getitem__, box.source, box.box)
                view_of(values, box.target, box.box).copy_(found)
                copied += box.numel
        assert copied == target.numel
        assert torch.equal(values, elements(target, tensor))


@given(st.data())
def test_regions_are_a_part_in_its_own_order(data):
    shape = data.draw(shapes)
    for index in data.draw(layouts(shape)):
        values = torch.arange(index.numel, dtype=torch.float32).view(shape_of(index))
        views = [view_of(values, region, region.box) for region in regions(index, shape)]
        assert sorted(torch.cat([view.flatten() for view in views]).tolist()) == list(range(index.numel))


def test_a_range_of_a_matrix_is_the_end_of_a_row_whole_rows_and_a_beginning():
    boxes = [region.box for region in regions(Flat(3, 17), (4, 5))]
    assert boxes == [
        (Flat(0, 1), Flat(3, 5)),
        (Flat(1, 3), Flat(0, 5)),
        (Flat(3, 4), Flat(0, 2)),
    ]


def test_parts_without_a_common_element_have_none():
    assert not list(common(Flat(0, 5), Flat(5, 20), (4, 5)))
    assert not list(common(Flat(0, 5), Grid(((Flat(1, 4),), (Flat(0, 5),))), (4, 5)))
