from __future__ import annotations

import json
import math

import pytest
import torch
import torch.distributed as dist

from alphadecay_dist import AlphaDecay, UserError, param_groups
from alphadecay_dist.decay import Bounds, assign
from alphadecay_dist.spectral import Estimator, Windows, analyze
from tests.engines.tiny import TUNABLE, Uneven, backward, engine_of
from tests.multirank import run_ranks
from tests.spectral.truth import gaussian, true_alpha

SETTINGS = {"weight_decay": 0.1, "min_ratio": 0.5, "max_ratio": 3.0}


def setup(shapes=TUNABLE, seed=0, interval=3, **options):
    torch.manual_seed(seed)
    model = Uneven(shapes)
    optimizer = torch.optim.AdamW(param_groups(model, weight_decay=0.1), lr=1e-3)
    return model, optimizer, AlphaDecay(model, optimizer, interval=interval, **{**SETTINGS, **options})


def update(model, optimizer, decay, number):
    optimizer.zero_grad()
    generator = torch.Generator().manual_seed(number)
    model(torch.randn(2, 172, generator=generator)).backward()
    refresh = decay.step()
    optimizer.step()
    return refresh


def decays_in(optimizer):
    return {group["module"]: group["weight_decay"] for group in optimizer.param_groups}


def expected_decays(model, **settings):
    return mapped({name: true_alpha(p) for name, p in weights(model).items()}, **settings)


def mapped(alphas, **settings):
    chosen = {**SETTINGS, **settings}
    bounds = Bounds(chosen["weight_decay"], chosen["min_ratio"], chosen["max_ratio"])
    found = assign(alphas, bounds, shape="linear", last={})
    return {name: assignment.weight_decay for name, assignment in found.items()}


def weights(model):
    return {name.removesuffix(".weight"): p.detach() for name, p in model.named_parameters()}


def test_construction_computes_and_writes_nothing():
    _, optimizer, _ = setup()
    assert set(decays_in(optimizer).values()) == {0.1}


def test_a_refresh_on_the_initial_weights_then_every_interval():
    model, optimizer, decay = setup()
    steps = []
    for number in range(8):
        expected = expected_decays(model)
        before = decays_in(optimizer)
        refresh = update(model, optimizer, decay, number)
        if refresh is None:
            assert decays_in(optimizer) == before
            continue
        steps.append((number, refresh.step))
        assert decays_in(optimizer) == pytest.approx(expected, abs=1e-5)
        assert decays_in(optimizer) == {name: m.weight_decay for name, m in refresh.modules.items()}
        assert [m.status for m in refresh.modules.values()] == ["assigned"] * 5
        assert min(expected.values()) == pytest.approx(0.05)
        assert max(expected.values()) == pytest.approx(0.3)
        assert refresh.bytes_received == (0,)
        assert {m.owner for m in refresh.modules.values()} == {0}
    assert steps == [(0, 0), (3, 3), (6, 6)]


def test_a_refresh_by_hand_counts_no_update_and_is_not_done_twice():
    model, optimizer, decay = setup()
    assert decay.refresh().step == 0
    assert decay.step() is None
    assert [update(model, optimizer, decay, number) for number in (1, 2)] == [None, None]
    assert update(model, optimizer, decay, 3).step == 3


