from __future__ import annotations

import json
import math

import pytest
import torch
import torch.distributed as dist

from alphadecay_dist import AlphaDecay, UserError, param_groups
from tests.controllers import SETTINGS, decays_in, expected_decays, mapped, setup, update, weights
from tests.engines.tiny import TUNABLE, Uneven, backward, engine_of
from tests.multirank import run_ranks
from tests.spectral.truth import true_alpha


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


def changed_state(decay, change):
    state = json.loads(decay.state_dict()["alphadecay"])
    change(state)
    return {"alphadecay": json.dumps(state)}


NAME = "layers.3.up"
NO_STATES = {
    "no JSON": (lambda _: {"alphadecay": "{"}, "give what state_dict"),
    "nested": (lambda _: {"alphadecay": "[" * 100_000}, "is no JSON"),
    "a list": (lambda _: {"alphadecay": "[]"}, "as modules, expected a dict"),
    "a step in words": (lambda d: changed_state(d, lambda s: s.update(step="3")), "as step"),
    "a negative decay": (
        lambda d: changed_state(d, lambda s: s["modules"][NAME].update(weight_decay=-1.0)),
        "weight_decay of layers.3.up",
    ),
    "NaN": (
        lambda d: changed_state(d, lambda s: s["modules"][NAME].update(weight_decay=math.nan)),
        "has nan as weight_decay",
    ),
    "no decay": (
        lambda d: changed_state(d, lambda s: s["modules"][NAME].clear()),
        "has None as weight_decay",
    ),
    "pending elsewhere": (
        lambda d: changed_state(d, lambda s: s.update(pending={"found": {}})),
        "other modules",
    ),
}


@pytest.mark.parametrize("name", NO_STATES)
def test_what_is_no_state_is_one_line_and_changes_nothing(name):
    _, _, decay = setup()
    decay.refresh()
    before = decay.state_dict()
    make, words = NO_STATES[name]
    with pytest.raises(UserError, match=f"^AlphaDecay state: .*{words}"):
        decay.load_state_dict(make(decay))
    assert decay.state_dict() == before


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


@pytest.mark.ranks
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


@pytest.mark.ranks
@pytest.mark.parametrize("stage", [0, 1, 3])
def test_an_engine_that_accumulates_refreshes_at_its_boundary_alone(stage):
    first, second = run_ranks(check_accumulation, 2, stage)
    assert first == second
    assert first[0] == [(2, 0), (8, 2), (14, 4)]
