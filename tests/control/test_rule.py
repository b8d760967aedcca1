"""What is measured, and how it is mapped: the controller does what was asked for."""

from __future__ import annotations

import math

import pytest
import torch

from alphadecay_dist import AlphaDecay, UserError, param_groups
from alphadecay_dist.decay import Bounds, assign
from alphadecay_dist.spectral import Estimator, Windows, analyze
from tests.controllers import SETTINGS, decays_in, mapped, refreshed, setup, weights
from tests.engines.tiny import TUNABLE, Uneven
from tests.spectral.truth import gaussian


@pytest.mark.parametrize("shape", ["linear", "sqrt", "log2", "sigmoid"])
@pytest.mark.parametrize("fit", ["hill", "goodness_of_fit", "fix_finger"])
def test_map_and_fit_are_those_that_were_asked_for(shape, fit):
    model = Uneven(TUNABLE)
    optimizer = torch.optim.SGD(param_groups(model, weight_decay=0.1), lr=0.1)
    refresh = AlphaDecay(model, optimizer, **SETTINGS, assign=shape, fit=fit).refresh()
    alphas = {name: analyze(weight, Estimator(fit)).alpha for name, weight in weights(model).items()}
    assert {name: module.alpha for name, module in refresh.modules.items()} == pytest.approx(alphas, abs=1e-5)
    bounds = Bounds(SETTINGS["weight_decay"], SETTINGS["min_ratio"], SETTINGS["max_ratio"])
    expected = assign({n: m.alpha for n, m in refresh.modules.items()}, bounds, shape=shape, last={})
    assert decays_in(optimizer) == {name: a.weight_decay for name, a in expected.items()}


def test_normalized_decays_have_the_base_decay_as_their_mean():
    model = Uneven(TUNABLE)
    optimizer = torch.optim.SGD(param_groups(model, weight_decay=0.1), lr=0.1)
    AlphaDecay(model, optimizer, **SETTINGS, normalize="mean").refresh()
    sizes = {name: weight.numel() for name, weight in weights(model).items()}
    decays = decays_in(optimizer)
    assert sum(sizes[n] * decays[n] for n in sizes) / sum(sizes.values()) == pytest.approx(0.1)
    assert len(set(decays.values())) == len(decays)


@pytest.mark.parametrize("setting", ["assign", "normalize", "metric", "fit", "preset"])
def test_unknown_names_are_refused_with_the_known_ones(setting):
    model = Uneven(TUNABLE)
    optimizer = torch.optim.SGD(param_groups(model, weight_decay=0.1), lr=0.1)
    with pytest.raises(UserError, match=f"{setting}: found 'nope', expected one of"):
        AlphaDecay(model, optimizer, **SETTINGS, **{setting: "nope"})


@pytest.mark.parametrize("metric", ["stable_rank", "spectral_norm", "log_norm", "alpha_hat"])
def test_another_metric_is_mapped_in_alphas_place(metric):
    model = Uneven(TUNABLE)
    modules, decays = refreshed(model, metric=metric)
    values = {name: getattr(analyze(weight), metric) for name, weight in weights(model).items()}
    assert {name: m.value for name, m in modules.items()} == pytest.approx(values, rel=1e-5)
    assert {name: m.alpha for name, m in modules.items()} != pytest.approx(values, rel=1e-2)
    assert decays == mapped({name: m.value for name, m in modules.items()})


def test_a_metric_that_may_be_below_one_has_no_square_root_map():
    with pytest.raises(UserError, match="metric: found 'log_norm' with assign 'sqrt'"):
        refreshed(Uneven(TUNABLE), metric="log_norm", assign="sqrt")


@pytest.mark.parametrize(
    "estimator", [Estimator(xmin_pos=4.0), Estimator(windows=Windows(50, 1.0, (2, 2)))], ids=["xmin", "farms"]
)
def test_position_and_windows_are_those_that_were_asked_for(estimator):
    model = Uneven(TUNABLE)
    modules, decays = refreshed(model, xmin_pos=estimator.xmin_pos, farms=estimator.windows)
    alphas = {name: analyze(weight, estimator).alpha for name, weight in weights(model).items()}
    assert {name: m.alpha for name, m in modules.items()} == pytest.approx(alphas, abs=1e-5)
    plain, _ = refreshed(model)
    assert {name: m.alpha for name, m in plain.items()} != pytest.approx(alphas, abs=1e-2)
    assert decays == mapped({name: m.alpha for name, m in modules.items()})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"xmin_pos": 1.0}, "xmin_pos: found 1.0"),
        ({"farms": Windows(2000)}, r"layers\.0\.up: FARMS: a window of 2000 x 2000 is larger"),
        ({"farms": Windows(40)}, "farms: found windows with 40 eigenvalues, expected 50 or more"),
        ({"interval": 1.5}, "interval: found 1.5"),
        ({"interval": math.nan}, "interval: found nan"),
        ({"weight_decay": 1e308, "max_ratio": 5.0}, "max_ratio: found 5.0"),
    ],
)
def test_what_no_matrix_can_take_is_refused_at_construction(options, words):
    with pytest.raises(UserError, match=words):
        setup(**options)


BAD = {
    "identity": torch.eye(64, 172),
    "rank_one": torch.ones(64, 172),
    "below_half": gaussian(64, 20) @ gaussian(20, 172),
    "huge": gaussian(64, 172) * 1e20,
    "tiny": gaussian(64, 172) * 1e-20,
    "subnormal": torch.full((64, 172), 1e-45),
    "largest": torch.full((64, 172), 3e38),
    "nan": torch.full((64, 172), math.nan),
    "one_inf": gaussian(64, 172).index_fill(0, torch.tensor([3]), math.inf),
    "zero": torch.zeros(64, 172),
    "not_contiguous": gaussian(172, 64).T,
}


@pytest.mark.parametrize("fit", ["hill", "goodness_of_fit", "fix_finger"])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_matrix_leaves_the_others_as_if_it_were_not_there(name, fit):
    torch.manual_seed(0)
    model = Uneven(TUNABLE)
    model.layers[0]["up"].weight.data = BAD[name]
    alone, _ = refreshed(model, [f"layers.{n}.up" for n in range(1, 5)], fit=fit)
    modules, decays = refreshed(model, fit=fit)
    bad = modules.pop("layers.0.up")
    assert all(math.isfinite(decay) for decay in decays.values())
    if bad.alpha is None:
        assert bad.status not in ("assigned", "all_equal")
        assert decays["layers.0.up"] == 0.1
        assert {n: (m.alpha, m.weight_decay) for n, m in modules.items()} == {
            n: (m.alpha, m.weight_decay) for n, m in alone.items()
        }
    else:
        assert name in ("huge", "tiny", "not_contiguous", "below_half")
        assert {n: m.alpha for n, m in modules.items()} == {n: m.alpha for n, m in alone.items()}
