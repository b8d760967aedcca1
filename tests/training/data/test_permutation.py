from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alphadecay_dist.training.data.permutation import Permutation


@settings(deadline=None)
@given(size=st.integers(1, 700), name=st.text(max_size=8))
def test_every_number_has_one_place(size, name):
    permutation = Permutation(size, name)
    assert sorted(permutation[place] for place in range(size)) == list(range(size))


@settings(deadline=None)
@given(size=st.integers(1, 1 << 50), name=st.text(max_size=8), data=st.data())
def test_a_place_of_a_long_one_is_computed_alone(size, name, data):
    place = data.draw(st.integers(0, size - 1))
    assert 0 <= Permutation(size, name)[place] < size


@pytest.mark.parametrize("size", [7, 24, 100])
def test_over_the_names_every_number_comes_to_the_first_place_about_equally_often(size):
    names = 4000
    counts = Counter(Permutation(size, f"0 {name}")[0] for name in range(names))
    statistic = sum((counts[number] - names / size) ** 2 / (names / size) for number in range(size))
    assert statistic < size - 1 + 6 * (2 * (size - 1)) ** 0.5  # chi squared: six deviations above its mean


def test_neighbours_are_torn_apart():
    permutation = Permutation(10_000, "0 0")
    order = [permutation[place] for place in range(10_000)]
    distances = [abs(a - b) for a, b in pairwise(order)]
    assert sum(distances) / len(distances) == pytest.approx(3333, rel=0.05)
    fixed = sum(order[place] == place for place in range(10_000))
    assert fixed < 8


def test_the_order_is_the_same_on_every_machine_and_in_every_version():
    assert [Permutation(10, "0 0")[place] for place in range(10)] == [0, 9, 7, 1, 2, 3, 8, 4, 6, 5]


@pytest.mark.parametrize("place", [-1, 10])
def test_a_place_that_is_not_there(place):
    with pytest.raises(IndexError):
        Permutation(10, "x")[place]
