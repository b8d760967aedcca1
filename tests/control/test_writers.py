"""Both writers give the same weights, on a plain optimizer; what the second one asks for, and refuses."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from alphadecay_dist import AlphaDecay, UserError, param_groups
from alphadecay_dist.control.writers import choose_apply
from alphadecay_dist.decay.settings import Settings
from tests.engines.tiny import TUNABLE, Uneven

BASE = 1.0  # strong enough for 30 updates to show
IMPLEMENTATIONS = {"for_loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}


class Scaled(Uneven):
    """Matrices to tune, and a vector that is not."""

    def __init__(self):
        super().__init__(TUNABLE)
        self.scale = nn.Parameter(torch.ones(172))

    def forward(self, x):
        return super().forward(x * self.scale)


def built(apply, decayed=True, dtype=torch.float32, **options):
    torch.manual_seed(0)
    model = Scaled().to(dtype)
    groups = param_groups(model, weight_decay=BASE, apply=apply)
    optimizer = torch.optim.AdamW(groups, **{"lr": 1e-3, **options})
    decay = None
    if decayed:
        decay = AlphaDecay(model, optimizer, weight_decay=BASE, interval=10, min_ratio=0.2, apply=apply)
    return model, optimizer, decay


def update(model, optimizer, decay, number):
    optimizer.zero_grad()
    x = torch.randn(2, 172, generator=torch.Generator().manual_seed(number))
    model(x.to(model.scale.dtype)).backward()
    for group in optimizer.param_groups:  # a schedule
        rate = 1e-3 * (1 - number / 100)
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
    if decay:
        decay.step()
    optimizer.step()


def trained(apply, updates=30, refreshes=3, **options):
    model, optimizer, decay = built(apply, **options)
    for number in range(updates):
        update(model, optimizer, decay if number < 10 * refreshes else None, number)
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def equal(one, other):
    return {name: torch.equal(value, other[name]) for name, value in one.items()}


@pytest.mark.parametrize(
    ("implementation", "tensor_lr"),
    [(name, False) for name in IMPLEMENTATIONS] + [("for_loop", True), ("fused", True)],
)
def test_weights_are_equal_bit_for_bit(implementation, tensor_lr):
    """foreach takes a tensor as learning rate with capturable=True alone, which is for accelerators."""
    options = IMPLEMENTATIONS[implementation]
    runs = [
        trained(apply, **options, lr=torch.tensor(1e-3) if tensor_lr else 1e-3)
        for apply in ("groups", "premultiply")
    ]
    assert all(equal(*runs).values())
    without = trained("premultiply", decayed=False, **options)
    assert not any(same for name, same in equal(runs[0], without).items() if name != "scale")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_half_precision_weights_without_masters_are_refused(implementation, dtype):
    """A product with 1 - lr * decay rounds back to the weight, also where AdamW's fused kernel decays."""
    with pytest.raises(UserError, match=rf"'premultiply' with {dtype} weights without.*fused=True"):
        built("premultiply", dtype=dtype, **IMPLEMENTATIONS[implementation])


def test_a_weight_without_a_gradient_is_left_as_it_is():
    model, optimizer, decay = built("premultiply")
    update(model, optimizer, decay, 0)
    frozen = model.layers[1]["up"].weight
    before, moving = frozen.detach().clone(), model.layers[0]["up"].weight.detach().clone()
    optimizer.zero_grad()
    model.layers[0]["up"].weight.grad = torch.zeros_like(model.layers[0]["up"].weight)
    optimizer.step()
    assert torch.equal(frozen, before)
    assert not torch.equal(model.layers[0]["up"].weight, moving)


