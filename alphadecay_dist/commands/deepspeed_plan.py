"""What a DeepSpeed JSON says of how a job holds its weights, for ``alphadecay plan``."""

from __future__ import annotations

from alphadecay_dist.engines.zero.config import read_json, refuse
from alphadecay_dist.errors import UserError

BATCHES = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


def sharding_of(path: str, world_size: int, asked: str | None) -> str:
    """The name of the sharding that a job with this JSON has. Offload moves no piece to another rank.

    Args:
        path: of the JSON.
        world_size: number of ranks.
        asked: the sharding that was given too, which must be of the same stage.

    Raises:
        UserError: a JSON that the trainer refuses, or that contradicts what was given.
    """
    config = read_json(path)
    refuse(config)
    zero = config.get("zero_optimization", {})
    if zero.get("mics_shard_size", -1) != -1:
        raise UserError(f"--deepspeed {path}: found mics_shard_size, expected none: MiCS cannot be planned")
    numbers = [number for name in BATCHES if type(number := config.get(name)) is int]
    if len(numbers) == len(BATCHES):
        whole, micro, accumulation = numbers
        if whole != micro * accumulation * world_size:
            raise UserError(
                f"--deepspeed {path}: found {BATCHES[0]} {whole}, expected {micro} * {accumulation} * "
                f'{world_size} ranks; write "auto" there, or give its --world_size'
            )
    name = f"zero{zero.get('stage', 0)}"
    if asked is not None and asked.removesuffix("_masters") != name:
        raise UserError(f"--sharding: found {asked}, expected {name} with --deepspeed {path}; leave it out")
    return asked or name
