"""Muon and AdamW as one optimizer, for all that steps, saves and hooks one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

KEY = "ns_steps"  # of the groups of torch's Muon alone


class MuonWithAdamW(torch.optim.Optimizer):
    """Steps Muon's groups by one of torch's optimizers, and the others by AdamW.

    The groups are those of the two, Muon's first; the state of both is one dict. Muon's are known by their
    keys, for :func:`alphadecay_dist.attach` may split them.

    Args:
        muon: over the matrices.
        adamw: over the rest. Its learning rate is this one's.
    """

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW) -> None:
        super().__init__([*muon.param_groups, *adamw.param_groups], {"lr": adamw.defaults["lr"]})
        self._muon, self._adamw = muon, adamw

    def _share(self) -> None:
        """Let the two see the groups and the state of this one, which a load replaces."""
        self._muon.param_groups = [group for group in self.param_groups if KEY in group]
        self._adamw.param_groups = [group for group in self.param_groups if KEY not in group]
        self._muon.state = self._adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._share()
        self._muon.step()
        self._adamw.step()
        return loss
