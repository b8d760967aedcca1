"""What a recipe asks of its engine, whichever it is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RunSettings:
    """A recipe's numbers for an engine, on this number of ranks.

    Attributes:
        name: the engine's, a key of :data:`alphadecay_dist.engines.registry.ENGINES`.
        dtype: of compute, ``float32`` or ``bfloat16``; the weights that are updated are fp32 in both.
        global_batch: sequences an update, over all ranks.
        micro_batch: sequences that a rank takes at once.
        accumulation: micro-batches an update.
        clip: largest global gradient norm; 0 is off.
        replicate: replicas of the sharded model; 1 shards over all ranks.
        deepspeed: path or name of ``--deepspeed``'s JSON, if one was given.
    """

    name: str
    dtype: str
    global_batch: int
    micro_batch: int
    accumulation: int
    clip: float
    replicate: int = 1
    deepspeed: str | None = None
