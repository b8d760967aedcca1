"""Model -> the weights to tune, with their names and the matrices in each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn

from alphadecay_dist.errors import UserError
from alphadecay_dist.params.entries import (
    Entry,
    entries,
    is_conv1d,
    joined_experts,
    not_by_default,
    unfit,
    whole_shapes,
)
from alphadecay_dist.params.fused import Cut, Heads, cut_by_sizes, sizes_for
from alphadecay_dist.params.tuned_rule import cut_of, large_enough, output_axis_of
from alphadecay_dist.params.wrappers import heads_by_module, named_modules, nearest
from alphadecay_dist.spectral import MIN_EIGENVALUES


@dataclass(frozen=True)
class Weight:
    """One tuned weight, which has one decay, and the matrices that it consists of.

    Attributes:
        name: dotted name of its module, or of the parameter itself if it is not the module's ``weight``.
        parameter: the parameter; it may be empty, or only a shard.
        shape: the whole shape: (m, n), (experts, m, n) for a stack of experts, or (out, in, h, w) for a
            Conv2d.
        cut: how each of its matrices is split into parts; None if it is not fused.
    """

    name: str
    parameter: nn.Parameter
    shape: tuple[int, ...]
    cut: Cut | None = None

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

    def cut_up(self, unit: str, whole: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The parts of a unit, by name, from its whole tensor."""
        if self.cut is None:
            yield unit, whole
        else:
            yield from ((f"{unit}.{part}", tensor) for part, tensor in self.cut.parts(whole))


def all_weights(model: nn.Module, parts: Mapping[str, Sequence[int]] | None = None) -> list[Weight]:
    """Every trained weight that could be tuned, in the model's order, each parameter once.

    These are the weights of ``nn.Linear`` and ``nn.Conv2d``, and every other parameter of two or three
    dimensions (three: a stack of experts). Embeddings are left out, also tied ones, and so are weights whose
    matrices all have fewer than 50 eigenvalues.

    Args:
        model: any module; its parameters may be sharded already.
        parts: explicit sizes of fused weights, by glob pattern, such as
            ``{"*.qkv_proj": (2048, 512, 512)}``; the others are split by their names.

    Raises:
        UserError: sizes do not fit, or a pattern matches nothing.
    """
    found = _candidates(model, named_modules(model), parts or {})
    return [weight for _, weight in found if large_enough(weight.part_shapes())]


def tuned_weights(
    model: nn.Module,
    modules: Iterable[str] | None = None,
    parts: Mapping[str, Sequence[int]] | None = None,
) -> list[Weight]:
    """The weights whose decay depends on their spectrum, in the model's order.

    The default is every weight of :func:`all_weights` that is inside a numbered block (a name such as
    ``model.layers.0.mlp.up_proj``), and either belongs to an ``nn.Linear``, ``nn.Conv2d``,
    ``nn.MultiheadAttention`` or transformers' ``Conv1D``, or is a stack of experts. Embeddings, the head,
    norms and LoRA factors are not tuned.

    Args:
        model: any module; its parameters may be sharded already.
        modules: glob patterns of names to tune instead, such as ``"*.attn.c_attn"``.
        parts: see :func:`all_weights`.

    Raises:
        UserError: a pattern matches nothing that could be tuned.
    """
    known = named_modules(model)
    found = [pair for pair in _candidates(model, known, parts or {}) if large_enough(pair[1].part_shapes())]
    if modules is None:
        return [weight for entry, weight in found if not_by_default(entry, known) is None]
    candidates = [weight for _, weight in found]
    patterns = list(modules)
    for pattern in patterns:
        if not any(fnmatchcase(weight.name, pattern) for weight in candidates):
            raise UserError(
                f"modules: {pattern!r} matches no trained nn.Linear or other matrix of {MIN_EIGENVALUES} x "
                f"{MIN_EIGENVALUES} or more; give a glob over the names of model.named_modules()"
            )
    return [w for w in candidates if any(fnmatchcase(w.name, pattern) for pattern in patterns)]


def first_and_last(model: nn.Module) -> set[str]:
    """Names of the first and the last nn.Linear or nn.Conv2d, which AlphaDecay's released code leaves out.

    In a LLaMA these are q_proj of layer 0 (an embedding is neither a Linear nor a Conv2d) and lm_head.
    """
    modules = named_modules(model).items()
    names = [name for name, module in modules if isinstance(module, nn.Linear | nn.Conv2d)]
    return {names[0], names[-1]} if names else set()


def _candidates(
    model: nn.Module, modules: Mapping[str, nn.Module], parts: Mapping[str, Sequence[int]]
) -> list[tuple[Entry, Weight]]:
    """Every trained parameter with matrices, large or small, and how it is split."""
    heads = heads_by_module(modules)
    shapes = whole_shapes(model, modules)
    found = [
        (entry, _with_cut(entry, nearest(entry.name, heads), shapes, parts))
        for entry in entries(model, modules)
        if unfit(entry) is None
    ]
    for pattern in parts:
        if not any(fnmatchcase(entry.name, pattern) for entry, _ in found):
            raise UserError(f"parts: {pattern!r} matches no weight; give a glob over the names of the model")
    return found


def _with_cut(
    entry: Entry,
    heads: Heads | None,
    shapes: Mapping[str, Sequence[int]],
    parts: Mapping[str, Sequence[int]],
) -> Weight:
    """The weight, split by the given sizes, by experts, or by its name."""
    transposed = is_conv1d(entry.module)
    sizes = sizes_for(entry.name, parts) if len(entry.shape) != 4 else None
    experts = joined_experts(entry)
    if sizes is not None:
        axis = output_axis_of(entry.name, entry.shape, shapes, transposed=transposed)
        cut = cut_by_sizes(entry.name, entry.shape[-2:], sizes, axis)
    elif experts is not None:
        cut = Cut(tuple(map(str, range(experts))), (entry.shape[0] // experts,) * experts)
    else:
        cut = cut_of(entry.name, entry.shape, heads, shapes, transposed=transposed)
    return Weight(entry.name, entry.parameter, entry.shape, cut)
