"""DeepSpeed ZeRO, stages 0 to 3, as the controller sees it.

Where the weights lie that the model computes with, and their fp32 masters, which bf16 weights have:

    stage    weights                                       masters
    0        whole on every rank, (m, n)                   none that can be read
    1, 2     whole on every rank, (m, n)                   a flat fragment of any length per rank, or none:
                                                           ``_hp_mapping``
    3        a flat chunk per rank, (ceil(m n / W),),      the same elements on the same ranks
             the tail padded: ``ds_tensor``; the
             parameter itself then has the shape (0,)

``zero/state.py`` tells how the masters lie in flat tensors. The attributes used here are DeepSpeed's own;
``tests/engines/zero/test_contract.py`` holds DeepSpeed to what is written here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_local_fp32_param
from torch import Tensor, nn

from alphadecay_dist.compat import manages_accumulation, super_offload
from alphadecay_dist.engines.native.gradients import GradientSource
from alphadecay_dist.engines.native.shares import plain_shares
from alphadecay_dist.engines.replicated import replicated_sources
from alphadecay_dist.engines.shares import Share
from alphadecay_dist.engines.state import scalar_tensor
from alphadecay_dist.engines.updated import dtypes_of, parameters_of
from alphadecay_dist.engines.versions import require
from alphadecay_dist.engines.zero import config as zero_config
from alphadecay_dist.engines.zero.gradients import flat_gradients
from alphadecay_dist.engines.zero.marks import is_deepspeeds_muon, is_torchs_muon
from alphadecay_dist.engines.zero.shares import gradient_scale, zero_shares
from alphadecay_dist.engines.zero.updated import fragments_of, partitions_of
from alphadecay_dist.errors import UserError, warn
from alphadecay_dist.params.groups import names_in
from alphadecay_dist.params.inventory import Weight
from alphadecay_dist.sharding.collectives import Collectives
from alphadecay_dist.sharding.layout import Flat, Layout, Piece, ShardSource, chunked_layout

require("deepspeed")


class ZeroShard:
    """A weight under stage 3: rank r holds elements [r c, (r + 1) c) with c = ceil(numel / W)."""

    def __init__(self, weight: Weight, world_size: int, rank: int) -> None:
        parameter: Any = weight.parameter
        if tuple(parameter.ds_shape) != weight.shape:
            raise UserError(
                f"{weight.name}: DeepSpeed holds shape {tuple(parameter.ds_shape)}, "
                f"its module says {weight.shape}"
            )
        held, chunk = parameter.ds_tensor.numel(), -(-parameter.ds_numel // world_size)
        if held != chunk:
            raise UserError(
                f"{weight.name}: this rank has {held} elements of it in memory, expected {chunk}; "
                "parameters on NVMe or quantised ones cannot be analysed: use device cpu or none"
            )
        self.name = weight.name
        self.shape: tuple[int, ...] = weight.shape
        self.dtype: torch.dtype = parameter.ds_tensor.dtype
        self._parameter = parameter
        self.layout = chunked_layout(parameter.ds_numel, world_size)
        self._length = max(0, min(chunk, parameter.ds_numel - rank * chunk))

    def local(self) -> Tensor | None:
        """This rank's piece without its padding, (n,)."""
        return self._parameter.ds_tensor.detach().narrow(0, 0, self._length) if self._length else None


class ZeroMaster(ZeroShard):
    """The fp32 master of a weight under stage 3: the same elements on the same ranks."""

    def __init__(self, weight: Weight, world_size: int, rank: int) -> None:
        super().__init__(weight, world_size, rank)
        self.dtype = torch.float32

    def local(self) -> Tensor | None:
        """This rank's piece of the master, (n,)."""
        if not self._length:
            return None
        return safe_get_local_fp32_param(self._parameter).detach()[: self._length]


class MasterFragment:
    """The fp32 master of a weight under stages 1 and 2: pieces of any length on any of the ranks.

    Args:
        weight: whose parameter DeepSpeed has linked to its master.
        ranges: what each rank has of it, flattened, [start, stop); equal bounds for nothing.
    """

    def __init__(self, weight: Weight, ranges: Sequence[Flat]) -> None:
        self.name = weight.name
        self.shape = weight.shape
        self.dtype = torch.float32
        self._parameter: Any = weight.parameter
        self.layout = Layout(Piece((rank,), part) for rank, part in enumerate(ranges) if part.numel)

    def local(self) -> Tensor | None:
        """This rank's piece, (n,)."""
        fragment = self._parameter._hp_mapping
        return None if fragment is None else fragment.hp_fragment.detach()


