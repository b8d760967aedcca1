"""What a task says of its model on the card of an export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class HubDataset:
    """Data of the Hugging Face hub that an evaluation was made on.

    Attributes:
        type: its repository.
        name: as people say it.
        config: of the repository's, the one that was read.
        split: the held-out one.
        revision: the commit; None if unknown.
    """

    type: str
    name: str
    config: str
    split: str
    revision: str | None = None


@dataclass(frozen=True)
class TaskCard:
    """A task's own facts; what is true of every run is in :mod:`alphadecay_dist.commands.model_card`.

    Attributes:
        model: what it is, as in "a language model".
        data: what it was trained on; empty if that is not known.
        head: keys of the card's YAML head, as the hub has them: ``language``, ``datasets``, ``pipeline_tag``.
        tags: more words to find it by.
        measured: what a number of eval.jsonl means, by its name; where empty, all numbers are shown.
        evaluated_on: what the numbers are of, where the hub has it.
        metrics: the hub's kind of a number, by its name, of those that the hub has one for.
        usage: Python that loads what :meth:`.Task.export_hf` writes, with ``{folder}`` for its path.
        library: that loads it, by the hub's name.
    """

    model: str = "a model"
    data: str = ""
    head: Mapping[str, Any] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    measured: Mapping[str, str] = field(default_factory=dict)
    evaluated_on: HubDataset | None = None
    metrics: Mapping[str, str] = field(default_factory=dict)
    usage: str = ""
    library: str | None = None
