"""Hooks around the optimizer's step, for what no param group can say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch

from alphadecay_dist.errors import UserError

Hook = Callable[[torch.optim.Optimizer], None]


class StepHooks:
    """A hook before and one after each step of an optimizer, which an engine may step once a group.

    Args:
        optimizer: any with torch's hooks.
        purpose: what they are for, as messages name it.

    Raises:
        UserError: it has no hooks, or its steps are captured or compiled, which hooks do not see.
    """

    def __init__(self, optimizer: Any, purpose: str) -> None:
        if not hasattr(optimizer, "register_step_pre_hook"):
            raise UserError(
                f"optimizer: found {type(optimizer).__name__} with {purpose}, which has no "
                "register_step_pre_hook(); use a torch optimizer, or another policy"
            )
        if any(group.get("capturable") for group in optimizer.param_groups):
            raise UserError(
                f"optimizer: found capturable=True with {purpose}, whose numbers a captured step would keep "
                "for good; use capturable=False, or another policy"
            )
        self._optimizer = optimizer
        self._purpose = purpose

    def add(self, before: Hook, after: Hook) -> None:
        """Add the hooks behind those that are there."""

        def checked(optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if any(given is not None for given in (*args[1:], *kwargs.values())):  # args[0] is the optimizer
                raise UserError(
                    f"optimizer.step(closure): not with {self._purpose}, which acts before the step: the "
                    "closure would compute gradients of changed weights; step without one"
                )
            before(optimizer)

        def passed_on(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            after(optimizer)

        keep_handles(
            self._optimizer,
            self._optimizer.register_step_pre_hook(checked),
            self._optimizer.register_step_post_hook(passed_on),
        )


def keep_handles(optimizer: torch.optim.Optimizer, *handles: Any) -> None:
    """Keep the handles of hooks, to remove them when another controller takes the optimizer."""
    _HANDLES.setdefault(optimizer, []).extend(handles)


def remove_hooks(optimizer: torch.optim.Optimizer) -> None:
    """Remove what a controller before this one had added: an optimizer has one controller."""
    for handle in _HANDLES.pop(optimizer, ()):
        handle.remove()


_HANDLES: WeakKeyDictionary[torch.optim.Optimizer, list[Any]] = WeakKeyDictionary()
