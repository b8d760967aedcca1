"""The decay of a param group, in the form that its optimizer reads.

``weight_decay`` is what optimizers read. It is a number, or a tensor that compiled and captured steps read
again each time: that one is written in place. A group with the key ``wd_mult`` belongs to a host whose
scheduler writes weight_decay = its base * wd_mult after every update, as Megatron's does; there both are
written, so that the decay holds before the scheduler's next step and after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from alphadecay_dist.errors import UserError

DECAY_KEY = "weight_decay"
FACTOR_KEY = "wd_mult"


def decay_of(group: Mapping[str, Any]) -> float:
    """The decay that the group's optimizer applies in its next step."""
    return float(group[DECAY_KEY])


def set_decay(group: dict[str, Any], decay: float, base: float) -> None:
    """Let the group's optimizer decay by this from its next step on.

    Args:
        group: a param group.
        decay: what the optimizer is to apply.
        base: the decay that a host with ``wd_mult`` multiplies by it. If it follows a schedule there, so
            does the decay: a group's decay by its factor tells how far that is. With a base of 0 only a decay
            of 0 can be written.

    Raises:
        UserError: a decay that no factor gives, or a tensor that can hold no fraction.
    """
    if FACTOR_KEY in group:
        if base == 0 and decay != 0:
            raise UserError(
                f"{FACTOR_KEY}: found a decay of {decay} with the base decay 0, of which it is no multiple; "
                "give AlphaDecay the base decay of the host's scheduler"
            )
        scheduled = decay_of(group) / float(group[FACTOR_KEY]) if float(group[FACTOR_KEY]) else base
        factor = decay / base if base else 0.0
        _put(group, FACTOR_KEY, factor)
        decay = factor * scheduled
    _put(group, DECAY_KEY, decay)


class TensorDecays:
    """The tensors that hold the decays of param groups, which a load of the optimizer must not lose.

    torch's load puts copies of what was saved into the groups: another tensor, or a number.

    Args:
        groups: the optimizer's param groups.

    Raises:
        UserError: several groups share a tensor, which can hold one decay.
    """

    def __init__(self, groups: Sequence[dict[str, Any]]) -> None:
        self._held = [_tensor(group) for group in groups]
        seen: set[int] = set()
        for group, tensor in zip(groups, self._held, strict=True):
            if tensor is not None and id(tensor) in seen:
                raise UserError(
                    f"{DECAY_KEY}: found one tensor in several param groups, the one of "
                    f"{group.get('module')!r} among them, expected one each; give every group a clone of it"
                )
            seen.add(id(tensor))

    def keep(self, groups: Sequence[dict[str, Any]]) -> int:
        """See that groups that had a tensor have one. A number that a load put there goes into it.

        Args:
            groups: those of before, as they are now; later ones may follow.

        Returns:
            How many have another tensor than before, which steps captured before do not read.
        """
        replaced = 0
        for place, group in enumerate(groups):
            held, found = self._held[place] if place < len(self._held) else None, _tensor(group)
            if held is not None and found is None:
                number = decay_of(group)
                group[DECAY_KEY] = held
                _put(group, DECAY_KEY, number)
            elif held is not None and found is not held:
                self._held[place] = found
                replaced += 1
        return replaced


def _tensor(group: Mapping[str, Any]) -> Tensor | None:
    found = group.get(DECAY_KEY)
    return found if isinstance(found, Tensor) else None


@torch.no_grad()
def _put(group: dict[str, Any], key: str, value: float) -> None:
    held = group.get(key)
    if not isinstance(held, Tensor):
        group[key] = value
        return
    if not held.is_floating_point():
        raise UserError(f"{key}: found a tensor of {held.dtype}, expected one of floating point numbers")
    held.fill_(value)
