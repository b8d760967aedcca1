"""A checkpoint -> the formats of others: Hugging Face's, and DeepSpeed's universal checkpoint."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError

from alphadecay_dist.checkpoint.reader import Checkpoint, find, without_checkpoint
from alphadecay_dist.checkpoint.restore import stored_tensors, with_weights
from alphadecay_dist.commands.model_card import CARD, model_card
from alphadecay_dist.engines.state import WEIGHT
from alphadecay_dist.engines.zero.universal import MASTER, Parameter, write_universal
from alphadecay_dist.errors import UserError
from alphadecay_dist.files import new_directory
from alphadecay_dist.training.muon import MUON
from alphadecay_dist.training.optimizer import learning_rate
from alphadecay_dist.training.recipe import Config
from alphadecay_dist.training.state import SavedState, saved_state
from alphadecay_dist.training.tasks.registry import task_named

DECAYS = "alphadecay.json"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Trained:
    """What is exported: a whole checkpoint, and the trainer's state in it."""

    checkpoint: Checkpoint
    state: SavedState

    def with_weights(self, kind: str) -> Trained:
        """With another of its tensors as the weights, such as ``ema``, a moving average.

        Raises:
            UserError: there is none for each of them.
        """
        return dataclasses.replace(self, checkpoint=with_weights(self.checkpoint, kind))

    @property
    def config(self) -> Config:
        """The run's."""
        return self.state.config


def trained(path: Path) -> Trained:
    """The newest whole checkpoint of a run, or the one at a path.

    Raises:
        UserError: there is none.
    """
    checkpoint = find(path)
    if checkpoint is None:
        raise UserError(
            without_checkpoint(path)
            or f"{path}: found neither a run nor a checkpoint; give the directory of one"
        )
    return Trained(checkpoint, saved_state(checkpoint))


def export_hf(found: Trained, output: Path, dtype: torch.dtype, model: str | None = None) -> None:
    """Write a directory that Hugging Face's libraries load, see :meth:`.tasks.task.Task.export_hf`.

    Args:
        found: what to export.
        output: the directory to make.
        dtype: of the weights on disk.
        model: the model's config JSON, for a checkpoint that does not keep it.

    Raises:
        UserError: what the format needs is not found, or the output is taken or cannot be written.
    """
    task = task_named(found.config.model.task)
    write = task.export_hf(found.checkpoint, found.state, dtype, model)
    _made(output, write, model_card(found.checkpoint, found.state, task.card(found.state).library))


def export_universal(found: Trained, output: Path) -> None:
    """Write DeepSpeed's universal checkpoint, and the state of AlphaDecay beside it.

    Raises:
        UserError: there is no optimizer state yet, or Muon's, or the output is taken or cannot be written.
    """
    checkpoint, config = found.checkpoint, found.config
    if config.optimizer.name == MUON:
        raise UserError(
            f"{checkpoint.folder}: was trained with muon, whose momentum DeepSpeed's universal checkpoint "
            "does not take to another number of ranks; go on with train.py, or give --to hf"
        )
    step = checkpoint.manifest.step
    counters = checkpoint.manifest.scalars.get("step", {})
    tensors = stored_tensors(checkpoint)
    for name, kinds in tensors.items():
        if name not in counters or not kinds.keys() >= set(MOMENTS):
            raise UserError(f"{checkpoint.folder}: has no optimizer state of {name}: no update was made yet")
    optimizer = config.optimizer
    rate = learning_rate(step, config.train.steps, optimizer)
    decay = found.state.decay

    def parameters() -> Iterator[Parameter]:
        for name, kinds in tensors.items():
            named = {MASTER if kind == WEIGHT else kind: tensor for kind, tensor in kinds.items()}
            yield Parameter(name, ((kind, t.read()) for kind, t in named.items()), counters[name])

    def write(folder: Path) -> None:
        hyper = {"lr": rate, "betas": optimizer.betas, "eps": optimizer.eps}
        write_universal(folder, step, checkpoint.manifest.world_size, parameters(), hyper)
        if decay is not None:
            _write_json(folder / DECAYS, decay)

    _made(output, write, model_card(checkpoint, found.state, library=None))


def _made(output: Path, write: Callable[[Path], None], card: str) -> None:
    """Let ``write`` fill a directory, which gets its name when all is on disk: half of it never has it."""
    try:
        if output.is_file() or (output.is_dir() and any(output.iterdir())):
            raise UserError(f"{output}: is there already; give another --output, or remove it")
        with new_directory(output) as folder:
            write(folder)
            (folder / CARD).write_text(card, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"{output}: cannot be written: {reason}") from None


def _write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
