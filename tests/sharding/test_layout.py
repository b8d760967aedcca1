from __future__ import annotations

import pytest

from alphadecay_dist.sharding.layout import (
    Flat,
    Layout,
    Piece,
    check_cover,
    chunked_layout,
    replicated_layout,
)


def check(parts):
    """A 6 x 10 tensor in the pieces given as (start, stop, holders)."""
    layout = Layout(Piece(holders, Flat(start, stop)) for start, stop, holders in parts)
    check_cover("layer.0.up", layout, (6, 10))


@pytest.mark.parametrize(
    "parts",
    [
        [(0, 60, (0,))],
        [(0, 60, (0, 1, 2))],
        [(0, 20, (0,)), (20, 40, (1,)), (40, 60, (2,))],
        [(40, 60, (2,)), (0, 1, (0,)), (1, 40, (1, 3))],
    ],
)
def test_a_cover_is_accepted_in_any_order(parts):
    check(parts)


@pytest.mark.parametrize(
    ("parts", "fault"),
    [
        ([(0, 20, (0,)), (21, 60, (1,))], "a gap at element 20"),
        ([(1, 60, (0,))], "a gap at element 0"),
        ([(0, 20, (0,)), (19, 60, (1,))], "an overlap at element 20"),
        ([(0, 60, (0,)), (0, 60, (1,))], "an overlap at element 60"),
        ([(0, 20, (0,)), (20, 60, ())], "nobody holds the piece"),
        ([(0, 59, (0,))], "end at element 59, expected 60"),
        ([(0, 61, (0,))], "end at element 61, expected 60"),
        ([], "end at element 0, expected 60"),
    ],
)
def test_what_does_not_cover_is_refused_by_name(parts, fault):
    with pytest.raises(ValueError, match=f"layer.0.up: .*{fault}"):
        check(parts)


@pytest.mark.parametrize("layout_of", [chunked_layout, replicated_layout])
def test_tensors_of_one_size_share_a_layout_that_covers_them(layout_of):
    layout = layout_of(60, 7)
    assert layout_of(60, 7) is layout
    assert layout_of(60, 8) is not layout
    check_cover("w", layout, (6, 10))


def test_a_layout_knows_the_piece_and_the_replica_of_a_rank():
    first, second = Piece((0, 2), Flat(0, 30)), Piece((1, 3), Flat(30, 60))
    layout = Layout([first, second])
    assert [layout.held.get(rank) for rank in range(5)] == [first, second, first, second, None]
    assert [layout.replica(rank) for rank in range(4)] == [0, 0, 1, 1]
    assert layout.digest == Layout([first, second]).digest != Layout([second, first]).digest