class ZeroHost:
    """A ``DeepSpeedEngine`` that was given a torch optimizer over :func:`alphadecay_dist.param_groups`."""

    def __init__(self, engine: Any, *, watches: bool = False) -> None:
        self._engine = engine
        nameless = is_deepspeeds_muon(self._inner) and not any(map(names_in, self._inner.param_groups))
        if not watches and nameless:
            raise UserError(
                f"optimizer: found DeepSpeed's own {type(self._inner).__name__}, whose groups lose their "
                "names; make an optimizer of param_groups() and give it to "
                "deepspeed.initialize(optimizer=...), see docs/muon.md"
            )
        if not watches:
            self._refuse_flat_muon()
            refuse_unservable(engine)
            self._warn_of_clipping()

    def _refuse_flat_muon(self) -> None:
        """Refuse torch's Muon where DeepSpeed gives it flat tensors, at whose first step it would fail."""
        stage = self._engine.zero_optimization_stage()
        if stage and is_torchs_muon(self._inner):
            raise UserError(
                f"optimizer: found {type(self._inner).__name__} at ZeRO stage {stage}, which gives it pieces "
                "of flat tensors, expected DeepSpeed's Muon as docs/muon.md makes it, or stage 0"
            )

    def _warn_of_clipping(self) -> None:
        """Of a norm that clips what Muon has orthogonalised, as DeepSpeed's default does."""
        clip = self._engine.gradient_clipping()
        partitions = self._engine.zero_optimization_stage() and is_deepspeeds_muon(self._inner)
        if partitions and clip > 0 and dist.get_rank(self.group) == 0:
            warn(
                f"DeepSpeed config: gradient_clipping is {clip}, which with DeepSpeed's Muon clips the "
                "orthogonalised updates, whose norm is far above it; set it to 0 (its default is 1.0)"
            )

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The group over which ZeRO partitions."""
        return self._engine.seq_data_parallel_group

    def param_groups(self) -> list[dict[str, Any]]:
        """The ZeRO optimizer's groups: their params are flat or gone, their order and our key remain."""
        return self._engine.optimizer.param_groups

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The one given to DeepSpeed, which its own optimizer steps."""
        return [self._inner]

    @property
    def _inner(self) -> Any:
        return self._engine.basic_optimizer

    def premultiply_refusal(self) -> str | None:
        """What in the config rules it out, see :func:`zero_config.premultiply_refusal`."""
        return zero_config.premultiply_refusal(self._engine._config._param_dict)

    def updated(
        self, group: Mapping[str, Any], parameters: Sequence[nn.Parameter]
    ) -> list[tuple[int, Tensor]]:
        """The parameters at stage 0, pieces of the flat fp32 masters above."""
        stage = self._engine.zero_optimization_stage()
        if stage == 3:
            return partitions_of(group, parameters)
        return fragments_of(parameters) if stage else parameters_of(group)

    def updated_dtypes(self) -> set[torch.dtype]:
        """Those of the fp32 masters, or of what the config has instead; at stage 3 no group has them."""
        if self._engine.zero_optimization_stage() == 3:
            return {flat.dtype for flat in self._engine.optimizer.fp32_partitioned_groups_flat}
        return dtypes_of(self._inner.param_groups)

    def updates(self) -> int:
        """Updates that it skipped count too."""
        return self._engine.global_steps

    def loaded(self) -> None:
        """Give each flat partition a step counter of its own.

        A universal checkpoint's load at stage 3 leaves one tensor for all of them, which the update of each
        would count on.
        """
        group = self._inner.param_groups[0]
        for flat, state in self._inner.state.items():
            if isinstance(state.get("step"), Tensor):
                state["step"] = scalar_tensor(float(state["step"]), flat, group)

    def at_boundary(self) -> bool:
        """Whether the next ``engine.step()`` updates the weights."""
        if not manages_accumulation(self._engine):
            return True  # the caller owns the boundary: every step() is one
        return self._engine.is_gradient_accumulation_boundary()

    def shares(self, weights: Sequence[Weight]) -> Iterator[Share]:
        """This rank's pieces of the flat masters and their gradients; whole parameters at stage 0."""
        if self._engine.zero_optimization_stage():
            return zero_shares(self._engine, weights)
        return plain_shares(self._inner.param_groups, self._engine.module, self.group)

    def gradient_sources(self, weights: Sequence[Weight]) -> list[ShardSource]:
        """Pieces of the flat gradients; at stage 0 whole ones on every rank. Collective."""
        if self._engine.zero_optimization_stage():
            return flat_gradients(self._engine, weights, Collectives(self.group))
        parameters = {weight.name: weight.parameter for weight in weights}
        sources = replicated_sources(weights, self.group)
        return [GradientSource(source, parameters[source.name]) for source in sources]

    def gradients_refusal(self) -> str | None:
        """Half precision at stage 0, and bf16 with fp32 accumulation at stage 1: not before the step.

        DeepSpeed has other optimizers there, which give the gradients to the inner one in their step alone.
        Nor with DeepSpeed's Muon, which keeps its updates where gradients would be.
        """
        own = self._engine.optimizer
        if is_deepspeeds_muon(self._inner):
            return (
                "DeepSpeed's Muon has orthogonalised them before the step; use FSDP2 or DDP, or take a "
                "policy that reads none"
            )
        if own is self._inner or hasattr(own, "averaged_gradients"):
            return None
        return (
            f"found DeepSpeed's {type(own).__name__}, which shows none before its step; use ZeRO "
            "stage 2 or 3, or stage 1 without data_types.grad_accum_dtype"
        )

    def gradient_scale(self, norm: float) -> float:
        """Clipping is the step's, and so is undoing the loss scale."""
        return gradient_scale(self._engine, norm)

    def early_gradients_refusal(self) -> str:
        """DeepSpeed averages them in the last backward, before which the caller speaks of a boundary."""
        return (
            "DeepSpeed has this update's gradients after its last backward alone; call step() without "
            "boundary after engine.backward(), or take a policy that reads no gradients"
        )

    def sources(self, weights: Sequence[Weight], dtype: torch.dtype | None) -> list[ShardSource]:
        """Flat pieces at stage 3, whole weights below; the fp32 masters where bf16 is not enough. Collective.

        Raises:
            UserError: the engine cannot be served, or fp32 is asked for and there are no masters.
        """
        stage = self._engine.zero_optimization_stage()
        from_masters = dtype == torch.float32 and any(_held(weight).dtype != dtype for weight in weights)
        fragmented = weights if from_masters and stage < 3 else []
        ranks = Collectives(self.group)
        with ranks.raise_on_all_ranks():
            refuse_unservable(self._engine)
            if from_masters and stage == 0:
                raise UserError(
                    "dtype: found float32 for bf16 weights at ZeRO stage 0, expected stage 1, 2 or 3"
                )
            bounds = [bound for weight in fragmented for bound in _fragment(weight)]
        everyone = ranks.all_gather_checked(bounds)  # by rank: start and stop of each fragment in turn
        with ranks.raise_on_all_ranks():
            if stage == 3:
                kind = ZeroMaster if from_masters else ZeroShard
                return [kind(weight, ranks.world_size, ranks.rank) for weight in weights]
            if not from_masters:
                return replicated_sources(weights, self.group)
            return [
                MasterFragment(weight, [Flat(*row[2 * place : 2 * place + 2]) for row in everyone])
                for place, weight in enumerate(fragmented)
            ]