def test_weights_change_in_an_optimizer_step_alone():
    model, _, decay = built("premultiply")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    decay.step()
    decay.load_state_dict(decay.state_dict())
    assert all(equal(before, dict(model.named_parameters())).values())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_step_that_a_gradient_scaler_skips_decays_nothing(implementation):
    runs = []
    for apply in ("groups", "premultiply"):
        model, optimizer, decay = built(apply, **IMPLEMENTATIONS[implementation])
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        for number in range(6):
            optimizer.zero_grad()
            x = torch.randn(2, 172, generator=torch.Generator().manual_seed(number))
            scaler.scale(model(x) * (float("inf") if number == 3 else 1.0)).backward()
            decay.step()
            before = {name: p.detach().clone() for name, p in model.named_parameters()}
            scaler.step(optimizer)
            scaler.update()
            changed = not all(equal(before, dict(model.named_parameters())).values())
            assert changed == (number != 3)
        runs.append({name: p.detach() for name, p in model.named_parameters()})
    assert all(equal(*runs).values())


def test_a_state_goes_on_with_its_decays():
    whole = trained("premultiply", updates=17)
    model, optimizer, decay = built("premultiply")
    for number in range(13):
        update(model, optimizer, decay, number)
    saved = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), decay.state_dict()], saved)
    saved.seek(0)
    fresh = built("premultiply")
    for part, state in zip(fresh, torch.load(saved, weights_only=True), strict=True):
        part.load_state_dict(state)
    for number in range(13, 17):
        update(*fresh, number)
    assert all(equal(whole, dict(fresh[0].named_parameters())).values())


def test_the_state_is_the_same_with_either_writer():
    states = []
    for apply in ("groups", "premultiply"):
        run = built(apply)
        for number in range(12):
            update(*run, number)
        states.append(run[2].state_dict())
    assert states[0] == states[1]


def test_a_loaded_optimizer_that_decayed_by_its_groups_does_not_decay_twice():
    _, optimizer, decay = built("premultiply")
    foreign = copy.deepcopy(optimizer.state_dict())
    foreign["param_groups"][0]["weight_decay"] = 0.5
    optimizer.load_state_dict(foreign)
    decay.load_state_dict(decay.state_dict())
    assert optimizer.param_groups[0]["weight_decay"] == 0.0


def test_a_second_controller_takes_the_place_of_the_first():
    model, optimizer, _ = built("premultiply")
    again = AlphaDecay(model, optimizer, weight_decay=BASE, interval=10, min_ratio=0.2, apply="auto")
    for number in range(5):
        update(model, optimizer, again, number)
    assert all(equal(trained("groups", updates=5), dict(model.named_parameters())).values())


def test_what_the_preset_leaves_out_keeps_the_base_decay():
    weights = []
    for apply in ("groups", "premultiply"):
        model, optimizer, _ = built(apply, decayed=False)
        decay = AlphaDecay(model, optimizer, weight_decay=BASE, preset="reference", apply=apply)
        update(model, optimizer, decay, 0)
        assert "layers.0.up" not in decay.refresh().modules
        weights.append(dict(model.named_parameters()))
    assert all(equal(*weights).values())


def test_the_groups_name_their_weights():
    tuned, untuned = param_groups(Scaled(), weight_decay=BASE, apply="premultiply")
    assert (tuned["module"], tuned["weight_decay"]) == ("tuned", 0.0)
    assert tuned["modules"] == tuple(f"layers.{number}.up" for number in range(5))
    assert [tuple(p.shape) for p in tuned["params"]] == TUNABLE
    assert (untuned["module"], untuned["weight_decay"], len(untuned["params"])) == ("untuned", BASE, 1)


@pytest.mark.parametrize(("asked", "given"), [("groups", "premultiply"), ("premultiply", "groups")])
def test_groups_of_the_other_layout_are_refused(asked, given):
    model, optimizer, _ = built(given, decayed=False)
    with pytest.raises(UserError, match=f"apply: found '{asked}', but.*built for '{given}'"):
        AlphaDecay(model, optimizer, weight_decay=BASE, apply=asked)
    AlphaDecay(model, optimizer, weight_decay=BASE, apply="auto").refresh()


