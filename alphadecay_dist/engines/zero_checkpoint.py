"""A checkpoint that DeepSpeed wrote -> its fp32 weights, without an engine."""

from __future__ import annotations

import contextlib
import io
import pickle
from pathlib import Path
from typing import Any

from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

from alphadecay_dist.engines.zero_training import SHARDS
from alphadecay_dist.errors import UserError


def fp32_weights(folder: Path) -> dict[str, Any]:
    """The fp32 weights of a ZeRO checkpoint by name, or stand-ins (``shape``, ``contiguous()``).

    At stage 3 the pieces stay on disk until a weight is asked for; below, DeepSpeed's converter reads all of
    them at once, 4 bytes a weight. The files are pickles: open only those that you trust.

    Args:
        folder: a checkpoint's directory, which holds DeepSpeed's files in a folder of their own.

    Raises:
        UserError: the files cannot be read.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress there
            return get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=SHARDS, lazy_mode=True)
    except (OSError, ValueError, KeyError, RuntimeError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{folder}: DeepSpeed cannot read its weights: {reason}") from None
