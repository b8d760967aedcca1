"""DTensors of every layout arrive whole at their owners, and take their decays."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import _StridedShard

from alphadecay_dist import AlphaDecay, UserError, param_groups
from alphadecay_dist.engines.native.dtensor import DTensorSource, mesh_layout
from alphadecay_dist.engines.native.host import PlainHost
from alphadecay_dist.sharding.layout import Flat, Piece, check_cover
from tests.engines.tiny import SHAPES, TUNABLE, filled, groups_of, matrices_of
from tests.multirank import run_ranks
from tests.sharding.gather import check_gathering

STRIDED = "torch's _StridedShard"


def world(*sizes):
    names = ("a", "b", "c")[: len(sizes)]
    return dist.init_device_mesh("cpu", sizes, mesh_dim_names=names)


def check_sharded(layout, shapes):
    size = dist.get_world_size()
    model, values = filled(shapes)
    if layout == "hsdp":
        mesh = world(2, size // 2)
    elif layout.startswith("tp"):
        mesh = world(size // 2, 2)
        style = ColwiseParallel() if layout == "tp_columns" else RowwiseParallel()
        for block in model.layers:
            parallelize_module(block, mesh["b"], {"up": style})
        mesh = mesh["a"]
    else:
        mesh = world(size)
    for block in model.layers:
        fully_shard(block["up"], mesh=mesh)
    fully_shard(model, mesh=mesh)
    placements = {type(p) for m in matrices_of(model) for p in m.parameter.placements}
    assert (_StridedShard in placements) == (layout == "tp_columns"), STRIDED
    optimizer = torch.optim.SGD(groups_of(model), lr=0.1)
    sources = PlainHost(model, [optimizer], None).sources(matrices_of(model), None)
    assert all(isinstance(source, DTensorSource) for source in sources)
    return check_gathering(sources, values, dist.group.WORLD)


def check_layouts(layouts):
    even = [(m - m % 2, n - n % 2) for m, n in SHAPES]
    return [check_sharded(layout, even if layout == "tp_rows" else SHAPES) for layout in layouts]


@pytest.mark.ranks
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_what_fully_shard_made_arrives_whole(world_size):
    layouts = ("fsdp", "hsdp", "tp_columns", "tp_rows") if world_size % 2 == 0 else ("fsdp",)
    found = zip(*run_ranks(check_layouts, world_size, layouts), strict=True)
    for layout, owned in zip(layouts, found, strict=True):
        assert sum(owned) == len(SHAPES), layout
        assert min(owned) > 0, layout


def check_training(layout):
    """Alphas and decays as in one process, before and after an update, and from within a forward."""
    whole, _ = filled(TUNABLE)
    alone = torch.optim.AdamW(param_groups(whole, weight_decay=0.1), lr=1e-2)
    model, _ = filled(TUNABLE)
    size = dist.get_world_size()
    mesh = world(2, size // 2) if layout == "hsdp" else world(size)
    for block in model.layers:
        fully_shard(block["up"], mesh=mesh, reshard_after_forward=False)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    optimizer = torch.optim.AdamW(param_groups(model, weight_decay=0.1), lr=1e-2)
    own = dist.new_group([dist.get_rank()], use_local_synchronization=True)
    ours = AlphaDecay(model, optimizer, weight_decay=0.1, interval=1)
    theirs = AlphaDecay(
        whole,
        alone,
        process_group=own,
        weight_decay=0.1,
        interval=1,
    )
    inputs = torch.randn(3, 172, generator=torch.Generator().manual_seed(0))
    for update in range(3):
        tolerance = 1e-5 if update else 1e-6  # the mean over ranks rounds
        loss, expected = model(inputs), whole(inputs)
        found, reference = ours.step().modules, theirs.step().modules
        for name, module in reference.items():
            assert found[name].alpha == pytest.approx(module.alpha, abs=tolerance)
            assert found[name].weight_decay == pytest.approx(module.weight_decay, abs=tolerance)
        assert {module.owner for module in found.values()} == set(range(size))
        for own, optimized in ((loss, optimizer), (expected, alone)):
            own.backward()
            optimized.step()
            optimized.zero_grad()
    for matrix in matrices_of(whole):
        weight = dict(model.named_parameters())[f"{matrix.name}.weight"].full_tensor()
        assert float((weight - matrix.parameter).norm() / weight.norm()) < 1e-5


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("layout", "world_size"),
    [("fsdp", 1), ("fsdp", 3), ("hsdp", 4), pytest.param("fsdp", 2, marks=pytest.mark.long)],
)
def test_sharded_training_has_the_decays_of_one_process(layout, world_size):
    run_ranks(check_training, world_size, layout)


def check_any_placement(cases):
    """Every case is (shape, mesh sizes, placements); under the real distribute_tensor."""
    for shape, sizes, placements in cases:
        mesh = world(*sizes)
        whole = torch.arange(math.prod(shape), dtype=torch.float32).view(shape)
        tensors = {f"w{number}": whole + number for number in range(3)}
        members = {rank: rank for rank in range(dist.get_world_size())}
        sources = [
            DTensorSource(name, distribute_tensor(tensor, mesh, placements), members)
            for name, tensor in tensors.items()
        ]
        check_gathering(sources, tensors, dist.group.WORLD)


class Experts(nn.Module):
    """A block with a whole Linear and two stacks of five experts, one of them fused."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        block = nn.Module()
        block.proj = nn.Linear(64, 60)
        block.experts = nn.Module()
        block.experts.gate_up_proj = nn.Parameter(torch.randn(5, 120, 70, generator=generator))
        block.experts.down_proj = nn.Parameter(torch.randn(5, 70, 60, generator=generator))
        with torch.no_grad():
            block.proj.weight.copy_(torch.randn(60, 64, generator=generator))
        self.layers = nn.ModuleList([block])