@pytest.mark.parametrize(
    ("kind", "options", "name"),
    [(torch.optim.SGD, {}, "SGD"), (torch.optim.Adam, {}, "Adam"), (torch.optim.NAdam, {}, "NAdam")],
)
def test_an_optimizer_without_decoupled_decay_is_refused(kind, options, name):
    model = Scaled()
    optimizer = kind(param_groups(model, weight_decay=BASE, apply="premultiply"), lr=1e-3, **options)
    with pytest.raises(UserError, match=f"'premultiply' with {name}, expected torch.optim.AdamW"):
        AlphaDecay(model, optimizer, weight_decay=BASE, apply="premultiply")


def test_adam_with_decoupled_decay_is_adamw():
    model = Scaled()
    groups = param_groups(model, weight_decay=BASE, apply="premultiply")
    optimizer = torch.optim.Adam(groups, lr=1e-3, decoupled_weight_decay=True)
    assert AlphaDecay(model, optimizer, weight_decay=BASE, apply="premultiply").refresh().modules


def test_a_closure_is_refused():
    _, optimizer, _ = built("premultiply")
    with pytest.raises(UserError, match=r"optimizer\.step\(closure\)"):
        optimizer.step(lambda: torch.zeros(()))
    with pytest.raises(UserError, match=r"optimizer\.step\(closure\)"):
        optimizer.step(closure=lambda: torch.zeros(()))
    optimizer.step(closure=None)
    optimizer.step(None)


def test_wrong_choices_are_named():
    model = Scaled()
    with pytest.raises(UserError, match="apply: found 'auto', expected 'groups' or 'premultiply'"):
        param_groups(model, weight_decay=BASE, apply="auto")
    with pytest.raises(UserError, match=r"follow: found \['bias'\] with apply='premultiply'"):
        param_groups(model, weight_decay=BASE, apply="premultiply", follow=["bias"])
    model, optimizer, _ = built("groups", decayed=False)
    with pytest.raises(UserError, match="apply: found 'other', expected one of groups, premultiply, auto"):
        AlphaDecay(model, optimizer, weight_decay=BASE, apply="other")


def test_tuned_weights_in_two_groups_are_refused_when_they_share_one():
    model = Scaled()
    tuned, _ = param_groups(model, weight_decay=BASE, apply="premultiply")
    own = {"params": [tuned["params"].pop()], "module": tuned["modules"][-1]}
    tuned["modules"] = tuned["modules"][:-1]
    with pytest.raises(UserError, match="all tuned weights in groups that name theirs"):
        AlphaDecay(model, torch.optim.AdamW([tuned, own]), weight_decay=BASE, apply="premultiply")


def test_auto_picks_by_optimizer_and_engine_and_says_why():
    assert choose_apply(Settings(), "adamw", None)[0] == "premultiply"
    assert choose_apply(Settings(), "adam", None) == (
        "groups",
        "the optimizer is adam, and premultiplying is AdamW's decoupled decay",
    )
    assert choose_apply(Settings(), "adamw", "NVMe") == ("groups", "NVMe")
    assert choose_apply(Settings(policy="llr"), "adamw", None)[0] == "groups"
    assert choose_apply(Settings(cautious=True), "adamw", None)[0] == "groups"


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.long)])
def test_a_compiled_step_sees_new_decays_without_compiling_again(backend):
    """The learning rate is a tensor, as torch asks of whoever compiles an optimizer with a schedule."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    run = built("premultiply", lr=torch.tensor(1e-3), capturable=True)
    run[1].step = torch.compile(run[1].step, backend=backend)
    graphs = []
    for number in range(30):
        update(*run, number)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[2] == graphs[-1], "refreshes came before the updates 0, 10 and 20"
    assert farthest(run[0], trained("groups", foreach=False)) < 1e-5
    assert farthest(run[0], trained("premultiply", refreshes=1)) > 1e-3


def farthest(model, expected):
    found = model.state_dict().items()
    return max(float((value - expected[name]).norm() / value.norm()) for name, value in found)
