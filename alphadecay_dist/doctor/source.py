"""Whether the run's samples can be read from this node."""

from __future__ import annotations

import threading
from collections.abc import Callable

from alphadecay_dist.errors import UserError
from alphadecay_dist.training.recipe import DataConfig
from alphadecay_dist.training.tasks.data import Data


def fault_of_data(config: DataConfig, opened: Callable[[], Data], seconds: float) -> str | None:
    """Read a first training and a first validation sample, as a run does.

    Args:
        config: where they are: files, the hub, or a prepared corpus.
        opened: opens them.
        seconds: time limit; a hub that does not answer is asked repeatedly.

    Returns:
        What is wrong; None if both can be read.
    """
    found: list[str | None] = []
    reading = threading.Thread(target=lambda: found.append(_fault(config, opened)), daemon=True)
    reading.start()
    reading.join(seconds)
    return found[0] if found else f"data.source {config.source}: no sample within {seconds:g} s"


def _fault(config: DataConfig, opened: Callable[[], Data]) -> str | None:
    try:
        return opened().fault()
    except UserError as error:
        return str(error)
    except Exception as error:  # any error is a finding
        where = config.prepared or config.source
        return f"data: {where}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
