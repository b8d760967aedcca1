"""Learning rate schedules of an optimizer whose groups are split: what they keep by group grows with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from alphadecay_dist.engines.given import plain_optimizers
from alphadecay_dist.errors import UserError, warn
from alphadecay_dist.params.regroup import own_copy

# torch's, and the last two timm's; what OneCycleLR keeps by group is in the groups themselves.
BY_GROUP = (
    "base_lrs",
    "_last_lr",
    "lr_lambdas",
    "min_lrs",
    "max_lrs",
    "base_momentums",
    "max_momentums",
    "base_values",
    "warmup_steps",
)


class Schedules:
    """The schedules that were made of some optimizers, those inside of others too, each once.

    Args:
        given: torch's schedulers or timm's; accelerate's wrappers and Lightning's configs of them too.

    Raises:
        UserError: something that is no scheduler.
    """

    def __init__(self, given: Iterable[Any]) -> None:
        self._all = list({id(own): own for outer in given for own in _nested(_unwrapped(outer))}.values())

    def refuse_others(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Refuse a schedule of another optimizer than these."""
        for schedule in self._all:
            if not any(_optimizer_of(schedule) is own for own in optimizers):
                raise UserError(
                    f"schedulers: found a {type(schedule).__name__} of another optimizer; give those of the "
                    "optimizers that attach() gets"
                )

    def check(self, optimizer: torch.optim.Optimizer) -> None:
        """Refuse an optimizer with a schedule that is not here, or that keeps by group what nobody knows.

        Raises:
            UserError: see above.
        """
        own = self._of(optimizer)
        if not own and hasattr(optimizer.step, "_wrapped_by_lr_sched"):
            raise UserError(
                "schedulers: found none, but a learning rate schedule was made of the optimizer, whose rates "
                "must grow with the groups; give attach(..., schedulers=[scheduler])"
            )
        if not own and any("initial_lr" in group for group in optimizer.param_groups):
            _warn_on_rank_0(
                "schedulers: found none, but the groups have an initial_lr, which schedules leave there; if "
                "one like timm's was made before, give attach(..., schedulers=[scheduler])"
            )
        for schedule in own:
            _check_lists(schedule, len(optimizer.param_groups))

    def grow(self, optimizer: torch.optim.Optimizer, sources: Sequence[int]) -> None:
        """Give each new group what its source had.

        Args:
            optimizer: whose groups are split.
            sources: the number of the old group, for each new one.
        """
        for schedule in self._of(optimizer):
            for key, values in _lists(schedule).items():
                setattr(schedule, key, [own_copy(values[source]) for source in sources])

    def _of(self, optimizer: torch.optim.Optimizer) -> list[Any]:
        return [schedule for schedule in self._all if _optimizer_of(schedule) is optimizer]


def _warn_on_rank_0(text: str) -> None:
    if not (dist.is_initialized() and dist.get_rank()):
        warn(text)


def _optimizer_of(schedule: Any) -> torch.optim.Optimizer:
    return plain_optimizers([schedule.optimizer])[0]


def _unwrapped(given: Any) -> Any:
    while not hasattr(given, "optimizer") and hasattr(given, "scheduler"):
        given = given.scheduler
    if not hasattr(given, "optimizer"):
        raise UserError(f"schedulers: found {type(given).__name__}, expected learning rate schedulers")
    return given


def _nested(schedule: Any) -> list[Any]:
    """It, and those that a SequentialLR or a ChainedScheduler steps."""
    inner = getattr(schedule, "_schedulers", ())
    return [schedule, *(own for outer in inner for own in _nested(outer))]


def _lists(schedule: Any) -> dict[str, Sequence[Any]]:
    return {key: own for key, own in vars(schedule).items() if key in BY_GROUP and _is_list(own)}


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple)


def _check_lists(schedule: Any, count: int) -> None:
    name = type(schedule).__name__
    for key, values in _lists(schedule).items():
        if len(values) != count:
            raise UserError(
                f"schedulers: found {len(values)} {key} in {name}, expected one for each of the {count} "
                "groups of its optimizer; give it to attach() before the groups are changed otherwise"
            )
    if not type(schedule).__module__.startswith("torch.optim."):
        _refuse_unknown(schedule, name, count)


def _refuse_unknown(schedule: Any, name: str, count: int) -> None:
    known: Mapping[str, Any] = _lists(schedule)
    for key, value in vars(schedule).items():
        if key not in known and _is_list(value) and len(value) == count:
            raise UserError(
                f"schedulers: {name} has a list {key!r} of {count}, which may be one for each group; make it "
                "after attach()"
            )
