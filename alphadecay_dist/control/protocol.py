"""What a training loop calls of a policy, and the policy that does nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import nn

from alphadecay_dist.control.controller import AlphaDecay
from alphadecay_dist.control.refresh import Refresh
from alphadecay_dist.decay.policies import UNIFORM
from alphadecay_dist.decay.settings import Settings


class DecayController(Protocol):
    """A policy as the loop sees it. Every call is collective."""

    def step(self) -> Refresh | None:
        """Act, if the policy is due, and count the update.

        Called once per update on every engine, when all its gradients are there, averaged over the ranks,
        and before any weight changes.

        Returns:
            A refresh that wrote decays now, to be logged.
        """
        ...

    def log(self) -> dict[str, float]:
        """Numbers of the last update, by name, that go into its line of metrics.jsonl."""
        ...

    def state_dict(self) -> dict[str, str]:
        """What a resume needs; empty where that is nothing."""
        ...

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Take up a state that is not empty; called after the optimizer was loaded."""
        ...

    def begin_at(self, updates: int) -> None:
        """Begin in a run that so many updates of a policy without a state have made."""
        ...


class FixedDecay:
    """Leaves the decays as the param groups have them: the controller of Uniform, at no cost."""

    def step(self) -> Refresh | None:
        """Nothing to do."""
        return None

    def log(self) -> dict[str, float]:
        """No numbers."""
        return {}

    def state_dict(self) -> dict[str, str]:
        """Nothing to keep."""
        return {}

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """The state of another policy, which the run had before: it has no say any more."""

    def begin_at(self, updates: int) -> None:
        """Nothing to begin."""


def controller_for(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: Settings,
    *,
    engine: Any | None,
    dtype: torch.dtype,
    histograms: bool = False,
) -> DecayController:
    """The controller of the settings' policy; the arguments are those of :class:`AlphaDecay`. Collective."""
    if settings.policy == UNIFORM and not settings.cautious:
        return FixedDecay()
    return AlphaDecay(model, optimizer, settings, engine=engine, dtype=dtype, histograms=histograms)
