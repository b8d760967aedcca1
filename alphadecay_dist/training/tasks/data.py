"""What a task gives the trainer to train on and to evaluate with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from alphadecay_dist.training.fingerprint import Marks
from alphadecay_dist.training.process.ranks import Ranks


class Batch(Protocol):
    """The samples of one micro-batch."""

    @property
    def targets(self) -> int:
        """How many terms the batch's summed loss has (tokens to predict, images): 0 where all is padding."""
        ...

    def pinned(self) -> Batch:
        """The batch in page-locked memory, from which a GPU copies without waiting."""
        ...

    def to(self, device: torch.device) -> Batch:
        """The batch on another device; nobody waits for the copy."""
        ...

    def digests(self) -> list[str]:
        """A few hexadecimal digits of each sample's content, in order, for ``logging.sequences``."""
        ...


class TrainingData(Protocol):
    """The endless training data of one rank, update by update; used by one thread at a time."""

    def next_update(self) -> Sequence[Batch]:
        """This rank's micro-batches of the next update, on the CPU.

        Every rank has as many: ``train.global_batch`` samples over all ranks, in micro-batches of
        :func:`alphadecay_dist.training.batch_size.micro_batch`. Which samples an update has depends on data
        and seed alone, never on the number of ranks.

        Raises:
            UserError: the data cannot be read; the trainer saves what is finished, and the run fails.
        """
        ...

    def state(self) -> dict[str, dict[str, Any]]:
        """The position as plain data, in parts by name; all ranks' parts together are the whole."""
        ...

    def load(self, states: Mapping[str, Any]) -> None:
        """Go on from the parts of all ranks, of however many there were.

        Raises:
            UserError: they are those of other data.
        """
        ...


@dataclass(frozen=True)
class Previous:
    """A run that goes on, as its task left it.

    Attributes:
        folder: of the run, with the files that its task wrote there (:attr:`Loaders.files`).
        fingerprint: that the :class:`Loaders` have to have; None where any will do.
        changed: fields of the recipe that now name other content than before, which was accepted.
    """

    folder: Path
    fingerprint: str | None
    changed: frozenset[str]


class Data(ABC):
    """The files that a recipe names as its data, opened by one rank."""

    @property
    def revision(self) -> str | None:
        """The version of data that are no local files, such as a commit; None where they have none."""
        return None

    @abstractmethod
    def marks(self) -> dict[str, Marks]:
        """Marks of the local files by the field that names them; rank 0 asks, once a start.

        Raises:
            UserError: a file cannot be read.
        """

    @abstractmethod
    def fault(self) -> str | None:
        """What keeps this node from reading a training and a validation sample; the health check asks.

        Raises:
            UserError: a file cannot be read.
        """

    @abstractmethod
    def loaders(self, ranks: Ranks, previous: Previous | None) -> Loaders:
        """Make all that reading needs, such as a tokenizer, equal on every rank. Collective.

        Args:
            ranks: this rank among the others.
            previous: the run that goes on; None at the beginning of one.

        Raises:
            UserError: it cannot be made, or is not that of the run that goes on.
        """


class Loaders(ABC):
    """Data that can be read by batches."""

    @property
    def fingerprint(self) -> str:
        """Of what was made for reading and cannot be made again from the recipe; empty where nothing was."""
        return ""

    @property
    def files(self) -> Mapping[str, bytes]:
        """What belongs into the output directory, by name; see :attr:`.task.Task.files`."""
        return {}

    @abstractmethod
    def training(self, rank: int, world_size: int, states: Mapping[str, Any] | None) -> TrainingData:
        """A rank's training data.

        Args:
            rank: the rank.
            world_size: number of ranks, a divisor of the global batch.
            states: where to go on, see :meth:`TrainingData.load`. None: at the beginning.

        Raises:
            UserError: there is less than one update, or the states are those of other data.
        """

    @abstractmethod
    def evaluation(self, ranks: Ranks) -> Iterable[Batch]:
        """This rank's micro-batches of an evaluation, which can be gone through again and again. Collective.

        Every rank has as many (some may have no targets), for sharded weights are gathered in each.

        Raises:
            UserError: there is nothing to evaluate with.
        """

    def describe(self, update: Sequence[Batch]) -> list[str]:
        """Lines of ``--dry_run`` on rank 0's first update."""
        return [f"first update on rank 0: {len(update)} micro-batches"]
