"""Which parameters a user gives no decay, by glob patterns over their full names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

from torch import nn

from alphadecay_dist.errors import UserError, shown
from alphadecay_dist.params.wrappers import named_modules


def undecayed(model: nn.Module, patterns: Iterable[str] | str) -> set[int]:
    """The parameters whose names match one of the patterns, frozen ones too; a tied one by any of its names.

    Args:
        model: any module; names are those of ``named_parameters()`` as if nothing wrapped it.
        patterns: globs over full names, such as ``"*norm*"`` and ``"*.bias"``; one may be given alone.

    Returns:
        Their ids.

    Raises:
        UserError: no patterns, a pattern is no string, or matches nothing.
    """
    if not isinstance(patterns, Iterable):
        raise UserError(f"no_decay: found {shown(patterns)}, expected globs over names of parameters")
    globs = [patterns] if isinstance(patterns, str) else list(patterns)
    named = list(_named_parameters(model)) if globs else []
    found: set[int] = set()
    for pattern in globs:
        if not isinstance(pattern, str):
            raise UserError(f"no_decay: found {shown(pattern)}, expected globs over names of parameters")
        matched = {id(parameter) for name, parameter in named if fnmatchcase(name, pattern)}
        if not matched:
            nearest = _nearest(pattern, [name for name, _ in named])
            raise UserError(
                f"no_decay: {pattern!r} matches no parameter{nearest}; give globs over the names of "
                "model.named_parameters(), without what DDP or torch.compile puts before them"
            )
        found |= matched
    return found


def _named_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for module_name, module in named_modules(model).items():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            yield f"{module_name}.{name}".removeprefix("."), parameter


def _nearest(pattern: str, names: list[str]) -> str:
    """The name that is like the pattern, or has a part that is like it, in words; nothing if none is."""
    parts = {part: name for name in reversed(names) for part in [*name.split("."), name]}
    close = difflib.get_close_matches(pattern.strip("*.?"), parts, n=1, cutoff=0.5)
    return f", the nearest is {parts[close[0]]!r}" if close else ""
