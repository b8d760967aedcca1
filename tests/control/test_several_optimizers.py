"""Tuned weights in several optimizers: one map goes over all of them, wherever each one lies."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from alphadecay_dist import AlphaDecay, UserError, param_groups
from tests.engines.tiny import engine_of
from tests.models import Blocks
from tests.multirank import run_ranks

BASE, UPDATES, ACCUMULATION, INTERVAL = 1.0, 12, 2, 3
RATE = 1e-2


def one(model, **options):
    return [torch.optim.AdamW(param_groups(model, weight_decay=BASE, **options), lr=RATE)]


def two(model, **options):
    """Every second matrix in another optimizer, and the rest in the first."""
    groups = param_groups(model, weight_decay=BASE, **options)
    return [torch.optim.AdamW(own, lr=RATE) for own in ([*groups[:-1:2], groups[-1]], groups[1:-1:2])]


def muon(model):
    """Muon for the matrices, AdamW for the rest."""
    *tuned, rest = param_groups(model, weight_decay=BASE)
    return [torch.optim.Muon(tuned, lr=RATE), torch.optim.AdamW([rest], lr=RATE)]


def shared_two(model):
    """Two optimizers with a group of several matrices each, whose decays are multiplied in."""
    tuned, rest = param_groups(model, weight_decay=BASE, apply="premultiply")
    first, second = ({**tuned, key: tuned[key][place::2]} for place in (0, 1) for key in ["params"])
    first["modules"], second["modules"] = tuned["modules"][::2], tuned["modules"][1::2]
    return [torch.optim.AdamW([first, rest], lr=RATE), torch.optim.AdamW([second], lr=RATE)]


class Run:
    """A user's loop over a list of optimizers."""

    def __init__(self, make, wrap=lambda model: model, **options):
        torch.manual_seed(0)
        self.model = wrap(Blocks().double())
        self.optimizers = make(self.model)
        settings = {"weight_decay": BASE, "interval": INTERVAL, "min_ratio": 0.5, "max_ratio": 3}
        settings |= {"apply": "auto", **options}
        self.decay = AlphaDecay(self.model, self.optimizers, **settings)

    def train(self, updates, decays=True):
        for update in updates:
            for number in range(ACCUMULATION * 2)[dist.get_rank() if dist.is_initialized() else 0 :: ranks()]:
                generator = torch.Generator().manual_seed(update * 10 + number)
                loss = self.model(torch.randn(4, 64, generator=generator).double())
                (loss / (ACCUMULATION * 2 // ranks())).backward()
            if decays:
                self.decay.step()
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:  # a schedule
                    group["lr"] = RATE * (1 - update / 20)
                optimizer.step()
                optimizer.zero_grad()
        return self

    def decays(self):
        return {name: module.weight_decay for name, module in self.decay.modules.items()}

    def weights(self):
        return {name.removeprefix("module."): whole(own) for name, own in self.model.named_parameters()}

    def saved(self):
        states = [optimizer.state_dict() for optimizer in self.optimizers]
        return copy.deepcopy([self.model.state_dict(), states, self.decay.state_dict()])

    def load(self, saved):
        self.model.load_state_dict(saved[0])
        for optimizer, state in zip(self.optimizers, saved[1], strict=True):
            optimizer.load_state_dict(state)
        self.decay.load_state_dict(saved[2])
        return self


def ranks():
    return dist.get_world_size() if dist.is_initialized() else 1


def whole(parameter):
    full = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
    return full.detach().clone()


def assert_close(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **tolerance, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lag": 1},
        {"policy": "gradient_norm"},
        {"policy": "adadecay_original"},
        {"policy": "adamc"},
        {"policy": "awd"},
        {"policy": "llr"},
        {"cautious": True},
        {"apply": "premultiply"},
    ],
    ids=lambda options: "-".join(map(str, options.values())) or "alphadecay",
)
def test_two_optimizers_train_bit_for_bit_as_one(options):
    make = shared_two if options.get("apply") else two
    single = Run(one, **{**options, "apply": "groups"}).train(range(UPDATES))
    several = Run(make, **options).train(range(UPDATES))
    close = 1e-12 if options.get("policy") == "awd" else 0  # which sums over all weights, in their order
    assert several.decays() == pytest.approx(single.decays(), rel=close)
    assert_close(several.weights(), single.weights(), rtol=close, atol=close)
    ignored = Run(make, **options).train(range(UPDATES), decays=False)
    with pytest.raises(AssertionError):
        assert_close(ignored.weights(), single.weights(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("make", [two, muon, shared_two])
def test_a_resumed_run_ends_as_the_unbroken_one(make):
    unbroken = Run(make).train(range(UPDATES))
    stopped = Run(make).train(range(5)).saved()
    resumed = Run(make).load(stopped).train(range(5, UPDATES))
    assert resumed.decays() == unbroken.decays()
    assert_close(resumed.weights(), unbroken.weights(), rtol=0, atol=0)


def check_muon(wrap):
    """The decays are those of the whole weights, and a step without gradients shrinks each matrix by its own.

    Sharded, torch's Muon sums its bf16 products by ranks, so that no other run has these weights.
    """
    run = Run(muon, WRAPS[wrap]).train(range(9))
    before = run.weights()
    copy_of = Run(one)
    copy_of.model.load_state_dict(before)
    copy_of.decay.refresh()
    run.decay.step()
    decays = run.decays()
    assert decays == pytest.approx(copy_of.decays(), rel=1e-6)
    assert len(set(decays.values())) == 3
    for parameter in run.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    run.optimizers[0].state.clear()
    run.optimizers[0].step()
    rate = run.optimizers[0].param_groups[0]["lr"]
    for name, decay in decays.items():
        key = f"{name}.weight"
        torch.testing.assert_close(run.weights()[key], before[key] * (1 - rate * decay))


def test_muon_decays_each_matrix_by_its_own():
    check_muon("none")


@pytest.mark.ranks
def test_sharded_muon_decays_each_matrix_by_its_own():
    run_ranks(check_muon, 2, "fsdp2")


def on_ranks(wrap, make, options, expected):
    run = Run(make, WRAPS[wrap], **options).train(range(5))
    stopped = run.saved()
    run.train(range(5, UPDATES))
    assert any(isinstance(own, DTensor) for own in run.model.parameters()) == (wrap == "fsdp2")
    for resumed in (False, True):
        if resumed:
            run.load(stopped).train(range(5, UPDATES))
        assert run.decays() == pytest.approx(expected[0], rel=1e-6)
        assert_close(run.weights(), expected[1], rtol=1e-6, atol=1e-6)


def sharded(model):
    for block in model.blocks:
        fully_shard(block)
    return fully_shard(model)


WRAPS = {"none": lambda model: model, "ddp": DistributedDataParallel, "fsdp2": sharded}


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("wrap", "make", "options"),
    [
        ("ddp", muon, {}),
        ("ddp", two, {"lag": 1}),
        ("fsdp2", shared_two, {}),
        ("fsdp2", two, {"policy": "adadecay_original"}),
    ],
    ids=["ddp-muon", "ddp-lag", "fsdp2-premultiply", "fsdp2-coordinates"],
)
def test_ranks_have_the_decays_and_weights_of_one_process(wrap, make, options):
    run = Run(make, **options).train(range(UPDATES))
    run_ranks(on_ranks, 2, wrap, make, options, (run.decays(), run.weights()))


def test_a_group_that_the_first_optimizer_gets_later_moves_none():
    run = Run(two, policy="awd").train(range(2))
    extra = nn.Parameter(torch.ones(3))
    run.optimizers[0].add_param_group({"params": [extra], "weight_decay": 0.5})
    saved = run.saved()
    run.load(saved).train(range(2, 5))
    expected = Run(two, policy="awd").train(range(5))
    assert run.decays() == expected.decays()
    assert run.optimizers[0].param_groups[-1]["weight_decay"] == 0.5


def refused_with_an_engine():
    engine, model, optimizer = engine_of(1, [(64, 172), (61, 67)])
    other = torch.optim.AdamW(model.parameters(), lr=0.1)
    with pytest.raises(UserError, match="optimizer: found 2 of them, expected the one that engine= steps"):
        AlphaDecay(model, [optimizer, other], engine=engine, weight_decay=0.1)
    AlphaDecay(model, [optimizer], engine=engine, weight_decay=0.1).refresh()
    assert len({group["weight_decay"] for group in optimizer.param_groups}) == 2


@pytest.mark.ranks
def test_an_engine_has_one_optimizer():
    run_ranks(refused_with_an_engine, 1)


def test_a_weight_in_two_optimizers_is_refused():
    model = Blocks()
    optimizers = [*one(model), *one(model)]
    with pytest.raises(UserError, match="expected one group for one weight"):
        AlphaDecay(model, optimizers, weight_decay=BASE)
