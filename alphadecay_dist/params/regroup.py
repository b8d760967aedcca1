"""Another's param groups -> the same with a group of its own for every tuned weight.

    before                                  after
    0  lr 1e-3, decay 0.1: q, embed, k      0  lr 1e-3, decay 0.1: q        module "layers.0.q"
                                            1  lr 1e-3, decay 0.1: k        module "layers.0.k"
                                            2  lr 1e-3, decay 0.1: embed    module "untuned"
    1  lr 1e-3, decay 0:   norm             3  lr 1e-3, decay 0:   norm     module "untuned"

What is kept by parameter, such as an optimizer's moments, stays true. What is kept by group, such as a
schedule's rates, follows by the source of each new group: here 0, 0, 0, 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from alphadecay_dist.params.groups import GROUP_KEY, UNTUNED

PARAMETERS = ("params", "param_names")  # what a group has for each of its parameters, the names not always


@dataclass(frozen=True)
class Part:
    """A new group.

    Attributes:
        source: number of the group that it comes from.
        places: of its parameters in that group.
        module: its name.
    """

    source: int
    places: tuple[int, ...]
    module: str


def parts_of(groups: Sequence[Mapping[str, Any]], names: Mapping[int, str]) -> list[Part]:
    """How groups are split: in their order, of each one its tuned weights and then the rest, if there is one.

    Args:
        groups: an optimizer's.
        names: of the tuned weights, by the id of their parameters.
    """
    parts = []
    for source, group in enumerate(groups):
        ids = [id(parameter) for parameter in group["params"]]
        parts += [Part(source, (place,), names[own]) for place, own in enumerate(ids) if own in names]
        rest = tuple(place for place, own in enumerate(ids) if own not in names)
        if rest or not ids:
            parts.append(Part(source, rest, UNTUNED))
    return parts


def split(groups: list[dict[str, Any]], parts: Sequence[Part]) -> None:
    """Split groups in place. The last part of a group, its rest if there is one, is the same dict as before.

    Args:
        groups: an optimizer's.
        parts: of :func:`parts_of` for them.
    """
    lists = [
        {key: [groups[part.source][key][place] for place in part.places] for key in _present(groups, part)}
        for part in parts
    ]
    last = {part.source: part for part in parts}
    new = [
        groups[part.source] if part is last[part.source] else _copied(groups[part.source]) for part in parts
    ]
    for group, own, part in zip(new, lists, parts, strict=True):
        group.update(own)
        group[GROUP_KEY] = part.module
    groups[:] = new


def _present(groups: Sequence[Mapping[str, Any]], part: Part) -> list[str]:
    return [key for key in PARAMETERS if key in groups[part.source]]


def _copied(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: own_copy(value) for key, value in group.items()}


def own_copy(value: Any) -> Any:
    """A value that schedules change in one group alone: they write tensors in place."""
    return value.detach().clone() if isinstance(value, Tensor) else value
