"""The settings that distinguish an optimizer's param groups, kept so that an overwriting load is noticed.

A load keeps the parameters of each group and writes saved settings into it, by position. DeepSpeed's
universal checkpoint at stage 3 writes those of the first group into all groups; torch writes whatever was
saved. So the position identifies a group, and the names are checked against it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from alphadecay_dist.errors import UserError
from alphadecay_dist.params.group_decay import DECAY_KEY, FACTOR_KEY
from alphadecay_dist.params.groups import GROUP_KEY, NAMES_KEY, names_in

ALWAYS = (
    GROUP_KEY,
    NAMES_KEY,
    DECAY_KEY,
    FACTOR_KEY,
)  # kept per group, even if all groups had the same at first
_ABSENT = object()


class GroupSnapshot:
    """The settings of param groups as they are now; it keeps no group, and of a decay's tensor a copy.

    Args:
        groups: the optimizer's param groups.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]]) -> None:
        self._kept = [_settings(group) for group in groups]
        self._tensors = [{key for key in group if _is_tensor(group, key)} for group in groups]
        keys = {key for kept in self._kept for key in kept}
        self._apart = [
            key
            for key in sorted(keys)
            if key in ALWAYS or any(kept.get(key, _ABSENT) != self._kept[0].get(key) for kept in self._kept)
        ]

    def restore(self, groups: Sequence[dict[str, Any]]) -> list[str]:
        """Restore the distinguishing settings of groups whose names a load has overwritten.

        Local. Groups that were added later are not changed.

        Args:
            groups: the optimizer's param groups, as they are now.

        Returns:
            The keys that were restored; empty if the names are unchanged.

        Raises:
            UserError: there are fewer groups than before, or the loaded groups were in another order.
        """
        if len(groups) < len(self._kept):
            raise UserError(
                f"optimizer: found {len(groups)} param groups, expected the {len(self._kept)} of when "
                "AlphaDecay was constructed; construct it again after its groups were changed"
            )
        pairs = list(zip(groups, self._kept, strict=False))
        if all(_label(group) == _label(kept) for group, kept in pairs):
            return []
        _refuse_another_order(self._kept, groups)
        labels = Counter(_label(kept) for kept in self._kept)
        for (group, kept), tensors in zip(pairs, self._tensors, strict=True):
            if _label(group) == _label(kept) and labels[_label(kept)] == 1:
                continue  # unchanged by the load; but several groups that are not tuned share one label
            for key in self._apart:
                if key in kept:
                    group[key] = _own(kept[key])
                elif key not in tensors:
                    group.pop(key, None)
        return self._apart


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    """A group's values. A schedule changes a learning rate that is a tensor in place, so that is not kept."""
    return {
        key: _own(value)
        for key, value in group.items()
        if key != "params" and (key == DECAY_KEY or not isinstance(value, Tensor))
    }


def _own(value: Any) -> Any:
    """A value that no other group can share: a load may put one group's tensor into all."""
    return value.detach().clone() if isinstance(value, Tensor) else value


def _is_tensor(group: Mapping[str, Any], key: str) -> bool:
    return key != "params" and isinstance(group[key], Tensor)


def _label(group: Mapping[str, Any]) -> tuple[Any, tuple[str, ...]]:
    return group.get(GROUP_KEY), names_in(group)


def _refuse_another_order(expected: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> None:
    """Raise if the names are this optimizer's, each once, but at other places."""
    places = {name: place for place, name in _places(expected)}
    names = [name for _, name in _places(found)]
    if max(Counter(names).values(), default=0) > 1:
        return  # one group's settings in several groups: no order to check
    for place, name in _places(found):
        if places.get(name, place) != place:
            own = next((name for name, at in places.items() if at == place), "another")
            raise UserError(
                f"optimizer: the load put the settings of {name!r} where {own!r} is, because they were saved "
                "from groups in another order; so were the moments: build model and param_groups() in the "
                "order of the run that was saved"
            )


def _places(groups: Sequence[Mapping[str, Any]]) -> list[tuple[tuple[int, int], str]]:
    """Each named weight with the number of its group and its own number in that group."""
    return [
        ((number, place), name)
        for number, group in enumerate(groups)
        for place, name in enumerate(names_in(group))
    ]
