"""The policies' maps by hand: the worked numbers of the papers and of their released code."""

from __future__ import annotations

import math

import pytest

from alphadecay_dist import UserError
from alphadecay_dist.decay.maps import Moment, parse_factors
from alphadecay_dist.decay.policies import POLICIES
from alphadecay_dist.decay.settings import Settings

LAYER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
NAMES = [f"model.layers.{layer}.{name}" for layer in range(2) for name in LAYER]
SIZES = {name: 100 + 10 * place for place, name in enumerate(NAMES)}


def decays(policy, values, last=None, *, first=False, **options):
    settings = Settings(**{"weight_decay": 0.1, "min_ratio": 0.5, "max_ratio": 3.0, **options}, policy=policy)
    names = values if isinstance(values, dict) else dict(zip(NAMES, values, strict=False))
    moment = Moment(names, last or dict.fromkeys(names, 0.1), SIZES | dict.fromkeys(names, 1), first)
    assigned = settings.assign_to(moment)
    assert list(assigned) == list(names)
    return [own.weight_decay for own in assigned.values()]


def test_awd_on_two_parameters():
    """w = (3, 4), g = (0.6, 0.8): the ratio is 0.2; base decay times factor is 1."""
    options = {"weight_decay": 0.01, "factor": 100.0}
    first = decays("awd", {"a": 0.2}, first=True, **options)
    assert first == pytest.approx([0.18])
    assert decays("awd", {"a": 0.2}, {"a": first[0]}, **options) == pytest.approx([0.198])
    assert decays("awd", {"a": None}, {"a": 0.198}, **options) == [0.198]


def test_adadecay_within_a_layer():
    """A single outlier among n: about 2 for it, 0.327 (n = 7), 0.286 (6) and 0.181 (4) for the others."""
    for count, low, high in ((7, 0.327, 2.000), (6, 0.286, 2.000), (4, 0.181, 1.998)):
        *others, outlier = decays("adadecay", [1.0] * (count - 1) + [2.0], weight_decay=1.0)
        assert others == pytest.approx([low] * (count - 1), abs=5e-4)
        assert outlier == pytest.approx(high, abs=5e-4)
    assert decays("adadecay", [3.0] * 7, weight_decay=1.0) == [1.0] * 7


def test_adadecay_knows_layers_and_starts_at_the_base_decay():
    values = [1.0, 1, 1, 1, 1, 1, 2, 20, 20, 20, 20, 20, 20, 10]
    found = decays("adadecay", values, weight_decay=1.0)
    assert found[6] > 1.99
    assert found[13] < 0.01
    assert found[:6] == pytest.approx([found[0]] * 6)
    assert decays("adadecay", values, first=True) == [0.1] * 14
    from_first_batch = decays("adadecay", values, first=True, weight_decay=1.0, preset="reference_vit")
    assert from_first_batch == found
    assert decays("adadecay", [None, 1.0, 2.0], dict.fromkeys(NAMES[:3], 0.07))[0] == 0.07


def test_tiny_gradients_do_not_move_adadecay():
    """The released code adds 1e-8 to the deviation."""
    found = decays("adadecay", [1e-9, 1e-9, 2e-9], weight_decay=1.0)
    deviation = math.sqrt(2) / 3 * 1e-9
    z = (2 / 3 * 1e-9) / (deviation + 1e-8)
    assert found[2] == pytest.approx(2 / (1 + math.exp(-4 * z)))


@pytest.mark.parametrize(("preset", "factor"), [(None, 1.0), ("reference", 3.0)])
def test_equal_values_get_the_base_decay_or_in_the_reference_preset_the_most(preset, factor):
    assert decays("alphadecay", [2.0] * 3, preset=preset) == pytest.approx([0.1 * factor] * 3)
    assert decays("gradient_norm", [2.0, 3.0], preset=preset, first=True) == pytest.approx([0.1 * factor] * 2)
    assert decays("alphadecay", [2.0] * 3, preset=preset, assign="sigmoid") == pytest.approx([0.1] * 3)


def test_gradient_norms_through_the_linear_map():
    assert decays("gradient_norm", [1.0, 2.0, 3.0]) == pytest.approx([0.05, 0.175, 0.3])


