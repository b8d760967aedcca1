"""Model -> the matrices to tune, by name, and the optimizer's param groups."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, cast

from torch import nn

from alphadecay_dist.errors import UserError
from alphadecay_dist.spectral import MIN_EIGENVALUES

UNTUNED = "untuned"  # the name of the group that holds everything else
GROUP_KEY = "module"  # the key by which a param group is found again; engines keep it


@dataclass(frozen=True)
class Matrix:
    """One tuned weight: the dotted name of its module, its parameter, its whole shape (m, n).

    The parameter itself may be empty or hold a part only; the shape is the module's own.
    """

    module: str
    parameter: nn.Parameter
    shape: tuple[int, int]


def tuned_matrices(model: nn.Module, modules: Iterable[str] | None = None) -> list[Matrix]:
    """The matrices whose decay follows their spectrum, in the model's order.

    By default the weight of every ``nn.Linear`` inside a numbered block (a name such as
    ``model.layers.0.mlp.up_proj``), at least 50 wide and high, that is trained; embeddings, the head, norms
    and LoRA factors are not. A weight that several modules share is counted once, and not at all where it is
    an embedding's too.

    Args:
        model: any module; its parameters may be sharded already.
        modules: glob patterns of module names to take instead, such as ``"*.attn.c_attn"``.

    Raises:
        UserError: a pattern matches no ``nn.Linear`` of at least 50 x 50.
    """
    embedded = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    candidates = list(_linears(model, embedded))
    if modules is None:
        return [matrix for matrix in candidates if _in_block(matrix.module) and "lora_" not in matrix.module]
    patterns = list(modules)
    for pattern in patterns:
        if not any(fnmatchcase(matrix.module, pattern) for matrix in candidates):
            raise UserError(
                f"modules: {pattern!r} matches no trained nn.Linear of {MIN_EIGENVALUES} x {MIN_EIGENVALUES} "
                "or more; give a glob over the names of model.named_modules()"
            )
    return [m for m in candidates if any(fnmatchcase(m.module, pattern) for pattern in patterns)]


def param_groups(
    model: nn.Module, *, weight_decay: float, untuned: str = "base", modules: Iterable[str] | None = None
) -> list[dict[str, Any]]:
    """Param groups for ``torch.optim``: one a tuned matrix, then one for everything else.

    Args:
        model: the model to optimise; parameters with ``requires_grad=False`` are left out.
        weight_decay: the base decay, which every group starts with.
        untuned: what embeddings, norms, biases and head get: ``"base"`` (as published) or ``"zero"``.
        modules: see :func:`tuned_matrices`.

    Returns:
        Dicts with ``params``, ``weight_decay`` and ``module``, the name by which
        :class:`alphadecay_dist.AlphaDecay` finds the group again; ``"untuned"`` for the last.

    Raises:
        UserError: no matrix can be tuned, or ``untuned`` is neither of the two.
    """
    if untuned not in ("base", "zero"):
        raise UserError(f"untuned: found {untuned!r}, expected 'base' or 'zero'")
    matrices = tuned_matrices(model, modules)
    require_matrices(matrices)
    taken = {id(matrix.parameter) for matrix in matrices}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
    groups: list[dict[str, Any]] = [
        {"params": [matrix.parameter], "weight_decay": weight_decay, GROUP_KEY: matrix.module}
        for matrix in matrices
    ]
    if rest:
        base = weight_decay if untuned == "base" else 0.0
        groups.append({"params": rest, "weight_decay": base, GROUP_KEY: UNTUNED})
    return groups


def require_matrices(matrices: list[Matrix]) -> None:
    """Raise a UserError where there is nothing to tune."""
    if not matrices:
        raise UserError(
            "no module to tune: found no trained nn.Linear inside a numbered block (layers.0.mlp.up_proj), "
            f"of {MIN_EIGENVALUES} rows and columns or more; use a wider model, or name modules yourself"
        )


def _linears(model: nn.Module, embedded: set[int]) -> Iterator[Matrix]:
    """Trained Linear weights that are large enough, each parameter once, none that is an embedding's."""
    seen = set(embedded)
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or id(module.weight) in seen:
            continue
        seen.add(id(module.weight))
        shape = (module.out_features, module.in_features)
        if min(shape) >= MIN_EIGENVALUES and module.weight.requires_grad:
            yield Matrix(name, cast(nn.Parameter, module.weight), shape)


def _in_block(name: str) -> bool:
    """Whether the module lies inside an element of a ModuleList or Sequential."""
    return any(part.isdigit() for part in name.split(".")[:-1])