def test_the_weights_are_left_as_they_were():
    model, _, decay = setup()
    before = {name: weight.clone() for name, weight in weights(model).items()}
    decay.refresh()
    assert all(torch.equal(weight, before[name]) for name, weight in weights(model).items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_untuned_parameters_keep_the_base_decay():
    model = torch.nn.ModuleDict({"blocks": Uneven(TUNABLE), "head": torch.nn.Linear(60, 60)})
    optimizer = torch.optim.SGD(param_groups(model, weight_decay=0.1), lr=0.1)
    AlphaDecay(model, optimizer, **SETTINGS).refresh()
    assert decays_in(optimizer)["untuned"] == 0.1
    assert len(set(decays_in(optimizer).values())) == 6


def test_state_is_one_json_string_that_a_fresh_controller_takes_up():
    model, optimizer, decay = setup()
    for number in range(4):
        update(model, optimizer, decay, number)
    state = decay.state_dict()
    assert set(state) == {"alphadecay"}
    json.loads(state["alphadecay"], parse_constant=pytest.fail)
    decays, frozen = decays_in(optimizer), {name: w.clone() for name, w in weights(model).items()}

    other, fresh, loaded = setup(seed=1)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            parameter.copy_(frozen[name.removesuffix(".weight")])
    loaded.load_state_dict(state)
    assert decays_in(fresh) == decays
    assert loaded.state_dict() == state
    following = [update(other, fresh, loaded, number) for number in range(4, 8)]
    assert [refresh and refresh.step for refresh in following] == [None, None, 6, None]


def test_a_state_of_an_unfinished_interval_does_not_refresh_again():
    _, _, decay = setup()
    decay.refresh()
    _, optimizer, loaded = setup(seed=1)
    loaded.load_state_dict(decay.state_dict())
    assert loaded.step() is None
    assert decays_in(optimizer) == {
        name: module["weight_decay"]
        for name, module in json.loads(decay.state_dict()["alphadecay"])["modules"].items()
    }


def test_a_state_before_the_first_refresh_still_refreshes():
    _, _, decay = setup()
    _, _, loaded = setup()
    loaded.load_state_dict(decay.state_dict())
    assert loaded.step().step == 0


def test_a_state_survives_groups_that_a_load_replaced():
    model, optimizer, decay = setup()
    decay.refresh()
    decays = decays_in(optimizer)
    optimizer.load_state_dict(torch.optim.AdamW(param_groups(model, weight_decay=0.7), lr=1).state_dict())
    assert set(decays_in(optimizer).values()) == {0.7}
    decay.load_state_dict(decay.state_dict())
    assert decays_in(optimizer) == decays


def test_a_state_of_another_model_is_refused_and_changes_nothing():
    _, optimizer, decay = setup()
    _, _, other = setup(shapes=TUNABLE[:3])
    before = decay.state_dict()
    with pytest.raises(UserError, match=r"3 modules saved, 5 tuned here; 'layers\.3\.up' is in one alone"):
        decay.load_state_dict(other.state_dict())
    assert decay.state_dict() == before
    assert set(decays_in(optimizer).values()) == {0.1}


@pytest.mark.parametrize(
    "wrong",
    [
        {"interval": 0},
        {"interval": -5},
        {"weight_decay": -0.1},
        {"weight_decay": math.nan},
        {"weight_decay": math.inf},
        {"min_ratio": -1.0},
        {"min_ratio": 4.0},
        {"min_ratio": math.nan},
        {"max_ratio": math.inf},
        {"max_ratio": math.nan},
    ],
    ids=str,
)
def test_a_setting_out_of_range_is_refused_by_name(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        setup(**wrong)


def test_groups_that_param_groups_did_not_make_are_refused():
    model = Uneven(TUNABLE)
    groups = param_groups(model, weight_decay=0.1)
    renamed = [{**groups[0], "module": "layers.9.up"}, *groups[1:]]
    twice = [{**groups[0], "module": "layers.1.up"}, *groups[1:]]
    for given, match in [
        (list(model.parameters()), r"none of its 1 param groups names a module.*param_groups"),
        (renamed, r"'layers\.9\.up': expected one group for one weight.*param_groups"),
        (twice, r"'layers\.1\.up': expected one group for one weight.*param_groups"),
    ]:
        with pytest.raises(UserError, match=match):
            AlphaDecay(model, torch.optim.SGD(given, lr=0.1), weight_decay=0.1)


def test_weights_of_several_types_are_refused():
    model = Uneven(TUNABLE)
    model.layers[0].bfloat16()
    optimizer = torch.optim.SGD(param_groups(model, weight_decay=0.1), lr=0.1)
    with pytest.raises(UserError, match=r"torch\.bfloat16.*torch\.float32.*expected one"):
        AlphaDecay(model, optimizer, weight_decay=0.1)


@pytest.mark.parametrize(
    ("entry", "status"), [(math.nan, "non_finite"), (math.inf, "non_finite"), (0, "zero")]
)
def test_an_undefined_module_keeps_its_decay_and_leaves_the_others_alone(entry, status):
    model, optimizer, decay = setup()
    decay.refresh()
    kept = decays_in(optimizer)["layers.2.up"]
    with torch.no_grad():
        model.layers[2]["up"].weight.fill_(entry)
        model.layers[0]["up"].weight[:, 0] *= 5
    alphas = {n: None if n == "layers.2.up" else true_alpha(w) for n, w in weights(model).items()}
    refresh = decay.refresh()
    odd = refresh.modules["layers.2.up"]
    assert (odd.alpha, odd.weight_decay, odd.status) == (None, kept, status)
    found = {name: m.alpha for name, m in refresh.modules.items() if m.alpha is not None}
    without = mapped(found)
    assert found == pytest.approx({name: alpha for name, alpha in alphas.items() if alpha}, abs=1e-5)
    assert {name: refresh.modules[name].weight_decay for name in found} == without
    assert decays_in(optimizer)["layers.2.up"] == kept
    json.loads(decay.state_dict()["alphadecay"], parse_constant=pytest.fail)


def test_a_module_undefined_from_the_start_keeps_the_base_decay():
    model, optimizer, decay = setup()
    torch.nn.init.zeros_(model.layers[4]["up"].weight)
    assert decay.refresh().modules["layers.4.up"].weight_decay == 0.1
    assert decays_in(optimizer)["layers.4.up"] == 0.1


def test_equal_alphas_get_the_base_decay():
    model, optimizer, decay = setup(shapes=[(64, 172), (64, 172)])
    with torch.no_grad():
        model.layers[1]["up"].weight.copy_(model.layers[0]["up"].weight)
    assert [m.status for m in decay.refresh().modules.values()] == ["all_equal"] * 2
    assert set(decays_in(optimizer).values()) == {0.1}


def check_replicated(budget):
    model, optimizer, decay = setup(memory_budget=budget)
    refreshes = [update(model, optimizer, decay, number) for number in range(4)]
    found = [refresh for refresh in refreshes if refresh]
    assert [refresh.step for refresh in found] == [0, 3]
    assert all(refresh.bytes_received == (0,) * dist.get_world_size() for refresh in found)
    return decays_in(optimizer), [refresh.modules for refresh in found], decay.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("budget", [None, 1])
def test_ranks_with_replicated_weights_share_the_work_and_agree(budget):
    first, second = run_ranks(check_replicated, 2, budget)
    assert first == second
    model, optimizer, decay = setup()
    alone = [update(model, optimizer, decay, number) for number in range(4)]
    assert first[0] == decays_in(optimizer)
    for modules, refresh in zip(first[1], (alone[0], alone[3]), strict=True):
        assert {m.owner for m in modules.values()} == {0, 1}
        assert [m.alpha for m in modules.values()] == [m.alpha for m in refresh.modules.values()]


def check_accumulation(stage):
    engine, model, optimizer = engine_of(stage, TUNABLE, accumulation=3)
    decay = AlphaDecay(model, optimizer, engine=engine, interval=2, **SETTINGS)
    found = []
    for micro_batch in range(15):
        backward(engine, micro_batch)
        refresh = decay.step()
        if refresh:
            found.append((micro_batch, refresh.step))
            written = {group["module"]: group["weight_decay"] for group in engine.optimizer.param_groups}
            assert written == {name: m.weight_decay for name, m in refresh.modules.items()}
            assert len(set(written.values())) == 5
        engine.step()
    assert engine.global_steps == 5
    return found, written


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 3])
def test_an_engine_that_accumulates_refreshes_at_its_boundary_alone(stage):
    first, second = run_ranks(check_accumulation, 2, stage)
    assert first == second
    assert first[0] == [(2, 0), (8, 2), (14, 4)]


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


