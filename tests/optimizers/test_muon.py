"""Muon on pieces is torch.optim.Muon on whole weights: 20 updates, with a resume, on any number of ranks."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.profiler import ProfilerActivity, profile

from alphadecay_dist import AlphaDecay, UserError, param_groups
from alphadecay_dist.engines.native.state import TorchState
from alphadecay_dist.optimizers.muon import ShardedMuon
from alphadecay_dist.optimizers.native import for_whole_weights
from alphadecay_dist.optimizers.pair import MuonWithAdamW
from alphadecay_dist.optimizers.settings import MuonSettings
from alphadecay_dist.params.fused import Cut
from tests.models import Blocks
from tests.multirank import run_ranks

# Uneven rows, fewer rows than ranks, equal shapes, tall and wide.
SHAPES = [(67, 50), (67, 50), (50, 67), (3, 64), (129, 64), (64, 64)]
UPDATES, RATE = 20, 0.02
TIGHT = 40_000  # bytes: several rounds


class Matrices(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        weights = [torch.randn(shape, generator=generator) for shape in SHAPES]
        self.weights = nn.ParameterList(map(nn.Parameter, weights))


def sharded(replicas):
    model = Matrices()
    ranks = dist.get_world_size()
    shape = (ranks,) if replicas == 1 else (replicas, ranks // replicas)
    fully_shard(model, mesh=init_device_mesh("cpu", shape, mesh_dim_names=("a", "b")[: len(shape)]))
    return model


def groups_of(model, apart):
    """One group, or one a matrix with a decay of its own."""
    weights = list(model.parameters())
    if not apart:
        return [{"params": weights, "weight_decay": 0.3}]
    return [{"params": [own], "weight_decay": 0.1 * number} for number, own in enumerate(weights)]


def give_gradients(model, update):
    generator = torch.Generator().manual_seed(update)
    for number, own in enumerate(model.parameters()):
        gradient = torch.randn(own.shape, generator=generator)
        if isinstance(own, DTensor):
            gradient = distribute_tensor(gradient, own.device_mesh, own.placements)
        own.grad = None if number == 2 and update % 3 == 0 else gradient  # now and then unused


def check_pieces(replicas, apart, options):
    reference, model = Matrices(), sharded(replicas)
    expected = torch.optim.Muon(groups_of(reference, apart), lr=RATE, **options)
    found = ShardedMuon(groups_of(model, apart), lr=RATE, memory_budget=TIGHT, **options)
    for update in range(UPDATES):
        if update == UPDATES // 2:
            saved, found = found.state_dict(), ShardedMuon(groups_of(model, apart), lr=RATE, **options)
            found.load_state_dict(copy.deepcopy(saved))
        give_gradients(reference, update)
        give_gradients(model, update)
        expected.step()
        found.step()
    for own, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(own.full_tensor(), other.detach(), rtol=0, atol=0)
    ((_, state),) = {name: found.state[own] for name, own in model.named_parameters() if "2" in name}.items()
    assert isinstance(state["momentum_buffer"], DTensor)


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("world_size", "replicas", "apart", "options"),
    [
        pytest.param(1, 1, False, {}, marks=pytest.mark.long),
        (2, 1, True, {"nesterov": False}),
        (4, 1, False, {"adjust_lr_fn": "match_rms_adamw"}),
        (4, 2, True, {}),
    ],
)
def test_pieces_are_updated_as_torchs_muon_updates_the_whole(world_size, replicas, apart, options):
    run_ranks(check_pieces, world_size, replicas, apart, options)


def check_rounds():
    model = sharded(1)
    found = ShardedMuon(model.parameters(), lr=RATE, memory_budget=TIGHT)
    give_gradients(model, 1)
    found.step()
    ((place, _),) = found._places
    schedule = place._exchange.schedule
    assert len(schedule.rounds) > 1
    largest = max(2 * m * n for m, n in SHAPES)
    assert schedule.peak.max() <= max(TIGHT // 3, 2 * largest)  # a matrix larger than a quarter goes alone
    sent, back = place.bytes_received
    others = sum(2 * s[0] * s[1] for s in SHAPES)
    assert sum(dist_sum(sent, back)) <= 2 * others  # bf16, each element there and back at most once


def dist_sum(*values):
    total = torch.tensor(values)
    dist.all_reduce(total)
    return total.tolist()


@pytest.mark.ranks
def test_rounds_keep_to_the_budget_and_each_element_crosses_once_each_way():
    run_ranks(check_rounds, 2)


def check_peak():
    """Many equal squares, whose products take the most beside them."""
    ranks, budget = dist.get_world_size(), 32 * 2 * 64 * 64
    weights = [nn.Parameter(torch.randn(64, 64)) for _ in range(24)]
    model = nn.ParameterList(weights)
    fully_shard(model)
    for own in model.parameters():
        own.grad = torch.randn_like(own)
    optimizer = ShardedMuon(model.parameters(), lr=RATE, memory_budget=budget)
    optimizer.step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        optimizer.step()
    events = [own for own in profiler.profiler.kineto_results.events() if own.name() == "[memory]"]
    events.sort(key=lambda own: own.start_ns())
    held = itertools.accumulate(own.nbytes() for own in events)
    updates = 24 * 2 * 64 * 64 // ranks
    assert budget / 4 < max(held) - updates <= budget


@pytest.mark.ranks
def test_the_peak_of_a_step_keeps_to_the_budget():
    run_ranks(check_peak, 4)


def check_heads():
    reference, model = Matrices(), sharded(1)
    cuts = [
        {own: Cut(("0", "1"), (32, 32)) for own in each.parameters() if own.shape == (64, 64)}
        for each in (reference, model)
    ]
    whole, pieces, uncut = (
        ShardedMuon(reference.parameters(), lr=RATE, cuts=cuts[0]),
        ShardedMuon(model.parameters(), lr=RATE, cuts=cuts[1]),
        torch.optim.Muon((plain := Matrices()).parameters(), lr=RATE),
    )
    for update in (1, 2):
        for each in (reference, model, plain):
            give_gradients(each, update)
        for optimizer in (whole, pieces, uncut):
            optimizer.step()
    triples = zip(reference.parameters(), model.parameters(), plain.parameters(), strict=True)
    for own, other, without in triples:
        assert torch.equal(own.detach(), other.full_tensor())
        assert torch.equal(own.detach(), without.detach()) == (own.shape != (64, 64))


@pytest.mark.ranks
def test_heads_are_orthogonalised_for_themselves_whole_and_in_pieces():
    run_ranks(check_heads, 2)


# What a policy of the table does with Muon is what it does with it on whole weights.
POLICIES = [
    {"policy": "alphadecay"},
    {"policy": "alphadecay", "apply": "premultiply"},
    {"policy": "alphadecay", "lag": 1},
    {"policy": "uniform"},
    {"policy": "none"},
    {"policy": "awd"},
    {"policy": "adadecay"},
    {"policy": "gradient_norm"},
    {"policy": "adadecay_original"},
    {"policy": "static", "factors": "0=0.5"},
    {"policy": "shuffled"},
    {"policy": "uniform_matched"},
    {"policy": "adamc"},
    {"policy": "cautious"},
    {"policy": "llr"},
    {"policy": "alphadecay", "cautious": True},
    {"policy": "monitor"},
]


def optimizer_of(kind, model, **options):
    groups = param_groups(model, weight_decay=1.0, **options)
    tuned = [group for group in groups if not group["module"].startswith("untuned")]
    rest = [group for group in groups if group["module"].startswith("untuned")]
    return MuonWithAdamW(kind(tuned, lr=RATE), torch.optim.AdamW(rest, lr=RATE))


def check_policies():
    for settings in POLICIES:
        torch.manual_seed(0)
        reference = Blocks()
        model = copy.deepcopy(reference)
        fully_shard(model)
        apart = {"matrices_apart": True} if settings["policy"] == "llr" else {}
        apart |= {"apply": settings["apply"]} if "apply" in settings else {}
        optimizers = [
            optimizer_of(torch.optim.Muon, reference, **apart),
            optimizer_of(ShardedMuon, model, **apart),
        ]
        given = {"weight_decay": 1.0, "interval": 2, "min_ratio": 0.5, "max_ratio": 3, **settings}
        decays = [
            AlphaDecay(own, opt, **given) for own, opt in zip((reference, model), optimizers, strict=True)
        ]
        for update in range(4):
            for number, (own, optimizer, decay) in enumerate(
                zip((reference, model), optimizers, decays, strict=True)
            ):
                give_same(reference, own, update, number)
                decay.step()
                optimizer.step()
        first, second = (
            {name: m.weight_decay or 0.0 for name, m in decay.modules.items()} for decay in decays
        )
        assert first == pytest.approx(second, rel=1e-5), settings
        for own, other in zip(model.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(
                own.full_tensor(), other.detach(), rtol=1e-5, atol=1e-6, msg=str(settings)
            )


def give_same(reference, model, update, number):
    """Whole gradients of both from one generator."""
    generator = torch.Generator().manual_seed(update)
    for own in model.parameters():
        gradient = torch.randn(own.shape, generator=generator)
        own.grad = distribute_tensor(gradient, own.device_mesh, own.placements) if number else gradient


@pytest.mark.ranks
def test_every_policy_does_on_pieces_what_it_does_on_the_whole():
    run_ranks(check_policies, 2)


def check_state():
    model = Blocks()
    optimizer = optimizer_of(torch.optim.Muon, model)
    give_same(model, model, 0, 0)
    optimizer.step()
    kinds = {part.name: set() for part in TorchState(model, optimizer).parts()}
    for part in TorchState(model, optimizer).parts():
        kinds[part.name].add(part.kind)
    assert kinds["blocks.0.0.weight"] == {"weight", "momentum_buffer"}
    assert kinds["blocks.0.0.bias"] == {"weight", "exp_avg", "exp_avg_sq"}
    assert set(TorchState(model, optimizer).scalars()) == {"step"}


@pytest.mark.ranks
def test_both_optimizers_states_are_saved():
    run_ranks(check_state, 1)


def test_a_load_keeps_both_optimizers_on_the_groups():
    torch.manual_seed(0)
    model, twin = Blocks(), Blocks()
    twin.load_state_dict(model.state_dict())
    optimizer, other = (optimizer_of(torch.optim.Muon, own) for own in (model, twin))
    give_same(model, model, 0, 0)
    optimizer.step()
    twin.load_state_dict(model.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for own, each in ((model, optimizer), (twin, other)):
        for group in each.param_groups:
            group["weight_decay"], group["lr"] = 2.0, 0.05
        give_same(own, own, 1, 0)
        each.step()
    for own, each in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(own, each)


@pytest.mark.parametrize("modules", [None, ("blocks.1.*",)], ids=["all", "one, and AdamW for two"])
def test_premultiplied_decays_are_those_of_groups(modules):
    """With patterns there are two groups of several weights in one optimizer."""
    runs = []
    for apply in ("groups", "premultiply"):
        torch.manual_seed(0)
        model = Blocks()
        groups = param_groups(model, weight_decay=1.0, apply=apply)
        optimizer = for_whole_weights(model, groups, MuonSettings(lr=RATE, modules=modules))
        decay = AlphaDecay(model, optimizer, weight_decay=1.0, interval=2, apply=apply)
        for update in range(4):
            give_same(model, model, update, 0)
            decay.step()
            optimizer.step()
        runs.append((model, decay))
    (model, decay), (other, _) = runs
    assert len({m.weight_decay for m in decay.modules.values()}) > 1
    for own, each in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(own, each)


def test_vectors_and_other_tensors_are_refused():
    with pytest.raises(ValueError, match="2D"):
        ShardedMuon([nn.Parameter(torch.zeros(3))])
    model = Blocks()
    groups = param_groups(model, weight_decay=1.0, apply="premultiply")
    with pytest.raises(UserError, match=r"found 'premultiply' with SGD, expected torch.optim.AdamW or Muon"):
        AlphaDecay(model, torch.optim.SGD(groups, lr=0.1), weight_decay=1.0, apply="premultiply")
