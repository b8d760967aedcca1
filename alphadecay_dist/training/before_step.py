"""What happens between an update's gradients and its step: the policy acts, and telemetry is taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alphadecay_dist.condition.sample import ConditionSample
from alphadecay_dist.condition.spectral_condition import SpectralCondition
from alphadecay_dist.control.protocol import DecayController
from alphadecay_dist.control.refresh import Refresh
from alphadecay_dist.training.outputs.run_log import RunLog


class BeforeStep:
    """Called by the engine before each step; what was found waits until the update's line is written.

    Args:
        decay: the policy's controller.
        condition: telemetry; None without.
    """

    def __init__(self, decay: DecayController, condition: SpectralCondition | None) -> None:
        self._decay = decay
        self._condition = condition
        self._refresh: Refresh | None = None
        self._sample: ConditionSample | None = None

    def __call__(self) -> None:
        """Refresh the decays where that is due, and sample the gradients that are there."""
        self._refresh = self._decay.step() or self._refresh
        if self._condition is not None:
            self._sample = self._condition.step() or self._sample

    def numbers(self) -> dict[str, float]:
        """The policy's own in the update's line."""
        return self._decay.log()

    def write(self, log: RunLog) -> None:
        """Log what was found, once."""
        refresh, sample = self._refresh, self._sample
        self._refresh = self._sample = None
        if refresh is not None:
            log.refresh(refresh)
        if sample is not None:
            log.condition(sample)

    def state(self) -> dict[str, str] | None:
        """What a resume needs; collective."""
        return self._decay.state_dict() or None

    def restore(self, state: Mapping[str, Any] | None, updates: int) -> None:
        """Go on after so many updates, with the policy's state if it has one; collective."""
        self._refresh = self._sample = None
        if state:
            self._decay.load_state_dict(state)
        else:
            self._decay.begin_at(updates)
        if self._condition is not None:
            self._condition.begin_at(updates)
