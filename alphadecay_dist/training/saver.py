"""Save a run's checkpoints, while training waits or in the background."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alphadecay_dist.checkpoint import writer
from alphadecay_dist.checkpoint.background import BackgroundSave
from alphadecay_dist.engines.training import TrainEngine
from alphadecay_dist.training.process.ranks import Ranks
from alphadecay_dist.training.recipe import CheckpointConfig


class Saver:
    """Saves a run's checkpoints; in the background at most one at a time.

    Args:
        config: whether in the background, and how many checkpoints to keep.
        root: the directory of checkpoints.
        engine: holds weights and optimizer.
        ranks: this rank among the others.

    Attributes:
        saved_at: the update whose checkpoint was the last to be saved, started or loaded.
    """

    def __init__(self, config: CheckpointConfig, root: Path, engine: TrainEngine, ranks: Ranks) -> None:
        self._config = config
        self._root = root
        self._engine = engine
        self._ranks = ranks
        self._pending: BackgroundSave | None = None
        self.saved_at: int | None = None

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Save a checkpoint, or start to save it in the background; collective.

        Raises:
            RunError: it, or the one before it, cannot be written.
        """
        self.finish()
        engine_state, layout = self._engine.state(), self._engine.name
        if self._config.background:
            self._pending = BackgroundSave(
                self._root, step, engine_state=engine_state, layout=layout, state=state, ranks=self._ranks
            )
        else:
            writer.save(
                self._root,
                step,
                engine_state=engine_state,
                layout=layout,
                state=state,
                ranks=self._ranks,
                keep=self._config.keep,
            )
        self.saved_at = step

    @property
    def written(self) -> bool:
        """Whether a checkpoint is being saved in the background, and this rank's file of it is done."""
        return self._pending is not None and self._pending.written

    def finish(self) -> None:
        """Wait for the checkpoint that is being saved in the background, if there is one; collective.

        Raises:
            RunError: it cannot be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.complete(self._config.keep)
