from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from alphadecay_dist.sharding.layout import Flat, Piece, check_cover


@dataclass
class Source:
    """A 6 x 10 tensor in the pieces given as (start, stop, holders)."""

    parts: list
    name: str = "layer.0.up"
    shape: tuple[int, ...] = (6, 10)
    dtype: torch.dtype = torch.float32

    def pieces(self):
        return [Piece(holders, Flat(start, stop)) for start, stop, holders in self.parts]

    def local(self):
        return None


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
    check_cover(Source(parts))


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
        check_cover(Source(parts))
