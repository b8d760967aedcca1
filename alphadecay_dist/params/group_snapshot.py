"""What tells an optimizer's param groups apart, kept so that a load that overwrites it is noticed.

A load leaves each group its parameters and puts saved settings on it, by position: DeepSpeed's universal
checkpoint at stage 3 those of the first group on all of them, torch's those of whatever was saved. So the
position says which group it is, and the names are checked against it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from alphadecay_dist.errors import UserError
from alphadecay_dist.params.groups import GROUP_KEY, NAMES_KEY, names_in

ALWAYS = (GROUP_KEY, NAMES_KEY, "weight_decay")  # what is a group's own, also where all began alike
_ABSENT = object()


class GroupSnapshot:
    """The settings of param groups as they are now; no group and no tensor is kept.

    Args:
        groups: the optimizer's.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]]) -> None:
        self._kept = [_settings(group) for group in groups]
        keys = {key for kept in self._kept for key in kept}
        self._apart = [
            key
            for key in sorted(keys)
            if key in ALWAYS or any(kept.get(key, _ABSENT) != self._kept[0].get(key) for kept in self._kept)
        ]

    def restore(self, groups: Sequence[dict[str, Any]]) -> list[str]:
        """Give groups whose names a load has overwritten again what tells them apart.

        Local. Groups that were added later are left alone.

        Args:
            groups: the optimizer's, as they are now.

        Returns:
            The keys that were restored; none where the names are as they were.

        Raises:
            UserError: there are fewer groups than there were, or the load was of groups in another order.
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
        for group, kept in pairs:
            if _label(group) == _label(kept) and labels[_label(kept)] == 1:
                continue  # the load has left it alone; several groups that are not tuned have one label
            for key in self._apart:
                if key in kept:
                    group[key] = kept[key]
                else:
                    group.pop(key, None)
        return self._apart


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    """A group's own values. No tensors: a schedule changes such a learning rate in place."""
    return {key: value for key, value in group.items() if key != "params" and not isinstance(value, Tensor)}


def _label(group: Mapping[str, Any]) -> tuple[Any, tuple[str, ...]]:
    return group.get(GROUP_KEY), names_in(group)


def _refuse_another_order(expected: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> None:
    """Raise where the names are this optimizer's, each once, but at other places."""
    places = {name: place for place, name in _places(expected)}
    names = [name for _, name in _places(found)]
    if max(Counter(names).values(), default=0) > 1:
        return  # one group's settings on several: no order at all
    for place, name in _places(found):
        if places.get(name, place) != place:
            own = next((name for name, at in places.items() if at == place), "another")
            raise UserError(
                f"optimizer: the load put the settings of {name!r} where {own!r} is, because they were saved "
                "from groups in another order; so were the moments: build model and param_groups() in the "
                "order of the run that was saved"
            )


def _places(groups: Sequence[Mapping[str, Any]]) -> list[tuple[tuple[int, int], str]]:
    """Each named weight with its group's number and its own in there."""
    return [
        ((number, place), name)
        for number, group in enumerate(groups)
        for place, name in enumerate(names_in(group))
    ]
