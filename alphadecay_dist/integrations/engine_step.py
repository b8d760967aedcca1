"""Where hosts let DeepSpeed step inside of their backward: the one place between gradients and update."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def before_engine_step(engine: Any, act: Callable[[], object]) -> None:
    """Call ``act`` before each ``engine.step()``, whoever calls that.

    accelerate calls it inside ``accelerator.backward()``, once the engine knows its accumulation boundary and
    has all averaged gradients. A later call for the same engine takes the place of an earlier one.

    Args:
        engine: a ``DeepSpeedEngine``.
        act: such as ``AlphaDecay.step``, which asks the engine whether it is at its boundary.
    """
    step = getattr(engine.step, "__wrapped__", engine.step)

    @functools.wraps(step)
    def acting(*args: Any, **kwargs: Any) -> Any:
        act()
        return step(*args, **kwargs)

    engine.step = acting
