"""The matrices of a fused weight (q, k, v or gate, up in one), split by name or by sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor

from alphadecay_dist.errors import UserError

QKV = ("q", "k", "v")
GATE_UP = ("gate", "up")
FUSED = {
    "qkv_proj": QKV,
    "qkv": QKV,
    "Wqkv": QKV,
    "c_attn": QKV,
    "att_proj": QKV,
    "in_proj_weight": QKV,
    "query_key_value": QKV,
    "gate_up_proj": GATE_UP,
    "up_gate_proj": ("up", "gate"),
    "w12": GATE_UP,
}
# Model types that store q, k and v head by head, if they have as many keys as queries. Other fused
# projections stack q, k and v.
HEAD_BY_HEAD = ("gpt_neox", "bloom", "gpt_bigcode")
# Model types with a layout of their own: their weights stay whole.
OTHERWISE = ("codegen", "minimax")
# Model types whose columns alternate between gate and up.
ALTERNATING = ("gpt_oss",)


@dataclass(frozen=True)
class Cut:
    """How one axis of a matrix is divided into parts.

    Attributes:
        names: names of the parts.
        sizes: rows or columns that each part gets in turn. If they add up to less than the axis, the pattern
            is repeated (head by head, or alternating).
        axis: 0 for rows, 1 for columns.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    axis: int = 0

    def parts(self, matrix: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The parts of an (m, n) matrix by name."""
        patterns = matrix.unflatten(self.axis, (-1, sum(self.sizes)))
        pieces = patterns.split(self.sizes, dim=self.axis + 1)
        for name, piece in zip(self.names, pieces, strict=True):
            yield name, piece.flatten(self.axis, self.axis + 1)

    def shapes(self, shape: Sequence[int]) -> list[tuple[int, int]]:
        """Shapes of the parts of a matrix of this shape."""
        repeats = shape[self.axis] // sum(self.sizes)
        lengths = [size * repeats for size in self.sizes]
        return [(length, shape[1]) if self.axis == 0 else (shape[0], length) for length in lengths]


@dataclass(frozen=True)
class Heads:
    """What a model's config says about its attention.

    Attributes:
        queries: number of query heads.
        keys: number of key-value heads.
        model_type: a HF model type.
        width: size of a head; 0 if unknown.
    """

    queries: int
    keys: int
    model_type: str = ""
    width: int = 0

    @classmethod
    def of(cls, config: Any) -> Heads | None:
        """From a HF config or the dict of its JSON; None if it has no heads."""
        get = config.get if isinstance(config, Mapping) else lambda key: getattr(config, key, None)
        queries = get("num_attention_heads") or get("n_head")
        if not isinstance(queries, int) or queries < 1:
            return None
        keys = get("num_key_value_heads")
        keys = keys if isinstance(keys, int) and keys > 0 else queries
        hidden, width = get("hidden_size") or get("n_embd"), get("head_dim")
        if not isinstance(width, int) or width < 1:
            width = hidden // queries if isinstance(hidden, int) else 0
        return cls(queries, keys, str(get("model_type") or ""), width)

    def fit(self, length: int) -> bool:
        """Whether q, k and v of these heads have this length together."""
        width, rest = divmod(length, self.queries + 2 * self.keys)
        return rest == 0 and self.width in (0, width)


def cut_by_name(name: str, shape: Sequence[int], heads: Heads | None, axis: int = 0) -> Cut | None:
    """The cut of a weight with the name of a fused one.

    Args:
        name: dotted name of the module or parameter; its last part decides.
        shape: (m, n) of the matrix.
        heads: what is known about the model's attention; without it, q, k and v are thirds.
        axis: the axis of the outputs: 0 for a Linear, 1 if the weight is (in, out).

    Returns:
        The cut; None if the name is not that of a fused weight, or the sizes of its parts are unknown. The
        weight then stays whole.
    """
    names = FUSED.get(name.removesuffix(".weight").rsplit(".", 1)[-1])
    if names is None:
        return None
    length = shape[axis]
    model_type = heads.model_type if heads else ""
    if names is not QKV:
        size = 1 if model_type in ALTERNATING else length // 2
        return Cut(names, (size, size), axis) if length % 2 == 0 else None
    if model_type in OTHERWISE:
        return None
    if name.endswith("query_key_value") and (
        heads is None or model_type not in HEAD_BY_HEAD or heads.queries != heads.keys
    ):
        return None
    if heads is not None and heads.fit(length):
        width = length // (heads.queries + 2 * heads.keys)
        if model_type in HEAD_BY_HEAD and heads.queries == heads.keys:
            return Cut(names, (width,) * 3, axis)
        return Cut(names, (heads.queries * width, heads.keys * width, heads.keys * width), axis)
    third = shape[1 - axis]  # without a fitting config: as many keys as queries
    return Cut(names, (third,) * 3, axis) if length == 3 * third else None


def cut_by_sizes(name: str, shape: Sequence[int], sizes: Sequence[int], axis: int = 0) -> Cut | None:
    """The cut into explicit sizes; None for a single size, which keeps the weight whole.

    Raises:
        UserError: the sizes add up neither to the axis nor to a divisor of it.
    """
    if not sizes or min(sizes) < 1 or shape[axis] % sum(sizes):
        side = ("rows", "columns")[axis]
        raise UserError(
            f"parts of {name}: found sizes {', '.join(map(str, sizes))} for {shape[axis]} {side}; "
            f"expected sizes that add up to {shape[axis]}, or to a divisor of it"
        )
    if len(sizes) == 1:
        return None
    known = FUSED.get(name.rsplit(".", 1)[-1], ())
    names = known if len(known) == len(sizes) else tuple(map(str, range(len(sizes))))
    return Cut(names, tuple(sizes), axis)


def sizes_for(name: str, parts: Mapping[str, Sequence[int]]) -> Sequence[int] | None:
    """The explicit sizes for a name: those of the first pattern that matches it."""
    return next((sizes for pattern, sizes in parts.items() if fnmatchcase(name, pattern)), None)


def output_axis(shape: Sequence[int], down: Sequence[int] | None) -> int:
    """Which axis of an expert's fused gate and up, (m, n), is that of their outputs.

    Args:
        shape: shape of gate and up: (2 i, h) or (h, 2 i).
        down: shape of the down projection of the same expert: (h, i) or (i, h); None if unknown.
    """
    return 1 if down is not None and tuple(shape) == (down[1], 2 * down[0]) else 0
