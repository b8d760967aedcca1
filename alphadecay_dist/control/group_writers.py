"""Decays written into param groups: each module's into its own, or one into all."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch.distributed as dist

from alphadecay_dist.control.refresh import Measurement
from alphadecay_dist.decay.choices import PREMULTIPLY
from alphadecay_dist.engines.host import Host
from alphadecay_dist.errors import warn
from alphadecay_dist.params.group_decay import TensorDecays, decay_of, set_decay
from alphadecay_dist.params.groups import GROUP_KEY, layout_of, names_in


class GroupWriter:
    """Writes each module's decay into its param group, fetched again each time and found by name.

    Args:
        host: the engine that holds the groups.
        weight_decay: the base decay.

    Raises:
        UserError: groups share a tensor as their decay.
    """

    def __init__(self, host: Host, weight_decay: float) -> None:
        self._host = host
        self._base = weight_decay
        self._tensors = TensorDecays(host.param_groups())

    def write(self, numbers: Mapping[str, float], found: Mapping[str, Measurement]) -> None:
        """See :class:`Writer`."""
        groups = self._host.param_groups()
        keep_tensors(self._tensors, groups, self._host)
        for group, decay in zip(groups, self._decays(groups, numbers), strict=True):
            if decay is not None:
                set_decay(group, decay, self._base)

    def _decays(
        self, groups: Sequence[Mapping[str, Any]], numbers: Mapping[str, float]
    ) -> list[float | None]:
        """The decay of each group; None where it keeps its own."""
        return [numbers.get(group.get(GROUP_KEY, "")) for group in groups]


class EveryGroupWriter(GroupWriter):
    """Writes the one decay of all modules into every group, but for groups that had none from the start.

    Groups for ``premultiply`` serve as well: one decay for all needs no product.

    Args:
        host: the engine that holds the groups.
        weight_decay: the base decay.

    Raises:
        UserError: see :class:`GroupWriter`.
    """

    def __init__(self, host: Host, weight_decay: float) -> None:
        super().__init__(host, weight_decay)
        groups = host.param_groups()
        decays = [decay_of(group) for group in groups]
        built = any(decays) or layout_of(groups) == PREMULTIPLY  # else another policy has left 0 in all
        self._free = [
            built and not names_in(group) and decay == 0 for group, decay in zip(groups, decays, strict=True)
        ]

    def _decays(
        self, groups: Sequence[Mapping[str, Any]], numbers: Mapping[str, float]
    ) -> list[float | None]:
        one = next(iter(numbers.values()))
        free = itertools.chain(self._free, itertools.repeat(True))  # groups that came later are not ours
        return [None if own else one for own, _ in zip(free, groups, strict=False)]


def keep_tensors(tensors: TensorDecays, groups: Sequence[dict[str, Any]], host: Host) -> None:
    """Say it where a load has left captured steps with tensors that nobody writes."""
    replaced = tensors.keep(groups)
    if replaced and (host.group is None or dist.get_rank(host.group) == 0):
        warn(
            f"optimizer: {replaced} param groups have another tensor as weight_decay than before, as after a "
            "load; decays are written into that one, but a graph captured before reads the old one, and the "
            "old moments: capture it again"
        )
