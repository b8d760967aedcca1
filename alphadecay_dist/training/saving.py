"""A run's checkpoints as they are saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alphadecay_dist.checkpoint import writer
from alphadecay_dist.engines.training import Training
from alphadecay_dist.training.ranks import Ranks
from alphadecay_dist.training.recipe import CheckpointConfig


class Saver:
    """Saves a run's checkpoints.

    Args:
        config: which stay.
        root: the directory of checkpoints.
        engine: what holds weights and optimizer.
        ranks: this rank among the others.

    Attributes:
        saved_at: the update whose checkpoint was the last to be saved, or loaded.
    """

    def __init__(self, config: CheckpointConfig, root: Path, engine: Training, ranks: Ranks) -> None:
        self._config = config
        self._root = root
        self._engine = engine
        self._ranks = ranks
        self.saved_at: int | None = None

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Save a checkpoint; collective. See :func:`alphadecay_dist.checkpoint.writer.save`."""
        writer.save(
            self._root,
            step,
            engine_state=self._engine.state(),
            layout=self._engine.layout,
            state=state,
            ranks=self._ranks,
            keep=self._config.keep,
        )
        self.saved_at = step
