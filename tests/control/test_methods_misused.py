"""What methods cannot do is refused in a line; what they must not touch stays as it was."""

from __future__ import annotations

import deepspeed
import pytest
import torch
from torch import nn

from alphadecay_dist import AlphaDecay, UserError, param_groups
from alphadecay_dist.decay.settings import Settings
from tests.controllers import SETTINGS, decays_in, setup, update
from tests.engines.tiny import TUNABLE, Uneven, allow_fp16, engine_of
from tests.multirank import run_ranks


def controller(optimizer_of, model=None, apply="groups", **options):
    model = model or Uneven(TUNABLE)
    optimizer = optimizer_of(param_groups(model, weight_decay=0.1, apply=apply))
    return AlphaDecay(model, optimizer, **{**SETTINGS, **options})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"policy": "awd", "lag": 2, "interval": 5}, "lag: found 2 with policy 'awd', expected 0"),
        ({"policy": "llr", "apply": "premultiply"}, "apply: found 'premultiply' with policy 'llr'"),
        ({"cautious": True, "apply": "premultiply"}, "apply: found 'premultiply' with cautious decay"),
        ({"policy": "monitor", "cautious": True}, "cautious: found true with policy 'monitor'"),
        ({"factor": -1.0}, "factor: found -1.0, expected a number >= 0"),
        ({"seed": -1}, "seed: found -1, expected a whole number"),
        ({"until": "soon"}, "until: found 'soon', expected updates"),
        ({"until": True}, "until: found True, expected a number"),
        ({"factor": True}, "factor: found True, expected a number"),
        ({"interval": True}, "interval: found True, expected a number"),
    ],
)
def test_settings_that_exclude_each_other(options, words):
    with pytest.raises(UserError, match=words):
        Settings(**options)


def test_only_the_trainer_knows_fractions_of_a_run():
    with pytest.raises(UserError, match=r"until: found 0\.2, expected updates"):
        setup(policy="llr", until=0.2)


@pytest.mark.parametrize("options", [{"policy": "adadecay_original"}, {"policy": "llr"}, {"cautious": True}])
def test_groups_for_premultiply_serve_no_hooks(options):
    with pytest.raises(UserError, match=r"groups were built for 'premultiply'"):
        controller(torch.optim.AdamW, apply="premultiply", **options)


@pytest.mark.parametrize("policy", ["adadecay_original", "cautious"])
def test_coordinates_of_bf16_weights_without_masters_are_refused(policy):
    with pytest.raises(UserError, match=r"found torch\.bfloat16 weights without fp32 masters with"):
        controller(torch.optim.AdamW, Uneven(TUNABLE).bfloat16(), policy=policy)


def test_a_cautious_decay_must_be_decoupled():
    with pytest.raises(UserError, match=r"found Adam with cautious decay, which adds the decay to the grad"):
        controller(torch.optim.Adam, policy="cautious")


@pytest.mark.parametrize("policy", ["llr", "cautious"])
def test_captured_steps_see_no_hooks(policy):
    with pytest.raises(UserError, match="found capturable=True with"):
        controller(lambda groups: torch.optim.AdamW(groups, capturable=True), policy=policy)


class NoHooks:
    """An optimizer that knows nothing of torch's."""

    def __init__(self, groups):
        self.param_groups = [{"lr": 1e-3, **group} for group in groups]


@pytest.mark.parametrize("policy", ["llr", "cautious"])
def test_an_optimizer_without_hooks_is_named(policy):
    with pytest.raises(UserError, match=r"optimizer: found NoHooks with .*no register_step_pre_hook"):
        controller(NoHooks, policy=policy)


@pytest.mark.parametrize("policy", ["llr", "cautious"])
def test_a_closure_would_see_changed_weights(policy):
    model, optimizer, decay = setup(policy=policy)
    update(model, optimizer, decay, 0)
    with pytest.raises(UserError, match=r"optimizer\.step\(closure\): not with"):
        optimizer.step(lambda: None)


