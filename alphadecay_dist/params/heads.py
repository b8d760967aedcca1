"""The weights of attention, cut head by head.

A head has d rows of q, k and v (their outputs) and d columns of o (its inputs). How many heads there are is
said by the attention's own module (``num_heads``), or else by the config of the nearest module that has one;
it must agree with the weight's shape. What nothing tells is not guessed: that weight stays as it was, with
the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic

from torch import nn

from alphadecay_dist.errors import UserError
from alphadecay_dist.params.coverage import SHOWN, pattern_of
from alphadecay_dist.params.entries import entries
from alphadecay_dist.params.fused import FUSED, QKV, Cut, Heads, sizes_for
from alphadecay_dist.params.tuned_rule import CONV1D, T, large_enough
from alphadecay_dist.params.wrappers import heads_by_module, named_modules, nearest
from alphadecay_dist.spectral import MIN_EIGENVALUES

Q, K, V, OUT, QKV_IN_ONE = "q", "k", "v", "o", "qkv"
# Roles by the last part of a name: what is clear anywhere, and what is clear within an attention.
ALONE = {
    **dict.fromkeys(("q_proj", "q_proj_weight"), Q),
    **dict.fromkeys(("k_proj", "k_proj_weight"), K),
    **dict.fromkeys(("v_proj", "v_proj_weight"), V),
    "o_proj": OUT,
    **{name: QKV_IN_ONE for name, parts in FUSED.items() if parts is QKV},
}
WITHIN = {
    **dict.fromkeys(("query", "query_proj", "q_lin", "q_attn", "q_b_proj", "wq", "to_q", "q"), Q),
    **dict.fromkeys(("key", "key_proj", "k_lin", "wk", "to_k", "k"), K),
    **dict.fromkeys(("value", "value_proj", "v_lin", "wv", "to_v", "v"), V),
    **dict.fromkeys(("out_proj", "c_proj", "dense", "proj", "out_lin", "wo", "o"), OUT),
}
# What attention modules call their numbers of heads, of key-value heads, and the sizes of a head.
QUERIES = ("num_heads", "num_attention_heads", "n_heads", "n_head")
KEYS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_kv_head")
WIDTHS = ("qk_head_dim", "head_dim", "attention_head_size", "head_size", "key_value_proj_dim")
VALUE_WIDTHS = ("v_head_dim",)

UNTOLD = "neither its module nor a config tells the number of heads"
UNNAMED = "its name is none of q, k, v or o"
UNORDERED = "its order of q, k and v is not known"
NO_MATRIX = "it is no single matrix"


@dataclass(frozen=True)
class Attention:
    """What is known of the attention that a weight belongs to.

    Attributes:
        queries: number of query heads.
        keys: number of key-value heads; 0 if only the width of a head tells.
        width: size of a head's queries and keys; 0 if unknown.
        value_width: size of a head's values; 0 if unknown.
        axis: which axis of the weight is that of the outputs.
    """

    queries: int
    keys: int = 0
    width: int = 0
    value_width: int = 0
    axis: int = 0

    @classmethod
    def of_config(cls, heads: Heads, axis: int) -> Attention:
        """As a config says it."""
        return cls(heads.queries, heads.keys, heads.width, heads.width, axis)


Known = Callable[[str], Attention | None]  # of a weight, by its name


@dataclass(frozen=True)
class ByHeads(Generic[T]):
    """Weights after those of attention were cut by heads.

    Attributes:
        weights: all, in their order.
        cut: names of those that are cut by heads now, or have one.
        whole: names of those of attention that are not, with the reason.
    """

    weights: list[T]
    cut: list[str] = field(default_factory=list)
    whole: dict[str, str] = field(default_factory=dict)

    def require(self) -> None:
        """Refuse heads where there are none.

        Raises:
            UserError: with the reasons.
        """
        if not self.cut:
            found = self._reasons() or "found no weight of an attention among the tuned ones"
            raise UserError(
                f"heads: found true, but no weight can be cut by heads: {found}; set heads to false"
            )

    def line(self) -> str | None:
        """What of the attention is not cut, and why; None if all is."""
        return f"not cut by heads: {self._reasons()}" if self.whole else None

    def _reasons(self) -> str:
        kinds: dict[str, dict[str, None]] = {}
        for name, why in self.whole.items():
            kinds.setdefault(why, {})[pattern_of(name)] = None
        return "; ".join(f"{_some(list(patterns))}: {why}" for why, patterns in kinds.items())


def cut_by_heads(
    weights: Sequence[T],
    known: Known,
    parts: Mapping[str, Sequence[int]] | None = None,
    *,
    fits: Callable[[T], bool] = large_enough,
) -> ByHeads[T]:
    """Cut the weights of attention by heads; the others, and those with explicit sizes, stay as they are.

    Args:
        weights: tuned ones.
        known: what is known of each, see :func:`attentions`.
        parts: explicit sizes by pattern, see :func:`alphadecay_dist.params.inventory.all_weights`.
        fits: whether the heads of a weight, cut so, are large enough for what is done with them.
    """
    shapes = {(attention_of(own.name), role_of(own.name)): own.shape for own in weights}
    found: ByHeads[T] = ByHeads([])
    for weight in weights:
        role = role_of(weight.name)
        own = weight
        if sizes_for(weight.name, parts or {}) is None and (role or _within(weight.name)):
            cut = _cut(weight, role, known(weight.name), shapes)
            if isinstance(cut, str):
                found.whole[weight.name] = cut
            elif not fits(replace(weight, cut=cut)):
                found.whole[weight.name] = _too_small(cut)
            else:
                own = replace(weight, cut=cut if len(cut.names) > 1 else None)  # one head is the whole matrix
                found.cut.append(weight.name)
        found.weights.append(own)
    return found


def attentions(model: nn.Module) -> Known:
    """What is known of the attention of any weight of a model; its parameters may be sharded."""
    modules = named_modules(model)
    configs = heads_by_module(modules)
    conv1d = {entry.name for entry in entries(model, modules) if entry.kind == CONV1D}

    def known(name: str) -> Attention | None:
        place, axis, heads = attention_of(name), int(name in conv1d), nearest(name, configs)
        inner = [own for at, own in modules.items() if at == place or at.startswith(f"{place}.")]
        told = _of_modules(inner, heads, axis)
        return told if told is not None or heads is None else Attention.of_config(heads, axis)

    return known


def attention_of(name: str) -> str:
    """Dotted name of the innermost module named like an attention that holds a weight; else of its parent."""
    outer = name.split(".")[:-1]
    for depth in range(len(outer), 0, -1):
        if _is_attention(outer[depth - 1]):
            return ".".join(outer[:depth])
    return ".".join(outer)


def role_of(name: str) -> str | None:
    """What a weight is in its attention; None if its name does not tell, or it is in none."""
    last = name.rsplit(".", 1)[-1]
    return ALONE.get(last) or (WITHIN.get(last) if _within(name) else None)


def _within(name: str) -> bool:
    return any(_is_attention(part) for part in name.split(".")[:-1])


def _is_attention(part: str) -> bool:
    return "attn" in part.lower() or "attention" in part.lower()


def _of_modules(inner: Sequence[nn.Module], heads: Heads | None, axis: int) -> Attention | None:
    """As an attention's own modules say it, outermost first; None if they do not."""
    queries = _number(inner, QUERIES)
    if not queries:
        return None
    keys = _number(inner, KEYS)
    if not keys and any(isinstance(own, nn.MultiheadAttention) for own in inner):
        keys = queries
    if not keys and heads is not None and heads.queries == queries:
        keys = heads.keys
    width, values = _number(inner, WIDTHS), _number(inner, VALUE_WIDTHS)
    return Attention(queries, keys, width, values or width, axis)


