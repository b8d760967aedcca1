"""Plain torch optimizers, over whole weights, DTensors or FSDP1's flat parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from alphadecay_dist.engines.native.dtensor import DTensorSource
from alphadecay_dist.engines.native.fsdp1 import FlatParameterSource, FlatPlace, flat_places, sharded_over
from alphadecay_dist.engines.native.gradients import GradientSource
from alphadecay_dist.engines.native.shares import plain_shares
from alphadecay_dist.engines.replicated import ReplicatedSource
from alphadecay_dist.engines.shares import Share
from alphadecay_dist.engines.updated import dtypes_of, parameters_of
from alphadecay_dist.errors import UserError
from alphadecay_dist.params.groups import names_in
from alphadecay_dist.params.inventory import Weight
from alphadecay_dist.sharding.collectives import Collectives
from alphadecay_dist.sharding.layout import ShardSource


class PlainHost:
    """A model and the torch optimizers that have its :func:`alphadecay_dist.param_groups`."""

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        group: dist.ProcessGroup | None,
    ) -> None:
        self._model = model
        self._optimizers = optimizers
        self._counts = [len(optimizer.param_groups) for optimizer in optimizers]
        self._group = group or (dist.group.WORLD if dist.is_initialized() else None)

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The given process group, else the default one."""
        return self._group

    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizers' own, one's after the other's; those that were added later come last."""
        pairs = [(own.param_groups, count) for own, count in zip(self._optimizers, self._counts, strict=True)]
        first = [group for groups, count in pairs for group in groups[:count]]
        return first + [group for groups, count in pairs for group in groups[count:]]

    @property
    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """Those given."""
        return self._optimizers

    def premultiply_refusal(self) -> str | None:
        """Nothing: the optimizer's parameters are the weights, or views of them."""
        return None

    def updated(
        self, group: Mapping[str, Any], parameters: Sequence[nn.Parameter]
    ) -> list[tuple[int, Tensor]]:
        """The group's own parameters, of which a module may hold another tensor."""
        return parameters_of(group)

    def updated_dtypes(self) -> set[torch.dtype]:
        """Those of the groups' own parameters."""
        return dtypes_of(self.param_groups())

    def updates(self) -> None:
        """None: nothing counts them here."""

    def loaded(self) -> None:
        """Nothing: torch's own loading leaves nothing wrong."""

    def at_boundary(self) -> bool:
        """Always: without an engine the caller steps the controller once an update."""
        return True

    def shares(self, weights: Sequence[Weight]) -> Iterator[Share]:
        """Of the optimizer's own parameters that have a gradient."""
        return plain_shares(self.param_groups(), self._model, self._group)

    def gradients_refusal(self) -> None:
        """None: they are the parameters' own."""

    def gradient_scale(self, norm: float) -> float:
        """1: the caller has unscaled and clipped them."""
        return 1.0

    def early_gradients_refusal(self) -> None:
        """None: gradients are there when the caller says so."""

    def sources(self, weights: Sequence[Weight], dtype: torch.dtype | None) -> list[ShardSource]:
        """Each weight as the optimizer's parameter holds it, the most exact that there is. Collective.

        Raises:
            UserError: a weight is not the one that the optimizer has, or is sharded in a way that cannot be
                served.
        """
        members = dist.get_process_group_ranks(self._group) if self._group else [0]
        ranks = {rank: number for number, rank in enumerate(members)}
        collectives = Collectives(self._group)
        with collectives.raise_on_all_ranks():
            parameters = self._held(weights)
            places = flat_places(self._model)
            shards = _shards(weights, parameters, places, ranks)
        everyone = collectives.all_gather_checked([rank for own in shards.values() for rank in own])
        collectives.require_equal(
            "the ranks of AlphaDecay's process group hold the weights with different ranks",
            _holders(self._model, parameters),
            "give process_group= the ranks of one mesh or one DDP alone, such as mesh.get_group()",
            kind=UserError,
        )
        with collectives.raise_on_all_ranks():
            copies = _copies(shards, everyone)
            return [self._source(w, parameters.get(w.name), places, copies, ranks) for w in weights]

    def gradient_sources(self, weights: Sequence[Weight]) -> list[ShardSource]:
        """Of the same parameters: gradients are cut as they are. Collective."""
        sources, parameters = self.sources(weights, None), self._held(weights)
        return [GradientSource(source, parameters[source.name]) for source in sources]

    def _held(self, weights: Sequence[Weight]) -> dict[str, nn.Parameter]:
        """The tensors that hold the weights: after a forward a module may hold another than the optimizer."""
        return _named(self.param_groups())

    def _source(
        self,
        weight: Weight,
        parameter: nn.Parameter | None,
        places: Mapping[nn.Parameter, FlatPlace],
        copies: Mapping[Any, Sequence[tuple[int, ...]]],
        ranks: Mapping[int, int],
    ) -> ShardSource:
        """One weight as the optimizer's parameter holds it."""
        if isinstance(parameter, DTensor):
            return DTensorSource(weight.name, parameter, ranks)
        if parameter is not None and parameter in places:
            place, rank = places[parameter], dist.get_rank(self._group)
            return FlatParameterSource(weight.name, weight.shape, place, copies[place.handle], rank)
        _check_whole(weight, parameter)
        return ReplicatedSource(weight, len(ranks))


