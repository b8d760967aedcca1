"""Whether accelerate runs what it was asked for: on CPUs it takes DDP for FSDP and DeepSpeed, in silence."""

from __future__ import annotations

import os

from alphadecay_dist.engines.versions import without_extra
from alphadecay_dist.errors import warn

try:
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType
except ModuleNotFoundError as error:
    raise without_extra("hf", error) from None

# By these variables accelerate knows what a plugin, the Trainer's arguments or its launcher asked for.
ASKED = {
    "ACCELERATE_USE_DEEPSPEED": DistributedType.DEEPSPEED,
    "ACCELERATE_USE_FSDP": DistributedType.FSDP,
}


def warn_if_another_runs() -> None:
    """Say it once, on the first rank, where weights are not sharded as they were to be."""
    state = AcceleratorState()
    asked = [kind for name, kind in ASKED.items() if os.environ.get(name, "").lower() == "true"]
    if not asked or state.distributed_type in asked or not state.is_main_process:
        return
    runs = "DDP" if state.num_processes > 1 else "one process"
    warn(
        f"accelerate: {asked[0].value} was asked for, but {runs} is running, as on CPUs (use_cpu=True, "
        "cpu=True): each rank holds all weights"
    )