def refreshed(model, tuned=None, **options):
    optimizer = torch.optim.SGD(param_groups(model, weight_decay=0.1, modules=tuned), lr=0.1)
    refresh = AlphaDecay(model, optimizer, **{**SETTINGS, **options}).refresh()
    return refresh.modules, decays_in(optimizer)


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


def check_failing_rank():
    """Rank 1 has no memory for any spectrum: its modules keep their decays, the others get theirs."""
    _, optimizer, decay = setup()
    if dist.get_rank() == 1:

        def full(gram, **options):
            raise RuntimeError("can't allocate memory")

        torch.linalg.eigvalsh = full
    refresh = decay.refresh()
    return [(n, m.owner, m.status, m.weight_decay) for n, m in refresh.modules.items()], decays_in(optimizer)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:analysis of a")
def test_a_rank_that_fails_in_its_spectra_takes_part_and_its_modules_are_marked():
    found = run_ranks(check_failing_rank, 3)
    assert found[1:] == found[:-1]
    modules, decays = found[0]
    for name, owner, status, weight_decay in modules:
        assert status == ("failed" if owner == 1 else "assigned")
        assert decays[name] == weight_decay
        assert (weight_decay == 0.1) or owner != 1
    assert {owner for _, owner, _, _ in modules} == {0, 1, 2}
