from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alphadecay_dist.doctor.clock import offsets


@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_offsets_are_true_to_the_width_that_they_tell(skews, noise):
    """Rounds as the ranks live them: each enters the next after all have entered this one."""
    now, stamps = 1e9, []
    for _ in range(5):
        entered = [now + noise.uniform(0, 0.05) for _ in [0, *skews]]
        stamps.append([time + skew for time, skew in zip(entered, [0.0, *skews], strict=True)])
        now = max(entered)
    found = offsets(stamps)
    assert found[0][0] == 0
    for (offset, width), skew in zip(found[1:], skews, strict=True):
        assert 0 <= width <= 0.1
        assert offset == pytest.approx(skew, abs=width + 1e-5)


def test_the_fastest_round_counts():
    stamps = [[0.0, 100.0], [8.0, 109.0], [9.0, 109.5], [9.2, 109.6]]
    assert offsets(stamps)[1] == (pytest.approx(109.5 - 8.6), pytest.approx(0.6))