def test_the_learning_rate_of_the_groups_is_the_schedules():
    """A recursive schedule multiplies what it finds; the ratio must not be in it. Tensors too."""
    for lr in (1e-3, torch.tensor(1e-3)):
        model = Uneven(TUNABLE)
        optimizer = torch.optim.AdamW(param_groups(model, weight_decay=0.1), lr=lr, foreach=False)
        decay = AlphaDecay(model, optimizer, policy="llr", **SETTINGS)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        for number in range(3):
            update(model, optimizer, decay, number)
            schedule.step()
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        assert rates == pytest.approx([1e-3 / 8] * len(rates))
        ratios = [module.lr_ratio for module in decay.modules.values()]
        assert min(ratios) == pytest.approx(SETTINGS["min_ratio"])
        assert max(ratios) == pytest.approx(SETTINGS["max_ratio"])


def test_original_adadecay_adds_to_the_gradient_of_an_l2_optimizer():
    """SGD: w - lr (g + decay * theta * w), by hand."""
    model = Uneven(TUNABLE)
    optimizer = torch.optim.SGD(param_groups(model, weight_decay=0.1), lr=0.1)
    decay = AlphaDecay(model, optimizer, policy="adadecay_original", **SETTINGS)
    weight = model.layers[0]["up"].weight
    model(torch.randn(2, 172, generator=torch.Generator().manual_seed(0))).backward()
    before, gradient = weight.detach().clone(), weight.grad.clone()
    decay.step()
    optimizer.step()
    size = gradient.abs()
    theta = 2 / (1 + torch.exp(-4 * (size - size.mean()) / (size.std(unbiased=False) + 1e-8)))
    torch.testing.assert_close(weight.detach(), before - 0.1 * (gradient + 0.1 * theta * before))
    assert set(decays_in(optimizer).values()) == {0.1}


def test_a_later_policy_takes_the_place_of_an_earlier_ones_hooks():
    model, optimizer, _ = setup(policy="cautious")
    AlphaDecay(model, optimizer, policy="uniform", **SETTINGS).step()
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_another_kind_of_policys_numbers_are_not_taken_up():
    model, optimizer, rates = setup(policy="llr")
    update(model, optimizer, rates, 0)
    _, other, decay = setup(policy="alphadecay")
    decay.load_state_dict(rates.state_dict())
    assert set(decays_in(other).values()) == {0.1}


def test_a_policy_that_acts_once_acts_when_it_succeeds_another():
    model, optimizer, decay = setup(policy="alphadecay")
    update(model, optimizer, decay, 0)
    _, other, static = setup(policy="static", factors="layers.*=2")
    static.load_state_dict(decay.state_dict())
    assert decays_in(other) == decays_in(optimizer), "until it acts, what was assigned last"
    update(model, other, static, 1)
    assert set(decays_in(other).values()) == {0.2}
    assert static.step() is None


def test_a_lagged_policy_that_succeeds_another_is_written_after_its_lag():
    model, optimizer, decay = setup(policy="uniform")
    update(model, optimizer, decay, 0)
    model, optimizer, lagged = setup(interval=9, lag=2)
    lagged.load_state_dict(decay.state_dict())
    written = [update(model, optimizer, lagged, number) for number in range(4)]
    assert [r and (r.step, r.written_at) for r in written] == [None, None, (1, 3), None]


def test_gradients_that_are_not_finite_leave_the_decays():
    model, optimizer, decay = setup(policy="awd", factor=0.5)
    update(model, optimizer, decay, 0)
    before = decays_in(optimizer)
    next(iter(model.parameters())).grad.fill_(float("nan"))
    decay.step()
    assert decays_in(optimizer) == before


