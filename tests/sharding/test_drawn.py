"""Drawn shapes under every engine: each matrix arrives at its owner as it was before sharding, bit for bit.

A process group takes all drawn shapes at once, in one model, for it takes longer to build than to gather.
"""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from alphadecay_dist.engines.native.host import PlainHost
from alphadecay_dist.engines.zero.host import ZeroHost
from tests.engines.fsdp1 import wrapped
from tests.engines.tiny import engine_of, filled, groups_of, matrices_of, value_of
from tests.multirank import run_ranks
from tests.sharding.gather import check_gathering

pytestmark = [pytest.mark.ranks, pytest.mark.filterwarnings("ignore:.*FSDP.*")]

OFFLOAD = {"offload_param": {"device": "cpu"}, "offload_optimizer": {"device": "cpu"}}
NONE_PERSISTENT = {"stage3_param_persistence_threshold": 0}
# Stage, type of the weights, type to read, options; masters are of bf16 weights, at stage 3 under zero.Init.
ZERO = {
    "masters 1": (1, torch.bfloat16, torch.float32, {}),
    "masters 2": (2, torch.bfloat16, torch.float32, {}),
    "masters 3": (3, torch.bfloat16, torch.float32, NONE_PERSISTENT),
    "persistent": (3, torch.float32, None, {"stage3_param_persistence_threshold": 5000}),
    "offload": (3, torch.float32, None, OFFLOAD | NONE_PERSISTENT),
    "offload masters": (3, torch.bfloat16, torch.float32, OFFLOAD | NONE_PERSISTENT),
    "hpz": (3, torch.bfloat16, None, {"zero_hpz_partition_size": 2, **NONE_PERSISTENT}),
}
sizes = st.sampled_from([1, 2, 3, 5, 7, 16, 43, 61, 127, 172])
shapes = st.lists(st.tuples(sizes, sizes), min_size=8, max_size=8)


def drawn(check, world_size, *args):
    """Run a check on drawn shapes, at least six of them different."""

    @settings(deadline=None, max_examples=1, phases=[Phase.generate])
    @given(shapes.filter(lambda found: len(set(found)) > 5))
    def on_shapes(found):
        run_ranks(check, world_size, found, *args)

    on_shapes()


def check_zero(shapes, kinds):
    for kind in kinds:
        stage, dtype, read, options = ZERO[kind]
        engine, model, _ = engine_of(stage, shapes, dtype, **options)
        host = ZeroHost(engine)
        expected = {
            m.name: value_of(f"{m.name}.weight", m.shape, dtype).to(read or dtype) for m in matrices_of(model)
        }
        check_gathering(host.sources(matrices_of(model), read), expected, host.group)


@pytest.mark.parametrize(
    ("world_size", "kinds"),
    [(3, ["masters 1", "masters 2", "persistent", "offload"]), (4, ["masters 3", "offload masters", "hpz"])],
)
def test_under_zero(world_size, kinds):
    drawn(check_zero, world_size, kinds)


def check_fsdp(shapes, strategies):
    size = dist.get_world_size()
    for strategy in strategies:
        for each_linear in (True, False):
            model, values = filled(shapes)
            check_plain(wrapped(model, strategy, each_linear=each_linear), values)
    for parallel in {1, 2} if size % 2 == 0 else {1}:
        model, values = filled(shapes)
        mesh = dist.init_device_mesh("cpu", (size // parallel, parallel), mesh_dim_names=("a", "b"))
        for block in model.layers:
            if parallel > 1:  # rows cut twice: _StridedShard
                parallelize_module(block, mesh["b"], {"up": ColwiseParallel()})
            fully_shard(block["up"], mesh=mesh["a"])
        check_plain(model, values)


def check_plain(model, values):
    optimizer = torch.optim.SGD(groups_of(model), lr=0.1)
    sources = PlainHost(model, [optimizer], None).sources(matrices_of(model), None)
    check_gathering(sources, values, dist.group.WORLD)


@pytest.mark.parametrize(
    ("world_size", "strategies"),
    [
        (3, ["FULL_SHARD"]),
        (4, ["FULL_SHARD", "HYBRID_SHARD"]),
        pytest.param(3, ["SHARD_GRAD_OP"], marks=pytest.mark.long),
        pytest.param(4, ["SHARD_GRAD_OP"], marks=pytest.mark.long),
    ],
)
def test_under_fsdp(world_size, strategies):
    drawn(check_fsdp, world_size, strategies)
