"""Learning rates per matrix: the schedule's rate times a ratio, in force during the optimizer's step alone.

Schedulers read and write the groups' rates between steps, some of them recursively. So they find there what
they wrote, and the ratios come in by a hook before the step and go out by one after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from alphadecay_dist.control.hooks import StepHooks
from alphadecay_dist.control.refresh import Measurement
from alphadecay_dist.decay.settings import Settings
from alphadecay_dist.engines.host import Host
from alphadecay_dist.params.group_decay import set_decay
from alphadecay_dist.params.groups import GROUP_KEY, names_in
from alphadecay_dist.params.inventory import Weight


class RateWriter:
    """Multiplies the learning rate of each module's group; embeddings and head get the largest ratio.

    These have a group of their own with ``param_groups(..., matrices_apart=True)``; else they keep the base
    rate with the norms.

    Args:
        settings: of the policy.
        host: the engine that holds the groups.
        weights: all that the groups name.

    Raises:
        UserError: an optimizer has no hooks, or its steps are captured.
    """

    def __init__(self, settings: Settings, host: Host, weights: Sequence[Weight]) -> None:
        self._ratios: dict[str, float] = {}
        self._host = host
        self._weight_decay = settings.weight_decay
        self._kept: list[tuple[dict[str, Any], Any]] = []
        for optimizer in host.optimizers:
            hooks = StepHooks(optimizer, f"policy {settings.policy!r}")
            hooks.add(self._before_step, self._after_step)

    def write(self, numbers: Mapping[str, float], found: Mapping[str, Measurement]) -> None:
        """See :class:`alphadecay_dist.control.writers.Writer`; here the numbers are ratios.

        That of embeddings and head is named as their group is.
        Decays are the base's, whatever another policy had left in the groups.
        """
        for group in self._host.param_groups():
            if names_in(group):
                set_decay(group, self._weight_decay, self._weight_decay)
        self._ratios |= numbers

    def _before_step(self, optimizer: torch.optim.Optimizer) -> None:
        self._restore()  # after a step that raised
        for group in optimizer.param_groups:
            ratio = self._ratios.get(group.get(GROUP_KEY, ""), 1.0)
            self._kept.append((group, group["lr"]))
            group["lr"] = group["lr"] * ratio

    def _after_step(self, optimizer: torch.optim.Optimizer) -> None:
        self._restore()

    def _restore(self) -> None:
        """Give the groups the schedule's rates again."""
        for group, rate in self._kept:
            group["lr"] = rate
        self._kept.clear()