def told_before_backward():
    engine, model, optimizer = engine_of(2, TUNABLE)
    decay = AlphaDecay(model, optimizer, engine=engine, policy="adadecay", **SETTINGS)
    with pytest.raises(
        UserError, match=r"step\(boundary=True\): DeepSpeed has this update's gradients after"
    ):
        decay.step(boundary=True)


@pytest.mark.ranks
def test_gradients_are_not_read_before_deepspeed_has_them():
    run_ranks(told_before_backward, 1)


def test_untuned_weights_that_decay_nothing_get_nothing_from_awd():
    class Normed(Uneven):
        def __init__(self):
            super().__init__(TUNABLE)
            self.scale = nn.Parameter(torch.ones(172))

        def forward(self, x):
            return super().forward(x * self.scale)

    model = Normed()
    optimizer = torch.optim.AdamW(param_groups(model, weight_decay=0.1, untuned="zero"), lr=1e-3)
    decay = AlphaDecay(model, optimizer, policy="awd", **SETTINGS)
    update(model, optimizer, decay, 0)
    found = decays_in(optimizer)
    assert found.pop("untuned") == 0
    assert len(set(found.values())) == 1


def test_awd_begins_with_the_first_gradients_that_are_finite():
    (model, optimizer, decay), (other, plain, expected) = (setup(policy="awd", factor=0.5) for _ in range(2))
    model(torch.ones(1, 172)).backward()
    next(iter(model.parameters())).grad.fill_(float("nan"))
    decay.step()  # and no step of the optimizer, as under a gradient scaler
    update(model, optimizer, decay, 1)
    update(other, plain, expected, 1)
    assert decays_in(optimizer) == decays_in(plain)


@pytest.mark.parametrize("warm", [False, True])
def test_adamc_knows_the_peak_of_a_learning_rate_that_is_a_tensor(warm):
    """Schedules change such a rate in place, also where the optimizer keeps what it was made with."""
    model = Uneven(TUNABLE)
    groups = param_groups(model, weight_decay=0.1)
    optimizer = torch.optim.AdamW(groups, lr=torch.tensor(1e-3), foreach=False)

    def schedule():
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: done / 4)

    schedules = [schedule()] if warm else []
    decay = AlphaDecay(model, optimizer, policy="adamc", **SETTINGS)
    schedules = schedules or [schedule()]
    for number in range(3):
        update(model, optimizer, decay, number)
        found = list(decays_in(optimizer).values())
        assert found == pytest.approx([0.1 * number / 4] * len(found))
        schedules[0].step()


