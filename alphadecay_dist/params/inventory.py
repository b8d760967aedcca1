"""Model -> the weights to tune, with their names and the matrices in each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from alphadecay_dist.errors import UserError
from alphadecay_dist.params.entries import Entry, entries, whole_shapes
from alphadecay_dist.params.fused import sizes_for
from alphadecay_dist.params.tuned_rule import Tuned, cut_of, large_enough, not_by_default, unfit
from alphadecay_dist.params.wrappers import heads_by_module, named_modules, nearest
from alphadecay_dist.spectral import MIN_EIGENVALUES


@dataclass(frozen=True)
class Weight(Tuned):
    """A tuned weight of a model.

    Attributes:
        parameter: the parameter; it may be empty, or only a shard.
    """

    parameter: nn.Parameter


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
    return [weight for _, weight in _candidates(model, parts or {})]


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
    found = _candidates(model, parts or {})
    if modules is None:
        return [weight for entry, weight in found if not_by_default(entry) is None]
    candidates = [weight for _, weight in found]
    patterns = list(modules)
    for pattern in patterns:
        if not any(fnmatchcase(weight.name, pattern) for weight in candidates):
            raise UserError(
                f"modules: {pattern!r} matches no trained nn.Linear or other matrix of {MIN_EIGENVALUES} x "
                f"{MIN_EIGENVALUES} or more; give a glob over the names of model.named_modules()"
            )
    return [w for w in candidates if any(fnmatchcase(w.name, pattern) for pattern in patterns)]


def _candidates(model: nn.Module, parts: Mapping[str, Sequence[int]]) -> list[tuple[Entry, Weight]]:
    """Every trained parameter with matrices that are large enough to analyse, and how it is split."""
    modules = named_modules(model)
    heads = heads_by_module(modules)
    shapes = whole_shapes(model, modules)
    fit = [entry for entry in entries(model, modules) if unfit(entry) is None]
    for pattern in parts:
        if not any(fnmatchcase(entry.name, pattern) for entry in fit):
            raise UserError(f"parts: {pattern!r} matches no weight; give a glob over the names of the model")
    found = []
    for entry in fit:
        cut = cut_of(entry, nearest(entry.name, heads), shapes, sizes_for(entry.name, parts))
        found.append((entry, Weight(entry.name, entry.shape, cut, entry.parameter)))
    return [(entry, weight) for entry, weight in found if large_enough(weight)]
