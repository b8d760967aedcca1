"""The forecast equals what a refresh measures on ranks, whatever holds the weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from alphadecay_dist import AlphaDecay, param_groups
from alphadecay_dist.commands.forecast import forecast
from alphadecay_dist.engines.expected_layouts import Sharding
from tests.commands.plans import HERE, job_for
from tests.engines.tiny import TUNABLE, Uneven, engine_of
from tests.multirank import run_ranks

EVEN = [(64, 172), (60, 66), (172, 64), (66, 60), (50, 90)]


class Pairs(nn.Module):
    """Blocks with two matrices and a bias that ends between two alignments."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(n, m), "down_proj": nn.Linear(m, n)}) for m, n in EVEN
        )


def model_for(sharding):
    return Pairs() if sharding in ("fsdp1", "hybrid", "tp") else Uneven(TUNABLE)


def sharded(sharding):
    """Model, optimizer, engine and type to read, as a user builds them."""
    if sharding.startswith("zero"):
        masters = sharding.endswith("masters")
        dtype = torch.bfloat16 if masters else torch.float32
        engine, model, optimizer = engine_of(int(sharding[4]), TUNABLE, dtype)
        return model, optimizer, engine, torch.float32 if masters else None
    model, size = model_for(sharding), dist.get_world_size()
    sizes = (
        (2, size // 2) if sharding in ("hsdp", "hybrid") else (size // 2, 2) if sharding == "tp" else (size,)
    )
    mesh = dist.init_device_mesh("cpu", sizes, mesh_dim_names=("a", "b")[: len(sizes)])
    if sharding in ("fsdp1", "hybrid"):
        model = FullyShardedDataParallel(
            model,
            sharding_strategy=ShardingStrategy["HYBRID_SHARD" if sharding == "hybrid" else "FULL_SHARD"],
            auto_wrap_policy=ModuleWrapPolicy({nn.ModuleDict}),
            use_orig_params=True,
            device_id=torch.device("cpu"),
            device_mesh=mesh,
        )
    if sharding == "tp":
        for block in model.layers:
            parallelize_module(block, mesh["b"], {"up": ColwiseParallel(), "down_proj": RowwiseParallel()})
        mesh = mesh["a"]
    if sharding in ("fsdp2", "hsdp", "tp"):
        fully_shard(model, mesh=mesh)
    return model, torch.optim.SGD(param_groups(model, weight_decay=0.1), lr=0.1), None, None


BUDGETS = (None, 1)


def check_measured(sharding):
    """Owners, bytes and peaks of a refresh under each budget."""
    model, optimizer, engine, dtype = sharded(sharding)
    found = []
    for budget in BUDGETS:
        decay = AlphaDecay(
            model, optimizer, engine=engine, weight_decay=0.1, dtype=dtype, memory_budget=budget
        )
        refresh = decay.refresh()
        owners = {name: module.owner for name, module in refresh.modules.items()}
        exchange = decay._measure._exchange
        found.append((owners, list(refresh.bytes_received), exchange.bytes_sent, exchange.peak_bytes))
    return found


CASES = [(s, 3) for s in ("ddp", "zero2", "zero3", "fsdp2", "fsdp1")]
CASES += [("zero3", 4), ("fsdp2", 4), ("hsdp", 4), ("zero0", 2)]
CASES += [("zero1_masters", 3), ("zero2_masters", 2), ("hybrid", 4), ("tp", 4)]
FEWER = [(s, 1) for s in ("ddp", "zero2", "zero3", "fsdp2")]
FEWER += [(s, 2) for s in ("zero3", "fsdp2", "hsdp", "fsdp1")]
OF = {
    "hsdp": ("fsdp2", {"replicas": 2}),
    "hybrid": ("fsdp1", {"replicas": 2}),
    "tp": ("fsdp2", {"tensor_parallel": 2}),
}


@pytest.mark.ranks
@pytest.mark.filterwarnings("ignore:.*FSDP.*")
@pytest.mark.parametrize(
    ("sharding", "world_size"), [*CASES, *(pytest.param(*case, marks=pytest.mark.long) for case in FEWER)]
)
def test_a_forecast_is_what_a_refresh_measures(sharding, world_size):
    job = job_for(model_for(sharding), dtype=torch.float32)
    name, options = OF.get(sharding, (sharding, {}))
    measured = run_ranks(check_measured, world_size, sharding)
    for place, budget in enumerate(BUDGETS):
        layout = Sharding(name, world_size, **options)
        found = forecast(replace(job, budget=budget), layout, HERE).as_dict()
        for rank, own in enumerate(measured):
            owners, received, sent, peak = own[place]
            assert owners == found["owners"]
            assert received == found["bytes_received"]
            assert sent == found["bytes_sent"][rank]
            assert peak == found["peak_bytes"][rank]
