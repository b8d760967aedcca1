"""Which weights are tuned, and in which parts: one rule for a model in memory and for its files.

The rule knows of each parameter its name, its shape and what holds it (:class:`Described`). A model's modules
tell that (:mod:`alphadecay_dist.params.entries`), or names in files do, as far as they can
(:mod:`alphadecay_dist.commands.stored_rule`). A weight has the name of its module (``layers.0.mlp.up_proj``),
or of its parameter if that is not ``weight``.

1. :func:`unfit` leaves out what has no matrices to analyse.
2. :func:`cut_of` splits fused weights, and :func:`large_enough` leaves out what has no spectrum then.
3. :func:`not_by_default` leaves out what is tuned only if it is named.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import Tensor

from alphadecay_dist.params.fused import GATE_UP, Cut, Heads, cut_by_name, cut_by_sizes, output_axis
from alphadecay_dist.spectral import MIN_EIGENVALUES

T = TypeVar("T", bound="Tuned")

LINEAR, CONV1D, CONV2D = "Linear", "Conv1D", "Conv2d"  # (out, in), transformers' (in, out), (out, in, h, w)
TUNED_KINDS = (LINEAR, CONV1D, CONV2D)
EMBEDDING = "embedding"
NOT_REAL = "not real numbers"
CONVOLUTION = "a convolution, but no Conv2d's weight"

VECTOR = "a vector"
HEAD = "output head"
OUTSIDE = "not in a numbered block"
LORA = "LoRA factor"
BIAS = "bias"
SMALL = f"fewer than {MIN_EIGENVALUES} eigenvalues"
# Expert stacks that contain, or may contain, gate and up; the stack next to each shows which.
BESIDE = {"gate_up_proj": "down_proj", "input_linear": "output_linear"}
STACKS = (*BESIDE, *BESIDE.values())


@dataclass(frozen=True)
class Described:
    """What the rule knows of a parameter.

    Attributes:
        name: name of the weight.
        shape: shape of the whole parameter.
        kind: what holds it: one of ``TUNED_KINDS``, ``EMBEDDING``, ``CONVOLUTION`` or ``NOT_REAL``; else in
            words what it is instead.
        experts: how many experts' matrices (m, n) it joins to (experts * m, n), as in DBRX; else 0.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    experts: int


@dataclass(frozen=True)
class Tuned:
    """One tuned weight, which has one decay, and the matrices that it consists of.

    Attributes:
        name: dotted name of its module, or of the parameter itself if it is not the module's ``weight``.
        shape: the whole shape: (m, n), (experts, m, n) for a stack of experts, or (out, in, h, w) for a
            Conv2d.
        cut: how each of its matrices is split into parts; None if it is not fused.
    """

    name: str
    shape: tuple[int, ...]
    cut: Cut | None

    def units(self) -> list[str]:
        """The names of what is owned separately: each expert of a stack, else the weight."""
        if len(self.shape) != 3:
            return [self.name]
        return [f"{self.name}.{expert}" for expert in range(self.shape[0])]

    @property
    def unit_shape(self) -> tuple[int, ...]:
        """Shape of one unit."""
        return self.shape[1:] if len(self.shape) == 3 else self.shape

    def parts(self, unit: str) -> list[str]:
        """Names of the matrices in one unit; each has its own alpha."""
        return [unit] if self.cut is None else [f"{unit}.{part}" for part in self.cut.names]

    def part_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the parts of one unit."""
        return [self.unit_shape] if self.cut is None else [*self.cut.shapes(self.unit_shape)]

    def whole(self: T) -> T:
        """The same weight as one matrix a unit, as the released code takes it."""
        return replace(self, cut=None)

    def cut_up(self, unit: str, whole: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The parts of a unit, by name, from its whole tensor."""
        if self.cut is None:
            yield unit, whole
        else:
            yield from ((f"{unit}.{part}", tensor) for part, tensor in self.cut.parts(whole))


def unfit(own: Described) -> str | None:
    """Why a parameter has no matrices to analyse, even if it is named; None if it may have some."""
    if own.kind in (EMBEDDING, NOT_REAL):
        return own.kind
    if len(own.shape) < 2:
        return VECTOR
    if own.kind == CONVOLUTION:
        return CONVOLUTION
    if own.kind == CONV2D or len(own.shape) in (2, 3):
        return None
    return f"{len(own.shape)} dimensions"


def not_by_default(own: Described) -> str | None:
    """Why a parameter is tuned only if it is named; None if it is tuned by default."""
    reason = reason_by_name(own.name)
    if reason is not None:
        return reason
    if own.kind in TUNED_KINDS or own.experts or is_stack(own.name, own.shape):
        return None
    return own.kind


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


def large_enough(weight: Tuned) -> bool:
    """Whether at least one of its matrices, or a 4-d convolution weight, has enough eigenvalues."""
    counts = [min(part[:2]) * math.prod(part[2:]) for part in weight.part_shapes()]
    return max(counts) >= MIN_EIGENVALUES


def cut_of(
    own: Described,
    heads: Heads | None,
    shapes: Mapping[str, Sequence[int]],
    sizes: Sequence[int] | None = None,
) -> Cut | None:
    """How a weight, or each matrix of a stack, is split: by given sizes, by experts, or by its name.

    Args:
        own: the weight.
        heads: what is known about the model's attention.
        shapes: shapes of the model's weights by name; the stack next to a stack shows its output axis.
        sizes: explicit sizes of its parts; None if there are none.

    Raises:
        UserError: sizes that do not fit.
    """
    name, shape = own.name, own.shape
    if sizes is not None and len(shape) != 4:
        return cut_by_sizes(name, shape[-2:], sizes, _output_axis(own, shapes))
    if own.experts:
        return Cut(tuple(map(str, range(own.experts))), (shape[0] // own.experts,) * own.experts)
    if len(shape) == 4:
        return None
    if name.rsplit(".", 1)[-1] == "input_linear" and len(shape) == 3:  # gated experts, or others
        beside = _beside(name, shapes)
        gated = beside is not None and shape[1] == 2 * beside[1]
        return Cut(GATE_UP, (shape[1] // 2,) * 2) if gated else None
    return cut_by_name(name, shape[-2:], heads, _output_axis(own, shapes))


def released_ends(linears: Sequence[str]) -> set[str]:
    """The first and the last Linear or Conv2d, which AlphaDecay's released code leaves at the base decay.

    In a LLaMA these are q_proj of layer 0 (an embedding is neither a Linear nor a Conv2d) and lm_head.

    Args:
        linears: names of all Linear and Conv2d of the model, tuned or not, in the model's order.
    """
    return {*linears[:1], *linears[-1:]}


def _output_axis(own: Described, shapes: Mapping[str, Sequence[int]]) -> int:
    """Which axis of a matrix, or of each matrix of a stack, is that of the outputs."""
    if len(own.shape) == 3:
        return output_axis(own.shape[1:], _beside(own.name, shapes))
    return int(own.kind == CONV1D)


def _beside(name: str, shapes: Mapping[str, Sequence[int]]) -> Sequence[int] | None:
    """Shape of one matrix of the stack of down projections that is next to a stack."""
    outer, _, last = name.rpartition(".")
    down = shapes.get(f"{outer}.{BESIDE.get(last, 'down_proj')}", ())
    return down[1:] if len(down) == 3 else None


def _is_head(name: str) -> bool:
    return any("head" in part or part in ("output", "embed_out", "classifier") for part in name.split("."))
