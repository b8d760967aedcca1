"""attach(): another's optimizer, in the middle of its life, trains on as one made of param_groups()."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch.optim import lr_scheduler as schedules

from alphadecay_dist import AlphaDecay, UserError, attach, param_groups
from tests.control.test_several_optimizers import WRAPS, assert_close, ranks, whole
from tests.models import Blocks
from tests.multirank import run_ranks

BASE, RATE, UPDATES, INTERVAL = 1.0, 1e-2, 12, 3
SETTINGS = {"weight_decay": BASE, "interval": INTERVAL, "min_ratio": 0.5, "max_ratio": 3.0}


def free(name):
    return name.endswith("bias")


def pair(model, kind=torch.optim.AdamW, **options):
    """A decay and a no-decay group with rates of their own, as transformers and many others make them."""
    named = list(model.named_parameters())
    groups = [
        {"params": [own for name, own in named if not free(name)], "weight_decay": BASE},
        {"params": [own for name, own in named if free(name)], "weight_decay": 0.0, "lr": RATE / 2},
    ]
    return kind(groups, **{"lr": RATE, **options})


def each(model):
    """A group a parameter, as timm makes them."""
    return torch.optim.AdamW(
        [
            {"params": [own], "weight_decay": 0.0 if free(name) else BASE, "lr": RATE / (1 + free(name))}
            for name, own in model.named_parameters()
        ]
    )


def ours(model):
    """What attach() has to come to: param_groups() from the start, with the same rates."""
    groups = param_groups(model, weight_decay=BASE, no_decay="*bias")
    groups[-1]["lr"] = RATE / 2
    return torch.optim.AdamW(groups, lr=RATE)


class Run:
    """A user's loop, which attaches before some update, or never."""

    def __init__(self, make, schedule=None, wrap=lambda model: model, attach_at=None):
        torch.manual_seed(0)
        self.model = wrap(Blocks().double())
        self.optimizer = make(self.model)
        self.schedule = schedule(self.optimizer) if schedule else None
        self.attach_at, self.decay = attach_at, None
        self.rates = []

    def begin_decay(self, update):
        if update == self.attach_at:
            attach(self.model, self.optimizer, schedulers=[self.schedule] if self.schedule else ())
        self.decay = AlphaDecay(self.model, self.optimizer, **SETTINGS)
        self.decay.begin_at(update)

    def train(self, updates, decay_from=0):
        for update in updates:
            if update >= decay_from and self.decay is None:
                self.begin_decay(update)
            for number in range(4)[dist.get_rank() if dist.is_initialized() else 0 :: ranks()]:
                generator = torch.Generator().manual_seed(update * 10 + number)
                (self.model(torch.randn(4, 64, generator=generator).double()) / (4 // ranks())).backward()
            if self.decay is not None:
                self.decay.step()
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.schedule:
                step = [1.0] if isinstance(self.schedule, schedules.ReduceLROnPlateau) else []
                self.schedule.step(*step)
            self.rates.append(self.rate_by_name())
        return self

    def parts(self):
        return self.model, self.optimizer, self.schedule, self.decay

    def load(self, states):
        for own, state in zip(self.parts(), states, strict=True):
            own.load_state_dict(state)

    def rate_by_name(self):
        names = {id(own): name for name, own in self.model.named_parameters()}
        return {
            names[id(own)]: float(group["lr"])
            for group in self.optimizer.param_groups
            for own in group["params"]
        }

    def decays(self):
        return {name: module.weight_decay for name, module in self.decay.modules.items()}

    def weights(self):
        return {name.removeprefix("module."): whole(own) for name, own in self.model.named_parameters()}

    def moments(self):
        return {
            name: {key: whole(value) for key, value in self.optimizer.state[own].items()}
            for name, own in self.model.named_parameters()
        }


def falling(update):
    return 1 / (1 + update)


SCHEDULES = {
    "none": None,
    "lambda": lambda own: schedules.LambdaLR(own, falling),
    "cosine": lambda own: schedules.CosineAnnealingLR(own, UPDATES, eta_min=1e-4),
    "sequential": lambda own: schedules.SequentialLR(
        own, [schedules.LinearLR(own, 0.1, total_iters=4), schedules.CosineAnnealingLR(own, 8)], [4]
    ),
    "chained": lambda own: schedules.ChainedScheduler(
        [schedules.LinearLR(own, 0.1, total_iters=4), schedules.ExponentialLR(own, 0.9)]
    ),
    "one_cycle": lambda own: schedules.OneCycleLR(own, max_lr=0.02, total_steps=UPDATES + 1),
    "cyclic": lambda own: schedules.CyclicLR(
        own, [group["lr"] / 2 for group in own.param_groups], RATE, step_size_up=3
    ),
    "multiplicative": lambda own: schedules.MultiplicativeLR(own, falling),
    "plateau": lambda own: schedules.ReduceLROnPlateau(
        own, patience=1, min_lr=[1e-4 for _ in own.param_groups]
    ),
}


@pytest.mark.parametrize(("make", "at"), [(pair, 4), (each, 0)])
@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_weights_and_moments_are_those_of_groups_from_the_start_bit_for_bit(name, at, make):
    schedule = SCHEDULES[name]
    expected = Run(ours, schedule).train(range(UPDATES), decay_from=at)
    found = Run(make, schedule, attach_at=at).train(range(UPDATES), decay_from=at)
    assert found.rates == expected.rates
    assert found.decays() == expected.decays()
    assert len({*found.decays().values()}) == 3
    assert_close(found.weights(), expected.weights(), rtol=0, atol=0)
    for key, moments in expected.moments().items():
        assert_close(found.moments()[key], moments, rtol=0, atol=0)


def test_the_decay_reaches_the_weights():
    found = Run(pair, attach_at=0).train(range(UPDATES))
    ignored = Run(pair).train(range(UPDATES), decay_from=UPDATES)
    with pytest.raises(AssertionError):
        assert_close(found.weights(), ignored.weights(), rtol=0, atol=1e-4)


def test_a_group_keeps_what_it_had_and_the_rest_its_dict():
    model = Blocks()
    rate = torch.tensor(RATE)
    named = list(model.named_parameters())
    group = {"params": named, "betas": (0.8, 0.9), "foreach": True, "lr": rate, "mine": "x"}
    optimizer = torch.optim.AdamW([group], lr=RATE, weight_decay=BASE)
    rest, groups = optimizer.param_groups[0], optimizer.param_groups
    schedule = schedules.CosineAnnealingLR(optimizer, UPDATES)
    attach(model, optimizer, schedulers=schedule)
    assert optimizer.param_groups is groups
    assert groups[-1] is rest
    assert rest["lr"] is rate
    assert [own["module"] for own in groups] == [*(f"blocks.{n}.0" for n in range(3)), "untuned"]
    names = {id(parameter): name for name, parameter in named}
    for own in groups:
        assert own.keys() == rest.keys()
        assert own["param_names"] == [names[id(parameter)] for parameter in own["params"]]
        for key in ("betas", "foreach", "mine", "weight_decay", "initial_lr", "eps"):
            assert own[key] == rest[key]
    assert len({own["lr"].data_ptr() for own in groups}) == len(groups)
    assert len({own["initial_lr"].data_ptr() for own in groups}) == len(groups)
    assert [len(own["params"]) for own in groups] == [1, 1, 1, 5]


def test_a_group_that_was_one_parameters_own_stays():
    model = Blocks()
    optimizer = each(model)
    before = list(optimizer.param_groups)
    attach(model, optimizer)
    assert len(before) == len(optimizer.param_groups)
    assert all(found is own for found, own in zip(optimizer.param_groups, before, strict=True))


def saved(run):
    return copy.deepcopy([own.state_dict() for own in run.parts()])


def check_on_ranks(wrap, expected):
    run = Run(pair, SCHEDULES["cosine"], WRAPS[wrap], attach_at=4).train(range(7), decay_from=4)
    states = saved(run)
    for resumed in (False, True):
        if resumed:
            run.load(states)
        run.train(range(7, UPDATES))
        assert_as_expected(run, wrap, expected)


def assert_as_expected(run, wrap, expected):
    assert run.rates[-1] == {
        ("module." if wrap == "ddp" else "") + name: rate for name, rate in expected[0].items()
    }
    assert run.decays() == pytest.approx(expected[1], rel=1e-6)
    assert_close(run.weights(), expected[2], rtol=1e-6, atol=1e-6)


@pytest.mark.ranks
@pytest.mark.parametrize("wrap", ["ddp", "fsdp2"])
def test_ranks_have_the_decays_and_weights_of_one_process(wrap):
    run = Run(ours, SCHEDULES["cosine"]).train(range(UPDATES), decay_from=4)
    run_ranks(check_on_ranks, 2, wrap, (run.rates[-1], run.decays(), run.weights()))


def test_a_resumed_run_ends_as_the_unbroken_one():
    unbroken = Run(pair, SCHEDULES["sequential"], attach_at=0).train(range(UPDATES))
    states = saved(Run(pair, SCHEDULES["sequential"], attach_at=0).train(range(5)))
    resumed = Run(pair, SCHEDULES["sequential"], attach_at=0)
    resumed.begin_decay(0)
    resumed.load(states)
    resumed.train(range(5, UPDATES))
    assert resumed.rates == unbroken.rates[5:]
    assert resumed.decays() == unbroken.decays()
    assert_close(resumed.weights(), unbroken.weights(), rtol=0, atol=0)


def test_a_state_of_before_is_loaded_before():
    before = Run(pair).train(range(4), decay_from=UPDATES)
    state = copy.deepcopy(before.optimizer.state_dict())
    model = Blocks()
    model.load_state_dict(before.model.state_dict())
    optimizer = pair(model)
    optimizer.load_state_dict(state)
    attach(model, optimizer)
    AlphaDecay(model, optimizer, **SETTINGS).refresh()
    with pytest.raises(UserError, match=r"state with 2 param groups, as before attach\(\), expected 5; load"):
        optimizer.load_state_dict(state)
    optimizer.load_state_dict(optimizer.state_dict())


def test_several_optimizers_with_a_schedule_each():
    model = Blocks()
    matrices = [own for own in model.parameters() if own.ndim == 2]
    others = torch.optim.SGD([own for own in model.parameters() if own.ndim < 2], lr=RATE)
    muon = torch.optim.Muon(matrices[:2], lr=RATE, weight_decay=BASE)
    adamw = torch.optim.AdamW(matrices[2:], lr=RATE, weight_decay=BASE)
    lambdas = schedules.LambdaLR(muon, falling)
    steps = [schedules.StepLR(adamw, 2), schedules.StepLR(others, 2)]
    attach(model, [muon, others, adamw], schedulers=[lambdas, *steps])
    assert [group["module"] for group in muon.param_groups] == ["blocks.0.0", "blocks.1.0"]
    assert [group["module"] for group in adamw.param_groups] == ["blocks.2.0", "untuned"]
    assert "module" not in others.param_groups[0]
    assert (len(lambdas.lr_lambdas), len(steps[0].base_lrs), len(steps[1].base_lrs)) == (2, 2, 1)
    AlphaDecay(model, [muon, others, adamw], **SETTINGS).refresh()
    decays = {group["weight_decay"] for own in (muon, adamw) for group in own.param_groups}
    assert len(decays) == 4  # of three matrices, and of the head that keeps its own
    assert others.param_groups[0]["weight_decay"] == 0


def test_a_base_is_given_where_the_groups_have_several():
    model = Blocks()
    optimizer = torch.optim.AdamW(
        [{"params": [own], "weight_decay": float(place)} for place, own in enumerate(model.parameters())]
    )
    decays = copy.deepcopy([group["weight_decay"] for group in optimizer.param_groups])
    words = r"tuned weights have 0\.0 \(blocks\.0\.0\), 2\.0 \(blocks\.1\.0\), .* expected one base"
    with pytest.raises(UserError, match=words):
        attach(model, optimizer)
    assert [group["weight_decay"] for group in optimizer.param_groups] == decays
    attach(model, optimizer, weight_decay=0.5)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 1, 0.5, 3, 0.5, 5, 6, 7]


class BaseValues:
    """As timm's, which is none of torch's."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.base_values = [group["lr"] for group in optimizer.param_groups]
        self.warmup_steps = [rate / 10 for rate in self.base_values]
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]


@pytest.mark.parametrize("at", [0, 4])
def test_timms_lookahead_stands_for_the_optimizer_that_it_steps(at):
    timm = pytest.importorskip("timm.optim", reason="the extra vision is not installed (docs/vision.md)")

    def ahead(make):
        return lambda model: timm.Lookahead(make(model))

    expected = Run(ahead(ours), SCHEDULES["cosine"]).train(range(UPDATES), decay_from=at)
    found = Run(ahead(pair), SCHEDULES["cosine"], attach_at=at).train(range(UPDATES), decay_from=at)
    assert found.rates == expected.rates
    assert found.decays() == expected.decays()
    assert_close(found.weights(), expected.weights(), rtol=0, atol=0)


def test_a_schedule_of_another_library_grows_too():
    model = Blocks()
    optimizer = pair(model)
    schedule = BaseValues(optimizer)
    attach(model, optimizer, schedulers=[schedule])
    assert schedule.base_values == [RATE, RATE, RATE, RATE, RATE / 2]
    assert schedule.warmup_steps == [rate / 10 for rate in schedule.base_values]


def test_traces_of_a_schedule_that_is_not_given_are_warned_of():
    model = Blocks()
    optimizer = pair(model)
    BaseValues(optimizer)
    with pytest.warns(UserWarning, match="found none, but the groups have an initial_lr"):
        attach(model, optimizer)
