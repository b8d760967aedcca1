"""Muon and AdamW as one optimizer, for all that steps, saves and hooks one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class MuonWithAdamW(torch.optim.Optimizer):
    """Steps Muon's groups by one of torch's optimizers, and the others by AdamW.

    The groups are those of the two, Muon's first; the state of both is one dict.

    Args:
        muon: over the matrices.
        adamw: over the rest. Its learning rate is this one's.
    """

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW) -> None:
        self._count = len(muon.param_groups)
        super().__init__([*muon.param_groups, *adamw.param_groups], {"lr": adamw.defaults["lr"]})
        self._muon, self._adamw = muon, adamw
        self._share()

    def _share(self) -> None:
        """Let the two see the groups and the state of this one, which a load replaces."""
        self._muon.param_groups = self.param_groups[: self._count]
        self._adamw.param_groups = self.param_groups[self._count :]
        self._muon.state = self._adamw.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See torch.optim.Optimizer."""
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._muon.step()
        self._adamw.step()
        return loss
