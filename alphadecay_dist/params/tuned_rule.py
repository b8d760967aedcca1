"""Which weights are tuned, by name and shape: one rule for a model in memory and for its files.

A weight has the name of its module (``layers.0.mlp.up_proj``), or of its parameter if that is not ``weight``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from alphadecay_dist.params.fused import GATE_UP, Cut, Heads, cut_by_name, output_axis
from alphadecay_dist.spectral import MIN_EIGENVALUES

EMBEDDING = "embedding"
HEAD = "output head"
OUTSIDE = "not in a numbered block"
LORA = "LoRA factor"
BIAS = "bias"
SMALL = f"fewer than {MIN_EIGENVALUES} eigenvalues"
# Expert stacks that contain, or may contain, gate and up; the stack next to each shows which.
BESIDE = {"gate_up_proj": "down_proj", "input_linear": "output_linear"}
STACKS = (*BESIDE, *BESIDE.values())


def reason_by_name(name: str) -> str | None:
    """Why a weight is left out because of its name; None if it is not."""
    *path, last = name.split(".")
    if any(part.startswith("lora_") for part in name.split(".")):
        return LORA
    if not any(part.isdigit() for part in path):
        return HEAD if _is_head(name) else OUTSIDE
    return BIAS if "bias" in last else None


def is_stack(name: str, shape: Sequence[int]) -> bool:
    """Whether a three-dimensional weight is a stack of experts: (experts, m, n)."""
    return len(shape) == 3 and ("expert" in name or name.rsplit(".", 1)[-1] in STACKS)


def large_enough(parts: Sequence[Sequence[int]]) -> bool:
    """Whether at least one matrix, or 4-d convolution weight, has enough eigenvalues."""
    return max(min(part[:2]) * math.prod(part[2:]) for part in parts) >= MIN_EIGENVALUES


def cut_of(
    name: str,
    shape: Sequence[int],
    heads: Heads | None,
    shapes: Mapping[str, Sequence[int]],
    *,
    transposed: bool,
) -> Cut | None:
    """How a weight, or each matrix of a stack, is split according to its name.

    Args:
        name: name of the weight.
        shape: shape of the whole weight.
        heads: what is known about the model's attention.
        shapes: shapes of the model's weights by name; the stack next to a stack shows its output axis.
        transposed: whether a matrix is (in, out).
    """
    if len(shape) == 4:
        return None
    if name.rsplit(".", 1)[-1] == "input_linear" and len(shape) == 3:  # gated experts, or others
        beside = _beside(name, shapes)
        gated = beside is not None and shape[1] == 2 * beside[1]
        return Cut(GATE_UP, (shape[1] // 2,) * 2) if gated else None
    return cut_by_name(name, shape[-2:], heads, output_axis_of(name, shape, shapes, transposed=transposed))


def output_axis_of(
    name: str, shape: Sequence[int], shapes: Mapping[str, Sequence[int]], *, transposed: bool
) -> int:
    """Which axis of a matrix, or of each matrix of a stack, is that of the outputs; see :func:`cut_of`."""
    return output_axis(shape[1:], _beside(name, shapes)) if len(shape) == 3 else int(transposed)


def _beside(name: str, shapes: Mapping[str, Sequence[int]]) -> Sequence[int] | None:
    """Shape of one matrix of the stack of down projections that is next to a stack."""
    outer, _, last = name.rpartition(".")
    down = shapes.get(f"{outer}.{BESIDE.get(last, 'down_proj')}", ())
    return down[1:] if len(down) == 3 else None


def _is_head(name: str) -> bool:
    return any("head" in part or part in ("output", "embed_out", "classifier") for part in name.split("."))
