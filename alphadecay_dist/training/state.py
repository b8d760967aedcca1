"""The trainer's state in a checkpoint, read from its state.json with every value checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from alphadecay_dist.checkpoint.reader import Checkpoint
from alphadecay_dist.errors import UserError
from alphadecay_dist.json_fields import count, get, items
from alphadecay_dist.training.config import check, config_from_dict
from alphadecay_dist.training.inputs import Inputs, inputs_from
from alphadecay_dist.training.recipe import Config


@dataclass(frozen=True)
class SavedState:
    """The content of a state.json.

    Attributes:
        config: of the run that saved it.
        tokens: trained on.
        lanes: positions in the data by lane; the data check them when they load them.
        evaluation_owed: whether the evaluation after the last update was left to the next start.
        bad_updates: see :meth:`alphadecay_dist.training.bad_updates.BadUpdates.state`.
        decay: the controller's state; None for the uniform policy.
        inputs: what the run is made of; None in checkpoints of versions that did not keep it.
    """

    config: Config
    tokens: int
    lanes: dict[str, dict[str, Any]]
    evaluation_owed: bool
    bad_updates: dict[str, int]
    decay: dict[str, str] | None
    inputs: Inputs | None


@dataclass(frozen=True)
class SavedRun:
    """A checkpoint, and the trainer's state in it."""

    checkpoint: Checkpoint
    state: SavedState


def saved_run(checkpoint: Checkpoint) -> SavedRun:
    """A checkpoint with its state; see :func:`saved_state`."""
    return SavedRun(checkpoint, saved_state(checkpoint))


def saved_state(checkpoint: Checkpoint) -> SavedState:
    """Read and check the trainer's state in a checkpoint.

    Raises:
        UserError: it is not what this trainer saves.
    """
    try:
        data = checkpoint.state()
        config = config_from_dict(get(data, "config", dict))
        check(config)
        if config.train.dtype == "auto":
            raise ValueError("has 'auto' as train.dtype, expected the one that was found")
        bad = data.get("bad_updates", {"total": 0, "in_a_row": 0})  # older versions did not count them
        return SavedState(
            config=config,
            tokens=count(data, "tokens"),
            lanes=dict(items(data, "lanes", dict)),
            evaluation_owed=data.get("evaluation_owed", False) is True,
            bad_updates={key: count(bad, key) for key in ("total", "in_a_row")},
            decay=None if data.get("decay") is None else dict(items(data, "decay", str)),
            inputs=None if data.get("inputs") is None else inputs_from(get(data, "inputs", dict)),
        )
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"{checkpoint.folder}: its state.json is not what this trainer saves: {error}; give another "
            "checkpoint, or start a new run with --resume none and another --output_dir"
        ) from None
