"""What the trainer asks of a task: a family of models with its data, loss and evaluation.

Who is asked when, in the order of a start:

1. every rank by itself, before it meets another: :meth:`Task.model`, :meth:`Task.check_data`;
2. all ranks together: :meth:`Task.settle` on rank 0, :meth:`Task.open` and :meth:`Data.loaders`;
3. in :mod:`alphadecay_dist.training.build`: :meth:`Model.build`, :meth:`Model.initial_values`,
   :meth:`Model.set_buffers`, :meth:`Model.companion`;
4. in :mod:`alphadecay_dist.training.loop`, a micro-batch after the other: :meth:`Model.loss` in updates,
   :meth:`Model.measure` in evaluations, and then :meth:`Model.numbers` of the sums over all ranks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alphadecay_dist.checkpoint.reader import Checkpoint
from alphadecay_dist.engines.training import TrainEngine
from alphadecay_dist.errors import UserError
from alphadecay_dist.training.changes import Change, data_changes, model_changes
from alphadecay_dist.training.inputs import Inputs
from alphadecay_dist.training.recipe import Config
from alphadecay_dist.training.state import SavedState
from alphadecay_dist.training.tasks.card import TaskCard
from alphadecay_dist.training.tasks.companion import Companion
from alphadecay_dist.training.tasks.data import Data


class Model(ABC):
    """A model as a recipe describes it; each rank makes its own before it meets another."""

    @property
    @abstractmethod
    def shapes(self) -> nn.Module:
        """The model on the meta device: its names and shapes without storage."""

    @abstractmethod
    def values(self) -> dict[str, Any]:
        """Plain data that describes the model; kept in checkpoints, and compared when a run goes on."""

    @abstractmethod
    def build(self) -> nn.Module:
        """The model, within :meth:`.TrainEngine.construct`; its weights need no meaning yet.

        Engines shard the modules of each ``nn.ModuleList`` by themselves.
        """

    @abstractmethod
    def initial_values(self, init_from: str | None) -> Callable[[str], Tensor]:
        """The whole fp32 value, on the CPU, of a parameter by its name; every rank asks for all of them.

        Without files it depends on the seed and the name alone, never on engine or rank.

        Args:
            init_from: ``--init_from``; None begins at random values.

        Raises:
            UserError: its files do not hold this model's weights.
        """

    @abstractmethod
    def set_buffers(self, model: nn.Module) -> None:
        """Give the built model's buffers their values, which late storage lacks, if it has any.

        They are no part of a checkpoint: their values have to follow from the recipe.
        """

    @abstractmethod
    def flops(self) -> float:
        """Floating-point operations of forward and backward of one update, over all ranks."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The summed loss of a micro-batch, an fp32 scalar with gradients.

        Args:
            model: what the engine calls; the forward has to go through it.
            batch: one of the task's own, on the engine's device.
        """

    def measure(self, model: nn.Module, batch: Any) -> Tensor:
        """What an evaluation sums over all batches and ranks: the loss, and whatever else is counted.

        Args:
            model: what the engine calls, in evaluation mode, without gradients.
            batch: one of the task's own, on the engine's device.

        Returns:
            A scalar, or (k,).
        """
        return self.loss(model, batch)

    @abstractmethod
    def numbers(self, sums: Sequence[float], targets: float) -> dict[str, float]:
        """An evaluation's numbers, as eval.jsonl has them behind ``step``; the same on every rank.

        Args:
            sums: of :meth:`measure` over all batches and ranks.
            targets: of :attr:`.Batch.targets` over all batches and ranks.

        Returns:
            Numbers by name, :attr:`Task.shown` among them.
        """

    def companion(self, engine: TrainEngine, model: nn.Module) -> Companion:
        """What is kept beside the weights, such as their moving average; nothing by default.

        Args:
            engine: which has the weights, at their initial values.
            model: the built model.
        """
        return Companion(engine)


class Task(ABC):
    """A family of models. It has no state: what belongs to one run is its model's or its data's.

    Attributes:
        samples: what a batch holds, as people say it: ``sequences``, ``images``.
        targets: what :attr:`.Batch.targets` counts: ``tokens``, ``images``. metrics.jsonl has their number
            under this name.
        shown: the number of an evaluation that people are shown; two decimals of it.
        paths: fields of the recipe that name files, which a node may have under a name of its own. When a run
            goes on, their content counts.
        fixed: other fields that a run may not change when it goes on.
        files: names of all files that a run of the task may write into its output directory.
    """

    samples: str
    targets: str
    shown: str
    paths: tuple[str, ...] = ("model.name",)
    fixed: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    def targets_of_sample(self, config: Config) -> int:
        """How many targets a sample has at most; one, unless the task says otherwise."""
        return 1

    @abstractmethod
    def model(self, config: Config) -> Model:
        """The model that a recipe names. Not collective, as :meth:`check_data`.

        Raises:
            UserError: the recipe describes none.
        """

    @abstractmethod
    def check_data(self, config: Config, model: Model) -> None:
        """Check what can be known of the data without reading them.

        Raises:
            UserError: a mistake in the recipe.
        """

    def settle(
        self, config: Config, model: Model, init_from: str | None, before: SavedState | None
    ) -> dict[str, Any]:
        """Decide what a run decides once, at its beginning; rank 0 does for all.

        Args:
            config: the recipe.
            model: its model.
            init_from: ``--init_from``.
            before: the state that the run goes on from; None at its beginning.

        Returns:
            The sections of the recipe that it decides something in, by name.

        Raises:
            UserError: what is found does not fit together.
        """
        return {}

    @abstractmethod
    def open(self, config: Config, model: Model) -> Data:
        """The data that a recipe names. Every rank opens its own.

        Raises:
            UserError: they are missing or cannot be read.
        """

    def changes(self, now: Inputs, kept: Inputs, config: Config, before: Config, data: Data) -> list[Change]:
        """How model and data differ from those that a run was begun with; rank 0 asks.

        Args:
            now: as found.
            kept: as the run was begun, or last accepted.
            config: the recipe that is to go on.
            before: the recipe that the checkpoint was saved with.
            data: as opened.
        """
        return [*model_changes(now.model, kept.model, config), *data_changes(now, kept, config, before)]

    def loses_position(self, fields: Collection[str], config: Config, before: Config) -> bool:
        """Whether a saved position means nothing in changed data, which are then read from their beginning.

        Args:
            fields: of accepted changes.
            config: the recipe that goes on.
            before: the recipe that the checkpoint was saved with.
        """
        return not set(fields).isdisjoint({"data.source"})

    def card(self, state: SavedState) -> TaskCard:
        """What the model card of an export says of the task's own.

        Args:
            state: the trainer's, in the checkpoint that is exported.
        """
        return TaskCard()

    def export_hf(
        self, checkpoint: Checkpoint, state: SavedState, dtype: torch.dtype, model: str | None
    ) -> Callable[[Path], None]:
        """What writes a directory that Hugging Face's libraries load.

        Args:
            checkpoint: whose weights are exported.
            state: the trainer's, in it.
            dtype: of the weights on disk.
            model: the model's config, for a checkpoint that does not keep it.

        Returns:
            A function that fills an empty directory.

        Raises:
            UserError: it cannot be exported.
        """
        raise UserError(f"export --to hf: a model of the task {state.config.model.task} has no such format")
