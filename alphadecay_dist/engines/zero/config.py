"""A DeepSpeed JSON and the recipe's numbers -> the config that ``deepspeed.initialize`` gets.

The JSON holds only what is DeepSpeed's. Batch sizes, precision and clipping are "auto" in it and filled from
the recipe; a number there must be the recipe's. Pure: nothing here loads torch or deepspeed.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

from alphadecay_dist.engines.settings import RunSettings
from alphadecay_dist.errors import UserError, shown

AUTO = "auto"
ENDING = ".json"
OWN = resources.files("alphadecay_dist") / "ds_configs"  # in the repository a link to that of its root


def read_json(path: str) -> dict[str, Any]:
    """Read a DeepSpeed JSON.

    Args:
        path: of a file; or the name of one that comes with the package, such as ``zero2``.

    Raises:
        UserError: the file is missing, is not JSON, or is no JSON object.
    """
    try:
        config = json.loads(_text(path))
    except FileNotFoundError:
        known = sorted(item.name.removesuffix(ENDING) for item in OWN.iterdir())
        raise UserError(
            f"--deepspeed {path}: no such file; give the path of a JSON, or one of {', '.join(known)}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--deepspeed {path}: cannot be read: {error}") from None
    except (ValueError, RecursionError) as error:  # also numbers and nesting beyond Python's limits
        raise UserError(f"--deepspeed {path}: not JSON: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"--deepspeed {path}: found a {type(config).__name__}, expected a JSON object")
    return config


def _text(path: str) -> str:
    """What is in a file, or else in the package's own of that name."""
    is_name = not path.endswith(ENDING) and "/" not in path and not os.path.isfile(path)
    return (OWN / f"{path}{ENDING}" if is_name else Path(path)).read_text(encoding="utf-8")


def settings(asked: RunSettings) -> dict[str, Any]:
    """The config for what a recipe asks, of the JSON that ``--deepspeed`` names.

    Raises:
        UserError: see :func:`read_json` and :func:`resolve`.
    """
    assert asked.deepspeed is not None
    return resolve(
        read_json(asked.deepspeed),
        global_batch=asked.global_batch,
        micro_batch=asked.micro_batch,
        accumulation=asked.accumulation,
        clip=asked.clip,
        dtype=asked.dtype,
    )


def resolve(
    config: Mapping[str, Any],
    *,
    global_batch: int,
    micro_batch: int,
    accumulation: int,
    clip: float,
    dtype: str,
) -> dict[str, Any]:
    """Fill "auto" and missing values from the recipe.

    Args:
        config: the JSON as read.
        global_batch: sequences an update, over all ranks.
        micro_batch: sequences a rank takes at once.
        accumulation: micro-batches an update.
        clip: largest global gradient norm; 0 is off.
        dtype: ``"float32"`` or ``"bfloat16"``.

    Returns:
        A new config without "auto" in the keys named here.

    Raises:
        UserError: a section that is not DeepSpeed's to decide, a mode that ignores the decay, or a value
            other than the recipe's.
    """
    refuse(config)
    resolved = copy.deepcopy(dict(config))
    fill(resolved, "train_batch_size", global_batch, "train.global_batch")
    fill(resolved, "train_micro_batch_size_per_gpu", micro_batch, "train.micro_batch over the ranks")
    fill(resolved, "gradient_accumulation_steps", accumulation, "train.global_batch over the micro-batches")
    fill(resolved, "gradient_clipping", clip, "train.clip")
    for section, on in (("bf16", dtype == "bfloat16"), ("fp16", False)):
        options = resolved.setdefault(section, {})
        if not isinstance(options, dict):
            raise UserError(f"DeepSpeed config: {section} is {options!r}, expected an object")
        fill(options, "enabled", on, f"train.dtype {dtype}", prefix=f"{section}.")
    if dtype == "bfloat16" and not resolved.get("zero_optimization", {}).get("stage"):
        # It goes through DeepSpeed's fp16 optimizer there, and strays from what stages 1 to 3 agree on.
        raise UserError(
            "DeepSpeed config: zero_optimization.stage is 0 with train.dtype bfloat16, expected 1 to 3: "
            "use --deepspeed zero1, or --train.dtype=float32"
        )
    # A torch optimizer serves offload too, and needs no compiler.
    resolved["zero_force_ds_cpu_optimizer"] = False
    return resolved


def premultiply_refusal(config: Mapping[str, Any]) -> str | None:
    """Why decays cannot be multiplied into the weights under this config; None where they can."""
    zero = config.get("zero_optimization") or {}
    stage = zero.get("stage", 0)
    half = [name for name in ("bf16", "bfloat16", "fp16") if (config.get(name) or {}).get("enabled")]
    if stage == 0 and half:
        return f"ZeRO stage 0 with {half[0]} keeps its fp32 masters to itself; use stage 1, 2 or 3"
    if stage in (1, 2) and zero.get("round_robin_gradients"):
        # DeepSpeed then looks for a weight of a group with several in the wrong place.
        return "round_robin_gradients hides where a weight's master lies; set it to false"
    for section in ("offload_optimizer", "offload_param"):
        if (zero.get(section) or {}).get("device") == "nvme":
            return f"{section} on NVMe takes the masters out of memory; use device cpu or none"
    return None


