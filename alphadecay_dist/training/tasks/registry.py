"""The tasks by the names that recipes have for them in ``model.task``; here alone one is registered."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alphadecay_dist.errors import UserError

if TYPE_CHECKING:
    from alphadecay_dist.training.tasks.task import Task


@dataclass(frozen=True)
class Entry:
    """Where a task is found, to be loaded when a recipe names it.

    Attributes:
        task: ``module:Class`` of its :class:`alphadecay_dist.training.tasks.task.Task`.
        options: ``module:Class`` of a frozen dataclass, which a recipe's section ``task`` is read into. Every
            command line loads its module, for the help: it is to import nothing heavy. None: the task has no
            fields of its own.
        extra: of this package, where the task needs packages that come with it alone.
    """

    task: str
    options: str | None = None
    extra: str | None = None


DEFAULT = "language"  # the task of a recipe that names none, and of all runs from before there were others
TASKS = {
    DEFAULT: Entry("alphadecay_dist.training.tasks.language.task:Language"),
    "vision": Entry(
        "alphadecay_dist.training.tasks.vision.task:Vision",
        "alphadecay_dist.training.tasks.vision.options:VisionOptions",
        extra="vision",
    ),
}


@dataclass(frozen=True)
class NoOptions:
    """The section of a task that has no fields of its own."""


def task_named(name: str) -> Task:
    """The task of that name, loaded.

    Raises:
        UserError: a package that it needs is missing, or does not work with the others.
    """
    entry = TASKS[name]
    try:
        return _loaded(entry.task)()
    except (ImportError, RuntimeError) as error:
        cause = _first(error)
        if "torchvision::" in str(cause):  # transformers and timm import it where it is
            remedy = "torchvision is not made for this torch: take it from where torch came, or uninstall it"
        elif entry.extra is not None:
            remedy = f"it needs pip install 'alphadecay-dist[{entry.extra}]'"
        else:
            raise
        raise UserError(f"model.task {name}: cannot be loaded: {cause}; {remedy}") from error


def options_of(name: str) -> type:
    """The dataclass of a task's own section in a recipe."""
    where = TASKS[name].options
    return NoOptions if where is None else _loaded(where)


def _first(error: BaseException) -> BaseException:
    """What an error was raised for in the first place."""
    return error if error.__cause__ is None else _first(error.__cause__)


def _loaded(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(module), name)
