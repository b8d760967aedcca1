"""Over all ranks every element is counted once, with its averaged gradient, whatever holds the parameters."""

from __future__ import annotations

import functools
import math

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from alphadecay_dist import param_groups
from alphadecay_dist.engines.native.shares import plain_shares
from alphadecay_dist.engines.zero.host import ZeroHost
from alphadecay_dist.params.inventory import tuned_weights
from tests.engines.fsdp1 import wrapped
from tests.engines.tiny import TUNABLE, backward, engine_of, filled
from tests.multirank import run_ranks

pytestmark = [pytest.mark.ranks, pytest.mark.filterwarnings("ignore:.*FSDP.*")]

SHAPES = [*TUNABLE, (5, 3)]  # the last is not tuned
CLIP = 0.01
groups_for = functools.partial(param_groups, weight_decay=0.1)


def counted(shares):
    """Elements, squares of weights and squares of gradients over all ranks, by name; the rest under None."""
    found = {}
    for share in shares:
        own = found.setdefault(share.name, [0.0, 0.0, 0.0])
        own[0] += share.weight.numel()
        own[1] += float(share.weight.double().square().sum())
        own[2] += float(share.gradient.double().square().sum())
        assert share.weight.numel() == share.gradient.numel()
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, found)
    names = {name for own in everyone for name in own}
    return {n: [sum(own[n][k] for own in everyone if n in own) for k in range(3)] for n in names}


def expected(ranks, accumulation=1):
    """The same of a plain process that sees all ranks' micro-batches."""
    model, _ = filled(SHAPES)
    for number in range(accumulation):
        for rank in range(ranks):
            generator = torch.Generator().manual_seed(100 * number + rank)
            (model(torch.randn(1, 172, generator=generator)) / (ranks * accumulation)).backward()
    found = {}
    for place, (m, n) in enumerate(SHAPES):
        weight = model.layers[place]["up"].weight
        squares = [float(t.detach().double().square().sum()) for t in (weight, weight.grad)]
        found[f"layers.{place}.up" if place < len(TUNABLE) else None] = [m * n, *squares]
    return found


def check(shares, ranks, accumulation=1):
    wanted = expected(ranks, accumulation)
    found = counted(shares)
    assert found.keys() == wanted.keys()
    for name, numbers in wanted.items():
        assert found[name] == pytest.approx(numbers, rel=1e-5), name


def under_torch(wrap, ranks):
    model = wrap(filled(SHAPES)[0])
    groups = groups_for(model)
    generator = torch.Generator().manual_seed(dist.get_rank())
    model(torch.randn(1, 172, generator=generator)).backward()
    check(plain_shares(groups, model, dist.group.WORLD), ranks)


def fsdp2(model, shape, **options):
    mesh = dist.init_device_mesh("cpu", shape, mesh_dim_names=("r", "s")[2 - len(shape) :])
    for block in model.layers:
        fully_shard(block["up"], mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def check_torchs_own(ranks):
    under_torch(DistributedDataParallel, ranks)
    for strategy in ("FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD"):
        under_torch(functools.partial(wrapped, strategy=strategy), ranks)
    under_torch(functools.partial(fsdp2, shape=(ranks,)), ranks)
    under_torch(functools.partial(fsdp2, shape=(ranks,), reshard_after_forward=False), ranks)
    if ranks % 2 == 0:
        under_torch(functools.partial(fsdp2, shape=(2, ranks // 2)), ranks)
    if ranks == 4:  # with one rank a shard group torch averages no gradients between the groups
        under_torch(functools.partial(wrapped, strategy="HYBRID_SHARD"), ranks)


@pytest.mark.parametrize("ranks", [2, 3, pytest.param(4, marks=pytest.mark.long)])
def test_torchs_own_engines(ranks):
    run_ranks(check_torchs_own, ranks, ranks)


def check_deepspeed(stage, options):
    engine, model, _ = engine_of(stage, SHAPES, accumulation=2, groups=groups_for, clip=CLIP, **options)
    host, weights = ZeroHost(engine), tuned_weights(model)
    for number in range(2):
        backward(engine, number)
        if number == 0:
            engine.step()
    check(host.shares(weights), dist.get_world_size(), accumulation=2)
    norm = math.sqrt(sum(numbers[2] for numbers in counted(host.shares(weights)).values()))
    engine.step()
    assert host.gradient_scale(norm) == pytest.approx(CLIP / (norm + 1e-6))
    if stage:
        assert float(engine.get_global_grad_norm()) == pytest.approx(norm, rel=1e-5)


OFFLOAD = {"offload_optimizer": {"device": "cpu"}}
STAGES = [(stage, {}) for stage in range(4)] + [(2, OFFLOAD), (3, {**OFFLOAD, "sub_group_size": 5000})]


def check_stages():
    for stage, options in STAGES:
        check_deepspeed(stage, options)


@pytest.mark.parametrize("ranks", [3, pytest.param(2, marks=pytest.mark.long)])
def test_deepspeeds_stages_and_what_its_step_clips(ranks):
    run_ranks(check_stages, ranks)


def check_partial():
    """A gradient that is a sum still to be made, as tensor parallelism may leave it."""
    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    for placement in (Shard(0), Replicate()):
        weight = torch.nn.Parameter(distribute_tensor(torch.ones(5, 3), mesh, [placement]))
        weight.grad = DTensor.from_local(torch.full((5, 3), 2.0), mesh, [Partial()])
        group = {"params": [weight], "module": "layers.0.up"}
        found = counted(plain_shares([group], torch.nn.Module(), dist.group.WORLD))
        assert found == {"layers.0.up": [15, 15, 15 * (2.0 * dist.get_world_size()) ** 2]}


def test_gradients_that_are_partial_sums_are_summed():
    run_ranks(check_partial, 2)
