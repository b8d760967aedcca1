"""The state of a run under ZeRO, stages 1 to 3, as this rank holds it.

How ZeRO lays weights out: the optimizer that the user gave, the inner one, steps flat fp32 tensors in place
of the parameters. A flat tensor is an entry of its groups' ``params``, and a key of its state.

Stages 1 and 2: one flat tensor per param group. The group's parameters lie in a row, with padding between and
behind them; the row is cut into W equal partitions, and rank r keeps partition r. A parameter may lie in
several partitions, and a partition may hold parts of many parameters.

    row of a group         | a  a  a  a  b  b | b  b  b  -  c  c |     W = 2, "-" is padding
    partitions               rank 0             rank 1                 each (P,), fp32

Stage 3: one flat tensor per sub-group, which is a param group's parameters up to ``sub_group_size`` elements.
Each parameter is cut into W chunks of ceil(numel / W) elements, the tail padded, and rank r keeps chunk r of
each: its chunks in a row are the flat tensor.

    flat tensor on rank 0  | a  a  b  b  b  c |                        a: 3 elements, b: 5, c: 2
    flat tensor on rank 1  | a  -  b  b  -  c |                        each (sum of the chunks,), fp32

For each flat tensor the inner optimizer keeps moments of its shape, and one step counter. So this rank's part
of a parameter's master, of its exp_avg and of its exp_avg_sq is one range of three tensors: its ``Place``.

Muon's momentum is another thing at stages 1 and 2: whole matrices in a row, of all parameters that this
rank's partition has a part of; what two ranks have of one, both keep. At stage 3 it is as the moments are.

The names used here are DeepSpeed's own; ``tests/engines/test_state.py`` holds DeepSpeed to what is written
here.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from alphadecay_dist.compat import flat_offsets
from alphadecay_dist.engines.native.state import TorchState
from alphadecay_dist.engines.state import WEIGHT, Part, Scalars, is_elementwise, scalar_tensor
from alphadecay_dist.sharding.layout import Flat, flat_chunks

MOMENTUM = "momentum_buffer"  # of Muon


@dataclass(frozen=True)
class Place:
    """Where this rank's piece of a parameter's master lies.

    Attributes:
        parameter: the model's own, with DeepSpeed's attributes on it.
        index: which elements of the flattened parameter this rank has; empty where it has none.
        flat: number of the flat tensor in which they lie, or would.
        at: where in that tensor they begin.
    """

    parameter: Any
    index: Flat
    flat: int
    at: int


class ZeroState:
    """The flat fp32 tensors of ZeRO on this rank, and whose pieces they hold.

    Args:
        engine: a ``DeepSpeedEngine`` at stage 1, 2 or 3.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._zero = engine.optimizer
        self._stage: int = engine.zero_optimization_stage()
        self._names = {parameter: name for name, parameter in engine.module.named_parameters()}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the whole parameters."""
        named = self._engine.module.named_parameters()
        return {name: tuple(getattr(parameter, "ds_shape", parameter.shape)) for name, parameter in named}

    def parts(self) -> list[Part]:
        """This rank's pieces of the fp32 masters and of the optimizer's flat tensors, without padding."""
        flats, shapes, rows = self.flats(), self.shapes, self._rows()
        found: list[Part] = []
        for place in self.places():
            if not place.index.numel:
                continue
            flat, name = flats[place.flat], self._names[place.parameter]
            tensors = {WEIGHT: flat}
            state = self._zero.optimizer.state.get(flat, {})
            row = rows.get(place.parameter)
            kept = {kind: value for kind, value in state.items() if row is None or kind != MOMENTUM}
            tensors |= {kind: value for kind, value in kept.items() if is_elementwise(value, flat)}
            for kind, tensor in tensors.items():
                values = tensor.detach().narrow(0, place.at, place.index.numel)  # (n,), a view
                found.append(Part(name, kind, shapes[name], place.index, values))
            if row is not None and MOMENTUM in state:
                whole = Flat(0, place.parameter.numel())
                values = state[MOMENTUM].detach().narrow(0, row, whole.numel)  # (m n,)
                found.append(Part(name, MOMENTUM, shapes[name], whole, values, place.index.start == 0))
        return found

    def scalars(self) -> Scalars:
        """The numbers that the optimizer keeps of a flat tensor, for each parameter in it."""
        flats = self.flats()
        found: Scalars = {}
        for place in self.places():
            flat = flats[place.flat]
            for key, value in self._zero.optimizer.state.get(flat, {}).items():
                if not is_elementwise(value, flat) and key != MOMENTUM:
                    found.setdefault(key, {})[self._names[place.parameter]] = float(value)
        return found

    def create(self, kinds: Mapping[str, Collection[str]], scalars: Scalars) -> None:
        """Entries for every flat tensor, from those of its parameters, which are stepped together."""
        names: dict[int, list[str]] = {}
        for place in self.places():
            names.setdefault(place.flat, []).append(self._names[place.parameter])
        group: dict[str, Any] = self._zero.optimizer.param_groups[0]
        for number, flat in enumerate(self.flats()):
            own = names[number]
            wanted = dict.fromkeys(kind for name in own for kind in kinds.get(name, ()))
            numbers = {key: [of[name] for name in own if name in of] for key, of in scalars.items()}
            state = {key: scalar_tensor(max(of), flat, group) for key, of in numbers.items() if of}
            state |= {kind: self._zeros(kind, number, flat.detach()) for kind in wanted}
            if state:
                self._zero.optimizer.state[flat] = state

    def _zeros(self, kind: str, number: int, flat: Tensor) -> Tensor:
        """Room for what the optimizer keeps of a flat tensor: (P,), or a row of whole matrices."""
        if kind != MOMENTUM:
            return torch.zeros_like(flat)
        if self._stage == 3:
            return torch.zeros_like(flat, dtype=self._zero.communication_data_type)
        return flat.new_zeros(sum(own.numel() for own in self._zero.params_in_partition[number]))

    def _rows(self) -> dict[Any, int]:
        """Where the momentum of each parameter in this rank's partition begins, at stages 1 and 2."""
        if self._stage == 3:
            return {}
        rows: dict[Any, int] = {}
        for parameters in self._zero.params_in_partition:
            ends = itertools.accumulate((own.numel() for own in parameters), initial=0)
            rows.update(zip(parameters, ends, strict=False))
        return rows

    def publish(self, step: int) -> None:
        """Round the masters into the weights that the model computes with, as an update does.

        DeepSpeed has no public call for this; these are the ones that its own loading makes.
        """
        if self._stage == 3:
            self._zero.checkpoint_event_prologue()  # all weights partitioned
            for number in range(len(self._zero.fp16_groups)):
                self._zero._reassign_or_swap_out_partitioned_parameters(number)
            self._zero.checkpoint_event_epilogue()  # small ones whole again, and second copies (hpZ) dropped
        else:
            self._zero.update_lp_params()
        self._engine.global_steps = step
        self._engine.global_samples = step * self._engine.train_batch_size()

    def flats(self) -> Sequence[Tensor]:
        """This rank's flat fp32 tensors: (P,) of each group, or a sub-group's row of chunks."""
        zero = self._zero
        return zero.fp32_partitioned_groups_flat if self._stage == 3 else zero.single_partition_of_fp32_groups

    def places(self) -> Iterator[Place]:
        """A place for every parameter, also where this rank has nothing of it."""
        return self._chunks() if self._stage == 3 else self._fragments()

    def _fragments(self) -> Iterator[Place]:
        """Stages 1 and 2: what the row of a group's parameters and this rank's partition have in common."""
        zero = self._zero
        for number, flat in enumerate(zero.single_partition_of_fp32_groups):  # (P,)
            begin = dist.get_rank(zero.real_dp_process_group[number]) * flat.numel()
            own = Flat(begin, begin + flat.numel())  # of the row
            offsets = flat_offsets(zero, number)
            for parameter, offset in zip(zero.round_robin_bit16_groups[number], offsets, strict=True):
                whole = Flat(offset, offset + parameter.numel())  # of the row
                index, place = own.within(whole), whole.within(own)
                yield Place(parameter, index or Flat(0, 0), number, place.start if place else 0)

    def _chunks(self) -> Iterator[Place]:
        """Stage 3: this rank's chunk of every parameter, in the row of its sub-group."""
        zero, group = self._zero, self._engine.seq_data_parallel_group
        rank, world_size = dist.get_rank(group), dist.get_world_size(group)
        for parameter in self._engine.module.parameters():
            number, offset, _ = zero.grad_position[zero.get_param_id(parameter)]
            yield Place(parameter, flat_chunks(parameter.ds_numel, world_size)[rank], number, offset)


def zero_state(engine: Any) -> ZeroState | TorchState:
    """The state under a ``DeepSpeedEngine``: at stage 0 with fp32 weights it is the torch optimizer's own."""
    if engine.zero_optimization_stage():
        return ZeroState(engine)
    return TorchState(engine.module, engine.basic_optimizer)