class WatchedHost(PlainHost):
    """A model whose weights are only read, whatever optimizer trains it, with or without groups."""

    def param_groups(self) -> list[dict[str, Any]]:
        """None: nothing is written."""
        return []

    def _held(self, weights: Sequence[Weight]) -> dict[str, nn.Parameter]:
        """The model's own parameters, as they were when the controller was constructed."""
        return {weight.name: weight.parameter for weight in weights}


def _named(groups: Sequence[Mapping[str, Any]]) -> dict[str, nn.Parameter]:
    """The optimizer's parameters by weight: after a forward a module may hold another tensor than it does."""
    found: dict[str, nn.Parameter] = {}
    for group in groups:
        found.update(zip(names_in(group), group["params"], strict=False))
    return found


def _shards(
    weights: Sequence[Weight],
    parameters: Mapping[str, nn.Parameter],
    places: Mapping[nn.Parameter, FlatPlace],
    ranks: Mapping[int, int],
) -> dict[Any, list[int]]:
    """By flat parameter (its handle) that holds weights: the ranks that divide this rank's copy of it."""
    shards: dict[Any, list[int]] = {}
    for weight in weights:
        parameter = parameters.get(weight.name)
        if parameter is None or parameter not in places:
            continue
        place = places[parameter]
        if place.handle not in shards:
            shards[place.handle] = sharded_over(weight.name, place, ranks)
    return shards


def _copies(
    shards: Mapping[Any, Sequence[int]], everyone: Sequence[Sequence[int]]
) -> dict[Any, list[tuple[int, ...]]]:
    """By flat parameter: the groups of ranks that hold one copy of it each.

    Args:
        shards: this rank's own group, as :func:`_shards` found it.
        everyone: the same of every rank, one flat parameter's ranks after the other's.
    """
    copies: dict[Any, list[tuple[int, ...]]] = {}
    start = 0
    for handle, own in shards.items():
        copies[handle] = sorted({tuple(row[start : start + len(own)]) for row in everyone})
        start += len(own)
    return copies


def _holders(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """Which ranks hold the weights together with this one, as far as DDP and meshes say; a line each."""
    lines = []
    for module in model.modules():
        if isinstance(module, DistributedDataParallel):
            lines.append(f"DDP over ranks {dist.get_process_group_ranks(module.process_group)}")
    meshes = {
        name: str(parameter.device_mesh.mesh.flatten().tolist())
        for name, parameter in parameters.items()
        if isinstance(parameter, DTensor)
    }
    first = {ranks: name for name, ranks in reversed(meshes.items())}
    return lines + [f"{name}: mesh of ranks {ranks}" for ranks, name in first.items()]


def _check_whole(weight: Weight, parameter: nn.Parameter | None) -> None:
    """Refuse a parameter that is not whole, or is not the model's own."""
    found = tuple(weight.parameter.shape)
    if found != weight.shape:
        raise UserError(
            f"{weight.name} is sharded, found {found}, expected the whole {weight.shape}; "
            "under DeepSpeed give AlphaDecay(..., engine=engine)"
        )
    if parameter is not weight.parameter:
        raise UserError(
            f"{weight.name} is not in the optimizer, whose groups name it: "
            "give AlphaDecay the model that the groups were built from, after it was wrapped or sharded"
        )