@pytest.mark.parametrize("policy", ["cautious", "llr", "adadecay_original"])
def test_groups_are_whole_again_after_a_step_that_raised(policy):
    def run(raising):
        model, optimizer, decay = setup(policy=policy)
        update(model, optimizer, decay, 0)
        if raising:
            handle = optimizer.register_step_pre_hook(lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                optimizer.step()
            handle.remove()
        optimizer.zero_grad()
        optimizer.step()
        return [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]

    assert run(raising=True) == run(raising=False) == [(1e-3, 0.1)] * len(TUNABLE)


def test_adafactors_decay_is_decoupled():
    """theta * decay is multiplied into its weights, and a cautious decay is at home with it."""
    controller(torch.optim.Adafactor, policy="cautious")
    model, rate = Uneven(TUNABLE), 1e-2
    optimizer = torch.optim.Adafactor(param_groups(model, weight_decay=0.1), lr=rate)
    plain = Uneven(TUNABLE)
    plain.load_state_dict(model.state_dict())
    other = torch.optim.Adafactor(param_groups(plain, weight_decay=0.0), lr=rate)
    decay = AlphaDecay(model, optimizer, policy="adadecay_original", **SETTINGS)
    before, (weight, without) = (
        model.layers[0]["up"].weight.detach().clone(),
        (own.layers[0]["up"].weight for own in (model, plain)),
    )
    for own, step in ((model, optimizer), (plain, other)):
        own(torch.randn(2, 172, generator=torch.Generator().manual_seed(0))).backward()
        if own is model:
            decay.step()
        gradient = own.layers[0]["up"].weight.grad.clone()
        step.step()
    size = gradient.abs()
    theta = 2 / (1 + torch.exp(-4 * (size - size.mean()) / (size.std(unbiased=False) + 1e-8)))
    lost = without.detach() - weight.detach()
    assert (lost - rate * 0.1 * theta * before).norm() < 0.02 * lost.norm()


def other_settings(options):
    model = nn.parallel.DistributedDataParallel(Uneven(TUNABLE))
    optimizer = torch.optim.AdamW(param_groups(model, weight_decay=0.1), lr=1e-3)
    with pytest.raises(UserError, match="the ranks were given different settings or models: rank 0 has"):
        AlphaDecay(model, optimizer, **{**SETTINGS, **options[torch.distributed.get_rank()]})


@pytest.mark.ranks
@pytest.mark.parametrize(
    "options",
    [
        ({"policy": "awd", "factor": 1.0}, {"policy": "awd", "factor": 2.0}),
        ({"policy": "static", "factors": "up=1"}, {"policy": "static", "factors": "up=2"}),
        ({"policy": "alphadecay"}, {"policy": "adadecay"}),
    ],
)
def test_ranks_with_different_settings_are_told(options):
    run_ranks(other_settings, 2, options)


def without_gradients(kind, stage):
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled
    allow_fp16()
    config = {
        "train_batch_size": 1,
        "train_micro_batch_size_per_gpu": 1,
        kind: {"enabled": True},
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
    }
    if stage:
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    model = Uneven(TUNABLE)
    optimizer = torch.optim.AdamW(param_groups(model, weight_decay=0.1), lr=1e-3)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    with pytest.raises(UserError, match=r"policy: 'awd' reads gradients: found DeepSpeed's \w+, which shows"):
        AlphaDecay(model, optimizer, engine=engine, policy="awd", **SETTINGS)


@pytest.mark.ranks
@pytest.mark.parametrize(("kind", "stage"), [("bf16", 0), ("fp16", 0), ("bf16", 1)])
def test_deepspeeds_optimizers_that_show_no_gradients_are_refused(kind, stage):
    run_ranks(without_gradients, 1, kind, stage)


def test_the_embedding_keeps_the_largest_rate_while_others_change_places():
    """Of two weights that swap their alphas; at half of the way both are in the middle of their rates."""
    torch.manual_seed(0)
    model = Uneven([(64, 64), (64, 64)])
    model.embedding = nn.Embedding(8, 8)
    first, second = (block["up"].weight for block in model.layers)
    with torch.no_grad():
        second.mul_(torch.rand(64, 1) ** 3)
    groups = param_groups(model, weight_decay=0.1, matrices_apart=True)
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    decay = AlphaDecay(model, optimizer, policy="llr", interval=50, **SETTINGS)
    rates = []
    for number in range(75):
        if number == 50:
            with torch.no_grad():
                kept = first.clone()
                first.copy_(second)
                second.copy_(kept)
        if number == 60:
            state = decay.state_dict()
            decay = AlphaDecay(model, optimizer, policy="llr", interval=50, **SETTINGS)
            decay.load_state_dict(state)
        decay.step()
        with optimizer.register_step_pre_hook(
            lambda own, *_: rates.append({g["module"]: g["lr"] / 1e-3 for g in own.param_groups})
        ):
            optimizer.step()  # of weights without gradients: they stay
    low, high = SETTINGS["min_ratio"], SETTINGS["max_ratio"]
    middle = [rates[-1][f"layers.{number}.up"] for number in range(2)]
    assert middle == pytest.approx([(low + high) / 2] * 2)
    assert rates[24]["untuned_matrices"] == pytest.approx(1 + (high - 1) / 2)
    assert [own["untuned_matrices"] for own in rates[49:]] == pytest.approx([high] * (len(rates) - 49))
