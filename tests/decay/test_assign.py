from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alphadecay_dist.decay import Assignment, linear
from alphadecay_dist.decay.assign import ASSIGNED, EQUAL, KEPT

alphas = st.dictionaries(st.text(max_size=5), st.none() | st.floats(1, 1e6), max_size=12)


def assign(values, weight_decay=0.1, min_ratio=2 / 3, max_ratio=5.0, last=None):
    last = last or dict.fromkeys(values, 0.1)
    return linear(values, weight_decay=weight_decay, min_ratio=min_ratio, max_ratio=max_ratio, last=last)


def test_the_map_by_hand():
    found = assign({"q": 1.5, "v": 2.0, "up": 2.25, "down": 2.5}, 0.1, min_ratio=0.5, max_ratio=3)
    assert {name: a.weight_decay for name, a in found.items()} == pytest.approx(
        {"q": 0.05, "v": 0.175, "up": 0.2375, "down": 0.3}
    )
    assert {a.case for a in found.values()} == {ASSIGNED}


def test_order_is_that_of_the_values():
    assert list(assign({"z": 2.0, "a": 1.0, "m": None})) == ["z", "a", "m"]


def test_undefined_keeps_the_last_decay_and_leaves_the_others_as_without_it():
    defined = {"a": 1.5, "b": 2.0, "c": 3.0}
    found = assign({"x": None, **defined, "y": None}, last={"x": 0.7, "y": 0.0, "a": 9, "b": 9, "c": 9})
    assert found.pop("x") == Assignment(0.7, KEPT)
    assert found.pop("y") == Assignment(0.0, KEPT)
    assert found == assign(defined)


@pytest.mark.parametrize("values", [{"a": 2.0}, {"a": 2.0, "b": 2.0}, {"a": 2.0, "b": None}])
def test_equal_alphas_get_the_base_decay(values):
    found = assign(values, weight_decay=0.3, last={"a": 0.9, "b": 0.8})
    assert {found[name] for name, value in values.items() if value} == {Assignment(0.3, EQUAL)}


def test_all_undefined_keep_theirs():
    assert assign({"a": None, "b": None}, last={"a": 0.4, "b": 0.6}) == {
        "a": Assignment(0.4, KEPT),
        "b": Assignment(0.6, KEPT),
    }
    assert assign({}) == {}


@settings(deadline=None, max_examples=60)
@given(alphas, st.floats(0, 10), st.floats(0, 2), st.floats(0, 5))
def test_decays_are_within_bounds_and_grow_with_alpha(values, weight_decay, min_ratio, above):
    last = dict.fromkeys(values, 0.5)
    max_ratio = min_ratio + above
    found = linear(values, weight_decay=weight_decay, min_ratio=min_ratio, max_ratio=max_ratio, last=last)
    assert list(found) == list(values)
    mapped = sorted((values[name], a.weight_decay) for name, a in found.items() if values[name] is not None)
    assert all(low <= high * (1 + 1e-12) for (_, low), (_, high) in pairwise(mapped))
    if len({alpha for alpha, _ in mapped}) > 1:
        assert mapped[0][1] == pytest.approx(min_ratio * weight_decay, rel=1e-12)
        assert mapped[-1][1] == pytest.approx(max_ratio * weight_decay, rel=1e-12)
    else:
        assert all(decay == weight_decay for _, decay in mapped)