def check_experts(placements, mesh_sizes):
    """Stacks sharded by expert or within each, beside a weight that every rank has whole."""
    own = dist.new_group([dist.get_rank()], use_local_synchronization=True)
    reports = []
    for sharded in (False, True):
        model = Experts()
        experts = model.layers[0].experts
        for name in ("gate_up_proj", "down_proj") if sharded else ():
            tensor = distribute_tensor(getattr(experts, name).detach(), world(*mesh_sizes), placements)
            setattr(experts, name, nn.Parameter(tensor))
        optimizer = torch.optim.SGD(param_groups(model, weight_decay=0.1), lr=0.1)
        decay = AlphaDecay(model, optimizer, weight_decay=0.1, process_group=None if sharded else own)
        reports.append(decay.refresh().modules)
    alone, together = reports
    assert len(alone["layers.0.experts.gate_up_proj"].parts) == 10
    found = {name: {p: r.alpha for p, r in (m.parts or {name: m}).items()} for name, m in together.items()}
    assert found == {
        name: pytest.approx({p: r.alpha for p, r in (m.parts or {name: m}).items()}, abs=1e-6)
        for name, m in alone.items()
    }
    owners = {part.owner for module in together.values() for part in module.parts.values()}
    assert owners == set(range(dist.get_world_size()))


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("placements", "mesh"),
    [
        ((Shard(0),), (2,)),
        ((Shard(0),), (3,)),
        ((Shard(1),), (3,)),
        ((Shard(0), Shard(1)), (2, 2)),
        ((Replicate(), Shard(0)), (2, 2)),
    ],
)
def test_sharded_experts_have_the_alphas_of_whole_ones(placements, mesh):
    run_ranks(check_experts, math.prod(mesh), placements, mesh)


sizes = st.sampled_from([1, 2, 3, 5, 7, 16, 43, 61])


@st.composite
def any_placement(draw, world_size):
    shape = draw(st.lists(sizes, min_size=2, max_size=3))
    mesh = draw(st.sampled_from([(a, world_size // a) for a in (1, 2, 3, 4) if world_size % a == 0]))
    one = st.sampled_from([Replicate(), *(Shard(dim) for dim in range(len(shape)))])
    return tuple(shape), mesh, tuple(draw(st.lists(one, min_size=2, max_size=2)))


@pytest.mark.ranks
@pytest.mark.parametrize("world_size", [1, 2, 3, pytest.param(4, marks=pytest.mark.long)])
def test_drawn_placements_arrive_whole(world_size):
    @settings(deadline=None, max_examples=1, phases=[Phase.generate])
    @given(st.lists(any_placement(world_size), min_size=8, max_size=8).filter(lambda c: len(set(c)) > 5))
    def drawn(cases):
        run_ranks(check_any_placement, world_size, cases)

    drawn()


@st.composite
def twice_sharded(draw):
    """As FSDP2 after tensor parallelism has cut the same dimension."""
    shape, mesh = (
        draw(st.lists(sizes, min_size=2, max_size=2)),
        draw(st.sampled_from([(2, 2), (2, 3), (3, 2)])),
    )
    dim = draw(st.integers(0, 1))
    return tuple(shape), mesh, (_StridedShard(dim, split_factor=mesh[1]), Shard(dim))


@given(any_placement(4) | twice_sharded())
def test_drawn_pieces_cover_the_tensor_once(case):
    shape, mesh, placements = case
    check_cover("w", mesh_layout(shape, placements, mesh, tuple(range(math.prod(mesh)))), shape)


def test_replicas_are_in_the_same_order_in_every_piece():
    pieces = mesh_layout((6, 4), (Replicate(), Shard(0)), (2, 2), (0, 1, 2, 3)).pieces
    assert [piece.holders for piece in pieces] == [(0, 2), (1, 3)]
    assert [piece.index.ranges for piece in pieces] == [
        ((Flat(0, 3),), (Flat(0, 4),)),
        ((Flat(3, 6),), (Flat(0, 4),)),
    ]
    placements = (_StridedShard(0, split_factor=2), Shard(0))
    strided = mesh_layout((8, 2), placements, (2, 2), (0, 1, 2, 3)).pieces
    assert strided[0] == Piece((0,), strided[0].index)
    assert [piece.index.ranges[0] for piece in strided] == [
        (Flat(0, 2),),
        (Flat(4, 6),),
        (Flat(2, 4),),
        (Flat(6, 8),),
    ]


def check_refused():
    members = {rank: rank for rank in range(4)}
    whole = torch.ones(64, 64)
    partial = DTensor.from_local(whole, world(4), (Partial(),))
    with pytest.raises(UserError, match=r"up: placement P.* cannot be served"):
        DTensorSource("up", partial, members)
    permuted = dist.device_mesh.DeviceMesh("cpu", [3, 1, 0, 2])
    with pytest.raises(UserError, match=r"in the order \[3, 1, 0, 2\]"):
        DTensorSource("up", distribute_tensor(whole, permuted, [Shard(0)]), members)
    with pytest.raises(UserError, match=r"ranks \[2, 3\] of its device mesh are not in"):
        DTensorSource("up", distribute_tensor(whole, world(4), [Shard(0)]), {0: 0, 1: 1})


@pytest.mark.ranks
def test_what_cannot_be_served_is_refused_with_the_reason():
    run_ranks(check_refused, 4)
