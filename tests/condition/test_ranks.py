"""A sample of sharded gradients and spread activations is that of the whole ones, under every engine."""

from __future__ import annotations

import functools

import deepspeed
import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from alphadecay_dist import SpectralCondition
from tests.engines.fsdp1 import wrapped
from tests.engines.tiny import TUNABLE, allow_fp16, engine_of, filled
from tests.multirank import run_ranks

pytestmark = [pytest.mark.ranks, pytest.mark.filterwarnings("ignore:.*FSDP.*")]

CLIP = 0.01


def one_group(model):
    """All weights in one flat tensor of DeepSpeed's; the condition needs no groups of its own."""
    return [{"params": list(model.parameters())}]


def batch(rank, number=0):
    """Another number of rows on every rank."""
    return torch.randn(20 + 7 * rank, 172, generator=torch.Generator().manual_seed(100 * number + rank))


def expected(ranks, accumulation=1):
    """Nuclear rank, norm, stable rank and tokens of each matrix, of a plain process that sees all batches."""
    model, _ = filled(TUNABLE)
    for number in range(accumulation):
        for rank in range(ranks):
            (model(batch(rank, number)) / (ranks * accumulation)).backward()
    first = torch.cat([batch(rank) for rank in range(ranks)]).double()
    found = {}
    for place, block in enumerate(model.layers):
        weight = block["up"].weight
        gradient = torch.linalg.svdvals(weight.grad.double())
        inputs = torch.linalg.svdvals(first[:, : weight.shape[1]])
        squares = gradient.square().sum()
        numbers = gradient.sum() ** 2 / squares, squares.sqrt(), inputs.square().sum() / inputs[0] ** 2
        found[f"layers.{place}.up"] = [*map(float, numbers), len(first)]
    return found


def check(sample, wanted):
    assert sample.step == 0
    assert sample.matrices.keys() == wanted.keys()
    for name, numbers in wanted.items():
        own = sample.matrices[name]
        assert [own.nr, own.grad_norm, own.st, own.n_tokens] == pytest.approx(numbers, rel=1e-6), name
        assert own.ratio == pytest.approx(numbers[0] / numbers[2], rel=1e-6)
        assert own.status == "ok"
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, {**sample.as_dict(), "seconds": 0})
    assert all(own == everyone[0] for own in everyone)


def under_torch(wrap, wanted):
    model = wrap(filled(TUNABLE)[0])
    condition = SpectralCondition(model, every=2)
    model(batch(dist.get_rank())).backward()
    check(condition.step(), wanted)
    assert condition.step() is None


def fsdp2(model, shape):
    mesh = dist.init_device_mesh("cpu", shape, mesh_dim_names=("r", "s")[2 - len(shape) :])
    for block in model.layers:
        fully_shard(block["up"], mesh=mesh)
    return fully_shard(model, mesh=mesh)


def under_deepspeed(stage, wanted, **options):
    engine, model, _ = engine_of(stage, TUNABLE, accumulation=2, groups=one_group, clip=CLIP, **options)
    condition = SpectralCondition(model, engine=engine, every=2)
    samples = []
    for number in range(4):
        engine.backward(engine(batch(dist.get_rank(), number % 2)))
        samples.append(condition.step())
        engine.step()
    check(samples[1], wanted)
    assert [sample is None for sample in samples] == [True, False, True, True]


OFFLOAD = {"offload_optimizer": {"device": "cpu"}}


def check_engines(ranks):
    wanted = expected(ranks)
    under_torch(DistributedDataParallel, wanted)
    for strategy in ("FULL_SHARD", "NO_SHARD"):
        under_torch(functools.partial(wrapped, strategy=strategy), wanted)
    under_torch(functools.partial(fsdp2, shape=(ranks,)), wanted)
    if ranks == 4:
        under_torch(functools.partial(fsdp2, shape=(2, 2)), wanted)
        under_torch(functools.partial(wrapped, strategy="HYBRID_SHARD"), wanted)
    wanted = expected(ranks, accumulation=2)
    for stage in range(4):
        under_deepspeed(stage, wanted)
    under_deepspeed(2, wanted, **OFFLOAD)
    under_deepspeed(3, wanted, **OFFLOAD, sub_group_size=5000)


def check_loss_scale():
    """In fp16 the scale is on the gradients that are sampled, and off the norms that are told."""
    allow_fp16()
    model, _ = filled(TUNABLE)
    config = {"train_micro_batch_size_per_gpu": 1, "fp16": {"enabled": True, "loss_scale": 4096}}
    config |= {"zero_optimization": {"stage": 2}, "zero_force_ds_cpu_optimizer": False}
    optimizer = torch.optim.AdamW(model.parameters())
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    condition = SpectralCondition(model, engine=engine)
    engine.backward(engine(batch(dist.get_rank()).half()))
    sample = condition.step()
    for name, (rank, norm, *_) in expected(dist.get_world_size()).items():
        own = sample.matrices[name]
        assert (own.nr, own.grad_norm) == pytest.approx((rank, norm), rel=1e-3), name


def test_a_loss_scale_is_in_no_number():
    run_ranks(check_loss_scale, 2)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_each_engine(ranks):
    run_ranks(check_engines, ranks, ranks)
