"""Whether the run's documents can be read from this node."""

from __future__ import annotations

import threading

from alphadecay_dist.errors import UserError
from alphadecay_dist.training.data.batches import Source, open_data
from alphadecay_dist.training.data.prepared import Shards
from alphadecay_dist.training.recipe import DataConfig


def fault_of_data(config: DataConfig, seconds: float) -> str | None:
    """Read the first training and the first validation document, as a run does.

    Args:
        config: where they are: files, the hub, or a prepared corpus.
        seconds: time limit; a hub that does not answer is asked repeatedly.

    Returns:
        What is wrong; None if both can be read.
    """
    found: list[str | None] = []
    reading = threading.Thread(target=lambda: found.append(_fault(config)), daemon=True)
    reading.start()
    reading.join(seconds)
    return found[0] if found else f"data.source {config.source}: no document within {seconds:g} s"


def _fault(config: DataConfig) -> str | None:
    where = config.prepared or config.source
    try:
        for source in open_data(config):
            if not _has_document(source):
                return f"data: {where}: has no document"
    except UserError as error:
        return str(error)
    except Exception as error:  # any error is a finding
        return f"data: {where}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None


def _has_document(source: Source) -> bool:
    if isinstance(source, Shards):
        return source.documents > 0 and source.document(0).size > 0
    return next(source.documents(), None) is not None
