"""What becomes of a run whose loss or gradients are not finite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from alphadecay_dist.errors import RunError

STOP, SKIP, ROLLBACK = "stop", "skip", "rollback"
POLICIES = (STOP, SKIP, ROLLBACK)


@dataclass
class BadUpdates:
    """Updates that were not applied.

    Attributes:
        policy: one of ``POLICIES``.
        limit: how many in a row are tolerated; for ``rollback``, without a new checkpoint between them.
        total: how many there were.
        in_a_row: how many since the last good update; for ``rollback``, since the last checkpoint.
    """

    policy: str
    limit: int
    total: int = 0
    in_a_row: int = 0

    def count(self, what: str) -> None:
        """One more.

        Args:
            what: its number and its values.

        Raises:
            RunError: the run is not to go on.
        """
        self.total += 1
        self.in_a_row += 1
        if self.policy == STOP:
            raise RunError(
                f"{what}; it was not applied, and the last checkpoint stands: start again from it with "
                "another learning rate, or with --train.on_nonfinite=skip or rollback"
            )
        if self.in_a_row > self.limit:
            raise RunError(
                f"{what}; train.on_nonfinite={self.policy} has tolerated {self.limit} before it, which is "
                "train.max_skips"
            )

    def applied(self) -> None:
        """A good update was made."""
        if self.policy != ROLLBACK:
            self.in_a_row = 0

    def saved(self) -> None:
        """A checkpoint was saved."""
        if self.policy == ROLLBACK:
            self.in_a_row = 0

    def state(self) -> dict[str, Any]:
        """What a resume needs."""
        return {"total": self.total, "in_a_row": self.in_a_row}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.total, self.in_a_row = state["total"], state["in_a_row"]