def test_static_is_the_map_of_typical_alphas_or_given_factors():
    found = dict(zip(LAYER, decays("static", [None] * 7), strict=True))
    assert found["q_proj"] == found["k_proj"] == pytest.approx(0.05)
    assert found["gate_proj"] == found["down_proj"] == pytest.approx(0.3)
    assert found["v_proj"] == found["o_proj"] == pytest.approx(0.05 + (1.95 - 1.7) / 0.7 * 0.25)
    given = decays("static", [None] * 7, factors="q_proj=0.7, *.up_proj=2")
    assert given == pytest.approx([0.07, 0.1, 0.1, 0.1, 0.1, 0.2, 0.1])


@pytest.mark.parametrize("factors", ["q_proj", "q_proj=x", "q_proj=-1", "=2", "q_proj=inf"])
def test_factors_that_are_none_are_refused(factors):
    with pytest.raises(UserError, match=r"factors: found .*expected pattern=number each"):
        Settings(policy="static", factors=factors)


def test_a_factor_that_matches_nothing_is_refused():
    with pytest.raises(UserError, match="factors: 'qproj' matches no tuned module"):
        decays("static", [None] * 7, factors="qproj=2")
    assert parse_factors("a=1,b=2.5") == {"a": 1.0, "b": 2.5}


def test_shuffled_deals_the_same_decays_by_seed():
    values = [1.0 + 0.1 * place for place in range(14)]
    own = decays("alphadecay", values)
    dealt = decays("shuffled", values, seed=1)
    assert sorted(dealt) == sorted(own)
    assert dealt != own
    assert dealt == decays("shuffled", values, seed=1) != decays("shuffled", values, seed=2)
    names = list(reversed(NAMES))  # the order in which an engine has them is nothing to it
    backwards = decays("shuffled", dict(zip(names, reversed(values), strict=True)), seed=1)
    assert backwards == list(reversed(dealt))


def test_uniform_matched_has_the_mean_over_all_weights():
    values = {name: 1.0 + place for place, name in enumerate(NAMES[:3])}
    settings = Settings(policy="uniform_matched", weight_decay=0.1, min_ratio=0.5, max_ratio=3.0)
    moment = Moment(values, dict.fromkeys(values, 0.1), {NAMES[0]: 10, NAMES[1]: 20, NAMES[2]: 70})
    found = [own.weight_decay for own in settings.assign_to(moment).values()]
    assert found == pytest.approx([(10 * 0.05 + 20 * 0.175 + 70 * 0.3) / 100] * 3)


def test_adamc_none_and_uniform():
    assert decays("adamc", [0.25, 1.0]) == [0.025, 0.1]
    assert decays("none", [None, None]) == [0.0, 0.0]
    assert decays("uniform", [None, None]) == [0.1, 0.1]


def test_llr_maps_to_base_learning_rates():
    found = decays("llr", [1.0, 2.0, 3.0], weight_decay=7.0, min_ratio=1.0, max_ratio=5.0)
    assert found == pytest.approx([1.0, 3.0, 5.0])
    assert Settings(policy="llr", weight_decay=7.0).start == 1.0


def test_when_policies_act():
    def acts(**options):
        settings = Settings(**options)
        return [update for update in range(12) if settings.due(update)]

    assert acts(interval=5) == [0, 5, 10]
    assert acts(interval=5, preset="reference") == [0, 4, 9]
    assert acts(interval=5, preset="reference_vit") == [0, 5, 10]
    assert acts(interval=5, until=5) == [0, 5]
    assert acts(policy="awd", interval=5) == list(range(12))
    assert acts(policy="static", interval=5) == [0]
    assert acts(interval=5, until=0.5) == [0]
    whole = Settings(policy="llr", until=0.2).spanning(500)
    assert whole.until == 100
    assert set(POLICIES) >= {"none", "uniform", "alphadecay", "awd", "adadecay", "adadecay_original", "llr"}


def test_a_fused_weight_counts_once_in_its_layer():
    """Its three parts share the norm of its gradient; the released code has one number for it."""
    fused = {f"layers.0.qkv.{part}": 1.0 for part in "qkv"}
    others = {"layers.0.o": 2.0, "layers.0.up": 3.0}
    values = {**fused, **others}
    weight_of = dict.fromkeys(fused, "layers.0.qkv") | {name: name for name in others}
    own = Settings(policy="adadecay", weight_decay=0.1)
    moment = Moment(values, dict.fromkeys(values, 0.1), dict.fromkeys(values, 1), weight_of=weight_of)
    found = {name: assigned.weight_decay for name, assigned in own.assign_to(moment).items()}
    deviation = math.sqrt(2 / 3)
    expected = [0.2 / (1 + math.exp(-4 * (value - 2) / deviation)) for value in values.values()]
    assert list(found.values()) == pytest.approx(expected, rel=1e-6)