def muon_refusal(config: Mapping[str, Any], settings: MuonSettings, clip: float) -> str | None:
    """Why DeepSpeed's Muon cannot do what is asked of it under this config; None where it can.

    Args:
        config: resolved.
        settings: what is asked.
        clip: largest global gradient norm; 0 is off.
    """
    zero = config.get("zero_optimization") or {}
    stage = zero.get("stage", 0)
    if stage == 0:
        return None  # torch's own serves
    expected: tuple[tuple[str, Any, Any, str], ...] = (
        ("train.clip", clip, 0, "it would clip the orthogonalised updates"),
        ("optimizer.nesterov", settings.nesterov, True, "its momentum has no other form"),
        ("optimizer.ns_steps", settings.ns_steps, 5, "its number of iterations is fixed"),
        ("optimizer.adjust_lr", settings.adjust_lr, "original", "it has no other"),
    )
    for key, found, wanted, why in expected:
        if found != wanted:
            return f"{key}: found {found!r} with DeepSpeed's Muon, expected {wanted!r}: {why}; or use FSDP2"
    if "o" in settings.heads:
        return (
            f"optimizer.muon_heads: found {','.join(settings.heads)} with DeepSpeed's Muon, which cuts rows "
            "alone, expected some of q, k and v; or use FSDP2 or DDP"
        )
    if stage == 3 and zero.get("reduce_scatter", True):
        return (
            "DeepSpeed config: zero_optimization.reduce_scatter is not false, which Muon needs at stage 3: "
            "set it to false"
        )
    for section in ("offload_optimizer", "offload_param"):
        if (zero.get(section) or {}).get("device", "none") != "none":
            return (
                f"DeepSpeed config: {section} with Muon keeps its momentum where checkpoints do not find it: "
                "remove it, or use FSDP2"
            )
    if zero.get("round_robin_gradients"):
        return "DeepSpeed config: round_robin_gradients with Muon is not served: set it to false"
    return None


class MuonSettings(Protocol):
    """Of Muon's settings those that DeepSpeed has no choice of."""

    @property
    def nesterov(self) -> bool: ...  # noqa: D102

    @property
    def ns_steps(self) -> int: ...  # noqa: D102

    @property
    def adjust_lr(self) -> str: ...  # noqa: D102

    @property
    def heads(self) -> tuple[str, ...]: ...  # noqa: D102


def fill(options: dict[str, Any], key: str, value: Any, source: str, prefix: str = "") -> None:
    """Set a value that is missing or "auto"; insist on it otherwise."""
    found = options.get(key, AUTO)
    if found != AUTO and (isinstance(found, bool) != isinstance(value, bool) or found != value):
        raise UserError(
            f"DeepSpeed config: {prefix}{key} is {found!r}, the recipe says {value!r} ({source}): "
            f'write "auto" there, or change the recipe'
        )
    options[key] = value


def refuse(config: Mapping[str, Any]) -> None:
    """Refuse what would take the optimizer, or the decay, out of this trainer's hands.

    Raises:
        UserError: an optimizer or scheduler section, SuperOffload, ZenFlow, or a stage outside 0 to 3.
    """
    for section in ("optimizer", "scheduler"):
        if section in config:
            raise UserError(
                f"DeepSpeed config: has an {section!r} section, expected none: "
                "the recipe decides it (optimizer.* and train.*); remove the section"
            )
    for section in ("amp", "bfloat16"):
        if section in config:
            raise UserError(
                f"DeepSpeed config: has the section {section!r}, expected 'bf16' alone: "
                'write "bf16": {"enabled": "auto"}; the recipe decides it (train.dtype)'
            )
    zero = config.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise UserError(f"DeepSpeed config: zero_optimization is {zero!r}, expected an object")
    stage = zero.get("stage", 0)
    if type(stage) is not int or stage not in (0, 1, 2, 3):  # true is an int, and stage 1, to Python
        raise UserError(f"DeepSpeed config: zero_optimization.stage is {stage!r}, expected 0 to 3")
    for options, key, name in (
        (zero, "compute_grad_norm", "zero_optimization."),
        (config.get("bf16"), "check_grad_overflow", "bf16."),
    ):
        if isinstance(options, dict) and options.get(key, True) is not True:
            raise UserError(
                f"DeepSpeed config: {name}{key} is {options[key]!r}, expected true: without it updates that "
                "are not finite would be made (train.on_nonfinite); remove it"
            )
    offload = zero.get("offload_optimizer") or {}
    if isinstance(offload, dict) and offload.get("super_offload"):
        raise UserError(
            "DeepSpeed config: SuperOffload (offload_optimizer.super_offload) ignores a weight decay that "
            "changes: remove it"
        )
    _refuse_offload(zero)
    if zero.get("zenflow") not in (None, False):  # an empty section switches it on
        raise UserError(
            "DeepSpeed config: ZenFlow (zero_optimization.zenflow) ignores a weight decay that changes: "
            "remove it"
        )


def _refuse_offload(zero: Mapping[str, Any]) -> None:
    """Refuse what takes masters or optimizer state out of the reach of checkpoints."""
    for section in ("offload_optimizer", "offload_param"):
        options = zero.get(section)
        if options is None:
            continue
        if not isinstance(options, dict):
            raise UserError(f"DeepSpeed config: {section} is {shown(options)}, expected an object")
        if options.get("device") == "nvme":
            raise UserError(
                f"DeepSpeed config: {section}.device is 'nvme', expected 'cpu' or 'none': checkpoints are "
                "written from memory"
            )
        if options.get("ratio", 1.0) != 1.0:
            raise UserError(
                f"DeepSpeed config: {section}.ratio is {options['ratio']!r}, expected 1.0: DeepSpeed steps "
                "the rest with another optimizer, which gets no decays; remove it"
            )
