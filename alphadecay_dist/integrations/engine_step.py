"""Where hosts let DeepSpeed step inside of their backward: the one place between gradients and update."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def before_engine_step(engine: Any, act: Callable[[], object], name: str = "policy") -> None:
    """Call ``act`` before each ``engine.step()``, whoever calls that.

    accelerate calls it inside ``accelerator.backward()``, once the engine knows its accumulation boundary and
    has all averaged gradients. A later call with one name for the same engine takes the place of an earlier
    one; several names act in their order.

    Args:
        engine: a ``DeepSpeedEngine``.
        act: such as ``AlphaDecay.step``, which asks the engine whether it is at its boundary.
        name: of what acts.
    """
    acts = getattr(engine.step, "acts", None)
    if acts is None:
        acts = _act_before_step(engine)
    acts[name] = act


def _act_before_step(engine: Any) -> dict[str, Callable[[], object]]:
    """Wrap the engine's step once; returns what will act before it, by name."""
    acts: dict[str, Callable[[], object]] = {}
    step = engine.step

    @functools.wraps(step)
    def acting(*args: Any, **kwargs: Any) -> Any:
        for act in acts.values():
            act()
        return step(*args, **kwargs)

    acting.acts = acts  # type: ignore[attr-defined]
    engine.step = acting
    return acts