def _number(inner: Sequence[nn.Module], names: Sequence[str]) -> int:
    """The first attribute of such a name that is a positive whole number; 0 if there is none."""
    for own in inner:
        for name in names:
            found = getattr(own, name, None)
            if isinstance(found, int) and not isinstance(found, bool) and found > 0:
                return found
    return 0


def _cut(
    weight: T,
    role: str | None,
    own: Attention | None,
    shapes: Mapping[tuple[str, str | None], Sequence[int]],
) -> Cut | str:
    """The cut of a weight by heads, or why there is none."""
    if role is None:
        return UNNAMED
    if len(weight.shape) != 2:
        return NO_MATRIX
    if own is None:
        return UNTOLD
    if role == QKV_IN_ONE:
        return _cut_fused(weight.cut, weight.shape, own)
    axis = 1 - own.axis if role == OUT else own.axis
    count, length = own.queries, weight.shape[axis]
    if role in (K, V):
        count = own.keys or _keys_by_width(attention_of(weight.name), own, shapes)
    width = own.width if role in (Q, K) else own.value_width
    if not count or length % count or (width and length != count * width):
        return _unlike(length, axis, count, width)
    return Cut(tuple(map(str, range(count))), (length // count,) * count, axis)


def _cut_fused(cut: Cut | None, shape: Sequence[int], own: Attention) -> Cut | str:
    """The cut into q, k and v, refined: they follow each other in whole or head by head."""
    if cut is None or cut.names != QKV:
        return UNORDERED
    repeats, rest = divmod(shape[cut.axis], sum(cut.sizes))
    if repeats > 1:  # head by head, with as many keys as queries
        if rest or repeats != own.queries or len(set(cut.sizes)) != 1:
            return _unlike(shape[cut.axis], cut.axis, own.queries, own.width)
        names = tuple(f"{part}.{head}" for head in range(repeats) for part in QKV)
        return Cut(names, cut.sizes * repeats, cut.axis)
    width, rest = divmod(cut.sizes[0], own.queries)
    counts = [size // max(width, 1) for size in cut.sizes]
    if rest or own.width not in (0, width) or own.keys not in (0, counts[1]):
        return _unlike(cut.sizes[0], cut.axis, own.queries, own.width)
    if any(size % width for size in cut.sizes):
        return _unlike(cut.sizes[1], cut.axis, counts[1], width)
    names = tuple(f"{part}.{head}" for part, count in zip(QKV, counts, strict=True) for head in range(count))
    return Cut(names, (width,) * len(names), cut.axis)


def _keys_by_width(place: str, own: Attention, shapes: Mapping[tuple[str, str | None], Sequence[int]]) -> int:
    """The number of key-value heads: of keys as wide as the queries' heads; 0 if that cannot be known."""
    queries, keys = shapes.get((place, Q), ()), shapes.get((place, K), ())
    if len(queries) != 2 or len(keys) != 2 or queries[own.axis] % own.queries:
        return 0
    count, rest = divmod(keys[own.axis], queries[own.axis] // own.queries)
    return 0 if rest else count


def _some(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _unlike(length: int, axis: int, count: int, width: int) -> str:
    heads = f"{count or 'a known number of'} heads{f' of {width}' if width else ''}"
    return f"its {length} {('rows', 'columns')[axis]} are not those of {heads}"


def _too_small(cut: Cut) -> str:
    return f"its heads of {cut.sizes[0]} have fewer than {MIN_EIGENVALUES} eigenvalues"