def refuse_unservable(engine: Any) -> None:
    """Refuse what would ignore the decays, and weights that differ between ranks under one name.

    Raises:
        UserError: SuperOffload or ZenFlow is on, which forward nothing but the learning rate to the weights'
            update; or ranks hold other experts under one name, or other slices of one weight.
    """
    if super_offload(engine):
        raise UserError("SuperOffload ignores a weight decay that changes: set super_offload to false")
    if engine.zenflow:
        raise UserError("ZenFlow ignores a weight decay that changes: remove zenflow from the config")
    experts = max((getattr(module, "ep_size", 1) for module in engine.module.modules()), default=1)
    if experts > 1:
        raise UserError(
            f"DeepSpeed MoE: found ep_size {experts}, expected 1: ranks have other experts under one name; "
            "use ep_size=1, or expert parallelism of DTensors under FSDP2"
        )
    slices = max(engine.mp_world_size, engine.autotp_size())
    if slices > 1:
        raise UserError(
            f"DeepSpeed tensor parallelism: found {slices} ranks that share a weight, expected 1: each has "
            "another slice under the same name; use ZeRO alone, or tensor parallelism of DTensors with FSDP2"
        )


def _held(weight: Weight) -> Tensor:
    """What this rank holds of the weight that the model computes with."""
    return getattr(weight.parameter, "ds_tensor", weight.parameter)


def _fragment(weight: Weight) -> tuple[int, int]:
    """Which elements of a weight's master this rank has at stages 1 and 2."""
    parameter: Any = weight.parameter
    if parameter._hp_mapping is None:
        return 0, 0
    address = parameter._hp_mapping.lp_fragment_address
    return address.start, address.start + address.numel
