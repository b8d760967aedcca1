"""The trackers of a run, as ``logging.to`` names them: what fails in one is a warning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from alphadecay_dist.errors import UserError, warn
from alphadecay_dist.training.outputs.csv_run import CSVRun
from alphadecay_dist.training.outputs.tensorboard_run import TensorBoardRun
from alphadecay_dist.training.outputs.tracker import Record, Tracker
from alphadecay_dist.training.outputs.wandb_run import WandbRun
from alphadecay_dist.training.recipe import LoggingConfig


class Trackers:
    """Trackers by name; one that fails is left out from there on, for no update may be lost for it.

    Args:
        start: what starts each; a UserError of theirs is raised.
    """

    def __init__(self, start: Mapping[str, Callable[[], Tracker]]) -> None:
        self.running: dict[str, Tracker] = {}
        for name, begin in start.items():
            try:
                self.running[name] = begin()
            except UserError:
                raise
            except Exception as error:  # what they are made of raises a dozen unrelated types
                _warn(name, "does not start", error)

    def log(self, kind: str, step: int, record: Record) -> None:
        """See :meth:`Tracker.log`."""
        self._each(f"failed at update {step}", lambda tracker: tracker.log(kind, step, record))

    def go_back(self, step: int) -> None:
        """See :meth:`Tracker.go_back`."""
        self._each(f"failed at update {step}", lambda tracker: tracker.go_back(step))

    def close(self, exit_code: int) -> None:
        """End all."""
        self._each("did not end well", lambda tracker: tracker.close(exit_code))

    def _each(self, what: str, work: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.running.items()):
            try:
                work(tracker)
            except Exception as error:
                del self.running[name]
                _warn(name, what, error)


def start_trackers(logging: LoggingConfig, folder: Path, config: dict[str, Any], step: int) -> Trackers:
    """Start those that a recipe names, on rank 0.

    Args:
        logging: the recipe's section.
        folder: the output directory, whose own files hold what was recorded until now.
        config: the whole recipe, to be shown.
        step: updates that were made before.

    Raises:
        UserError: a new run asks for wandb online, and that does not start.
    """
    known: dict[str, Callable[[], Tracker]] = {
        "wandb": lambda: WandbRun(logging.wandb, folder, config, resumed=step > 0),
        "tensorboard": lambda: TensorBoardRun(folder, logging.every, step),
        "csv": lambda: CSVRun(folder, logging.every),
    }
    names = [name for name in logging.to if name != "wandb" or logging.wandb != "off"]
    return Trackers({name: known[name] for name in names})


def require_trackers(logging: LoggingConfig) -> None:
    """Refuse a tracker whose package is not there.

    Raises:
        UserError: TensorBoard's is not.
    """
    if "tensorboard" in logging.to and find_spec("tensorboard") is None:
        raise UserError(
            "logging.to: tensorboard is not installed; pip install 'alphadecay-dist[tensorboard]', or leave "
            "it out"
        )


def _warn(name: str, what: str, error: Exception) -> None:
    warn(f"{name} {what}: {' '.join(str(error).split())}; the run goes on without it")
