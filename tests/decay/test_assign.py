from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alphadecay_dist import decay
from alphadecay_dist.decay import SHAPES, Assignment, Bounds, normalize_mean
from alphadecay_dist.decay.assign import ASSIGNED, EQUAL, KEPT, sigmoid

alphas = st.dictionaries(st.text(max_size=5), st.none() | st.floats(1, 1e6), max_size=12)


def assign(values, weight_decay=0.1, min_ratio=2 / 3, max_ratio=5.0, last=None, shape="linear"):
    last = last or dict.fromkeys(values, 0.1)
    return decay.assign(values, Bounds(weight_decay, min_ratio, max_ratio), shape=shape, last=last)


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
    found = assign(values, weight_decay, min_ratio, max_ratio, last)
    assert list(found) == list(values)
    mapped = sorted((values[name], a.weight_decay) for name, a in found.items() if values[name] is not None)
    assert all(low <= high * (1 + 1e-12) for (_, low), (_, high) in pairwise(mapped))
    if len({alpha for alpha, _ in mapped}) > 1:
        assert mapped[0][1] == pytest.approx(min_ratio * weight_decay, rel=1e-12)
        assert mapped[-1][1] == pytest.approx(max_ratio * weight_decay, rel=1e-12)
    else:
        assert all(decay == weight_decay for _, decay in mapped)


FREE = {"min_ratio": 0.0, "max_ratio": 100.0}


def decays(values, **options):
    return {name: a.weight_decay for name, a in assign(values, **options).items()}


@pytest.mark.parametrize(("shape", "function"), [("sqrt", math.sqrt), ("log2", math.log2)])
def test_proportional_maps_keep_the_base_decay_as_their_mean(shape, function):
    values = {"q": 1.6, "v": 2.0, "up": 2.5, "x": None}
    found = decays(values, weight_decay=0.3, shape=shape, last={"x": 0.9}, **FREE)
    assert found.pop("x") == 0.9
    total = sum(function(values[name]) for name in found)
    assert found == pytest.approx({name: function(values[name]) / total * 3 * 0.3 for name in found})
    assert sum(found.values()) / 3 == pytest.approx(0.3)


def test_sigmoid_scores_a_module_within_its_own_layer():
    values = {"l.0.q": 1.0, "l.0.up": 3.0, "l.1.q": 10.0, "l.1.v": 20.0, "l.1.up": 30.0, "l.2.q": 7.0}
    found = decays(values, weight_decay=1.0, shape="sigmoid", **FREE)

    def sigmoid(z):
        return 2 / (1 + math.exp(-4 * z))

    side = math.sqrt(1.5)
    assert found == pytest.approx(
        {
            "l.0.q": sigmoid(-1),
            "l.0.up": sigmoid(1),
            "l.1.q": sigmoid(-side),
            "l.1.v": 1.0,
            "l.1.up": sigmoid(side),
            "l.2.q": 1.0,
        }
    )


@settings(deadline=None, max_examples=60)
@given(alphas, st.sampled_from(list(SHAPES)), st.floats(0, 1), st.floats(1, 5))
def test_every_map_is_finite_and_within_the_bounds(values, shape, min_ratio, max_ratio):
    found = assign(values, 0.1, min_ratio, max_ratio, dict.fromkeys(values, 0.2), shape)
    for name, value in values.items():
        if value is None:
            assert found[name] == Assignment(0.2, KEPT)
        else:
            assert 0.1 * min_ratio * (1 - 1e-12) <= found[name].weight_decay <= 0.1 * max_ratio * (1 + 1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_undefined_values_change_nothing_for_the_others(shape):
    values = {"l.0.q": 1.5, "l.0.up": 2.5, "l.1.q": 1.8, "l.1.up": 3.0}
    with_one = decays({**values, "l.1.v": None}, shape=shape)
    del with_one["l.1.v"]
    assert with_one == decays(values, shape=shape)


def test_normalized_decays_have_the_base_decay_as_their_mean_over_weights():
    values = {"q": 1.6, "v": 2.0, "up": 2.5, "x": None}
    sizes = {"q": 100, "v": 100, "up": 300, "x": 1000}
    assigned = assign(values, weight_decay=0.2, last={"x": 0.7})
    found = normalize_mean(assigned, 0.2, sizes)
    assert found["x"] == Assignment(0.7, KEPT)
    moved = [name for name in values if name != "x"]
    mean = sum(sizes[name] * found[name].weight_decay for name in moved) / 500
    assert mean == pytest.approx(0.2)
    ratios = {found[name].weight_decay / assigned[name].weight_decay for name in moved}
    assert max(ratios) == pytest.approx(min(ratios))


def test_normalizing_equal_or_zero_decays_changes_nothing():
    equal = assign({"a": 2.0, "b": 2.0})
    assert normalize_mean(equal, 0.1, {"a": 1, "b": 5}) == equal
    zero = assign({"a": 1.0, "b": 2.0}, weight_decay=0.0)
    assert normalize_mean(zero, 0.0, {"a": 1, "b": 5}) == zero


@pytest.mark.parametrize(
    ("names", "layers"),
    [
        (["0.layers.0.q", "0.layers.0.up", "0.layers.1.q", "0.layers.1.up"], 2),  # a numbered wrapper
        (["layers.0.blocks.0.q", "layers.0.blocks.0.up", "layers.0.blocks.1.q", "layers.0.blocks.1.up"], 2),
        (["layers.0.experts.0.up", "layers.0.experts.1.up", "layers.1.experts.0.up", "layers.1.q"], 2),
        (["layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "layer1.1.conv2"], 2),
        (["h.0.q", "h.0.k", "q", "k"], 3),
    ],
)
def test_a_layer_is_the_innermost_numbered_block(names, layers):
    found = sigmoid({name: float(place) for place, name in enumerate(names)}, Bounds(0.1, 0.0, 5.0))
    low, high = 1 + math.tanh(-2), 1 + math.tanh(2)
    expected = [low, high, low, high] if layers == 2 else [low, high, 1.0, 1.0]
    assert [found[name] for name in names] == pytest.approx(expected)


def test_sigmoid_of_an_outlier_among_thousands_does_not_overflow():
    values = {f"layers.0.m{number}": 2.0 for number in range(40_000)} | {"layers.0.odd": -1e6}
    assert sigmoid(values, Bounds(0.1, 0.0, 5.0))["layers.0.odd"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("decay", [1e-320, 5e-324])
def test_no_factor_that_is_no_number(decay):
    assigned = {"a": Assignment(0.0, "assigned"), "b": Assignment(decay, "assigned")}
    found = normalize_mean(assigned, 0.1, {"a": 1, "b": 1})
    assert all(math.isfinite(a.weight_decay) for a in found.values())
