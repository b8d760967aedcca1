"""The settings of torch's own engines."""

from __future__ import annotations

from dataclasses import dataclass

from alphadecay_dist.engines.settings import RunSettings


@dataclass(frozen=True)
class TorchConfig:
    """Settings of torch's own engines.

    Attributes:
        name: ``fsdp2`` or ``ddp``.
        dtype: of compute, ``float32`` or ``bfloat16``; the weights are fp32 in both.
        accumulation: micro-batches an update.
        clip: largest global gradient norm; 0 is off.
        replicate: for FSDP2, replicas of the sharded model (HSDP); 1 shards over all ranks.
    """

    name: str
    dtype: str
    accumulation: int
    clip: float
    replicate: int = 1


def settings(asked: RunSettings) -> TorchConfig:
    """What of a recipe's numbers torch's engines need."""
    return TorchConfig(asked.name, asked.dtype, asked.accumulation, asked.clip, asked.replicate)
