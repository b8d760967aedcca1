from __future__ import annotations

import pytest

from alphadecay_dist.engines.zero import _flat_ranges


@pytest.mark.parametrize("elements", [1, 2, 3, 15, 43 * 127, 61 * 67, 64 * 172])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7, 64])
def test_ranges_of_stage_3_are_chunks_that_cover_the_weight(elements, world_size):
    ranges = _flat_ranges(elements, world_size)
    chunk = -(-elements // world_size)
    assert [part.start for part in ranges] == [min(rank * chunk, elements) for rank in range(world_size)]
    assert [part.stop for part in ranges] == [part.start for part in ranges[1:]] + [elements]
    assert all(0 <= part.numel <= chunk for part in ranges)
