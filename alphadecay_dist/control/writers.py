"""How decays reach the weights: written into a param group a module, or multiplied into the weights.

Both give the same weights. Many groups make an optimizer slow; two do not, but hold one decay for all tuned
weights: so there that decay is 0, and a hook before every optimizer step multiplies each weight by
1 - lr * decay. That is what AdamW does with a group's decay, and equal bit for bit but for its fused CUDA
kernel, which rounds w - lr * decay * w instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from alphadecay_dist.control.advice import low_precision
from alphadecay_dist.decay.policies import MATRIX_DECAY
from alphadecay_dist.decay.settings import AUTO, GROUPS, PREMULTIPLY, Settings
from alphadecay_dist.engines.host import Host
from alphadecay_dist.errors import UserError, warn
from alphadecay_dist.params.group_decay import TensorDecays, set_decay
from alphadecay_dist.params.groups import GROUP_KEY, NAMES_KEY, layout_of, names_in
from alphadecay_dist.params.inventory import Weight


class Writer(Protocol):
    """What a refresh hands its decays to."""

    def write(self, decays: Mapping[str, float]) -> None:
        """Let the next optimizer steps apply these decays, by module name."""
        ...


def writer_for(settings: Settings, host: Host, weights: Sequence[Weight]) -> Writer:
    """The writer of what the settings' policy moves.

    Args:
        settings: of the policy.
        host: the engine that holds the groups.
        weights: all that the groups name.

    Raises:
        UserError: see the writers.
    """
    return (
        NullWriter() if settings.row.moves is None else WRITERS[settings.row.moves](settings, host, weights)
    )


def matrix_decay_writer(settings: Settings, host: Host, weights: Sequence[Weight]) -> Writer:
    """The writer of a decay per matrix that fits the groups; ``apply`` auto follows them.

    Raises:
        UserError: the groups were built for the other writer, or the optimizer or the engine does not allow
            this one.
    """
    apply, groups = settings.apply, host.param_groups()
    layout = layout_of(groups)
    if apply not in (AUTO, layout):
        raise UserError(
            f"apply: found {apply!r}, but the optimizer's groups were built for {layout!r}; "
            f"give param_groups(..., apply={apply!r}) as well, or leave both at {GROUPS!r}"
        )
    if layout == GROUPS:
        return GroupWriter(host, settings.weight_decay)
    if sum(bool(names_in(group)) for group in groups) != 1:
        raise UserError(f"optimizer: expected all tuned weights in one group with apply={PREMULTIPLY!r}")
    return Premultiplier(host, weights, settings.weight_decay)


def choose_apply(optimizer: str, refusal: str | None) -> tuple[str, str]:
    """Which writer is the fastest that is right, to be known before the groups are built.

    Args:
        optimizer: its name, ``adamw`` or another.
        refusal: why the engine cannot be premultiplied on; None where it can.

    Returns:
        ``premultiply`` or ``groups``, and why.
    """
    if optimizer.lower() != "adamw":
        return GROUPS, f"the optimizer is {optimizer}, and premultiplying is AdamW's decoupled decay"
    if refusal is not None:
        return GROUPS, refusal
    return PREMULTIPLY, "AdamW on this engine allows it, and two param groups update faster than many"


class NullWriter:
    """Writes nothing, for policies that only measure."""

    def write(self, decays: Mapping[str, float]) -> None:
        """See :class:`Writer`."""


class GroupWriter:
    """Writes each module's decay into its param group, fetched again each time and found by name.

    Args:
        host: the engine that holds the groups.
        weight_decay: the base decay.

    Raises:
        UserError: groups share a tensor as their decay.
    """

    def __init__(self, host: Host, weight_decay: float) -> None:
        self._host = host
        self._base = weight_decay
        self._tensors = TensorDecays(host.param_groups())

    def write(self, decays: Mapping[str, float]) -> None:
        """See :class:`Writer`."""
        groups = self._host.param_groups()
        _keep_tensors(self._tensors, groups, self._host)
        for group in groups:
            if group.get(GROUP_KEY) in decays:
                set_decay(group, decays[group[GROUP_KEY]], self._base)


class Premultiplier:
    """Multiplies every tuned weight by 1 - lr * decay, before each optimizer step that updates it.

    Like AdamW it leaves out weights without a gradient; a step that an engine or a gradient scaler skips
    decays nothing. One optimizer has one of these: a later one takes the place of an earlier one.

    Args:
        host: the engine that holds the weights.
        weights: all that the tuned group names.
        weight_decay: the base decay, which every weight begins with.

    Raises:
        UserError: the optimizer is no AdamW, the engine cannot be served, or it updates half precision
            weights without fp32 masters.
    """

    def __init__(self, host: Host, weights: Sequence[Weight], weight_decay: float) -> None:
        _check_decoupled(host.optimizer)
        refusal = host.premultiply_refusal()
        if refusal is not None:
            raise UserError(f"apply: found {PREMULTIPLY!r}, expected {GROUPS!r}: {refusal}")
        low = low_precision(host)
        if low:
            raise UserError(
                f"apply: found {PREMULTIPLY!r} with {', '.join(sorted(map(str, low)))} weights without fp32 "
                "masters, where a weight times 1 - lr * decay rounds back to itself; keep fp32 weights and "
                f"compute under autocast, or use apply={GROUPS!r} with torch.optim.AdamW(..., fused=True)"
            )
        self._host = host
        self._base = weight_decay
        self._kept = TensorDecays(host.param_groups())
        self._parameters = [weight.parameter for weight in weights]
        self._decays = {weight.name: weight_decay for weight in weights}
        self._numbers = list(self._decays.values())
        self._tensors: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        if host.optimizer in _HOOKS:
            _HOOKS.pop(host.optimizer).remove()
        _HOOKS[host.optimizer] = host.optimizer.register_step_pre_hook(self._before_step)

    def write(self, decays: Mapping[str, float]) -> None:
        """See :class:`Writer`; what is not named keeps its decay."""
        self._decays |= decays
        self._numbers = list(self._decays.values())
        for tensor in self._tensors.values():  # in place: compiled and captured steps read these tensors
            tensor.copy_(torch.tensor(self._numbers, dtype=tensor.dtype))
        groups = self._host.param_groups()
        _keep_tensors(self._kept, groups, self._host)
        for group in groups:
            if NAMES_KEY in group:
                set_decay(group, 0.0, self._base)  # a loaded optimizer may have had another

    @torch.no_grad()
    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """The hook. DeepSpeed steps its inner optimizer once a group, or a part of one."""
        if any(given is not None for given in (*args[1:], *kwargs.values())):  # args[0] is the optimizer
            raise UserError(
                f"optimizer.step(closure): not with apply={PREMULTIPLY!r}, which decays before the step: the "
                f"closure would compute gradients of decayed weights; use apply={GROUPS!r}"
            )
        for group in optimizer.param_groups:
            updated = self._host.updated(group, self._parameters) if NAMES_KEY in group else []
            if updated:
                places, tensors = zip(*updated, strict=True)
                torch._foreach_mul_(tensors, self._factors(optimizer, group, places, tensors[0].device))

    def _factors(
        self,
        optimizer: torch.optim.Optimizer,
        group: Mapping[str, Any],
        places: Sequence[int],
        device: torch.device,
    ) -> list[float] | list[Tensor]:
        """1 - lr * decay of some weights; tensors where a graph would keep a number, or a step be skipped."""
        lr, skipped = group["lr"], getattr(optimizer, "found_inf", None)
        recorded = torch.compiler.is_compiling() or group.get("capturable", False)
        if not (recorded or isinstance(lr, Tensor) or skipped is not None):
            return [1 - lr * self._numbers[place] for place in places]
        # As the optimizer reckons: in the learning rate's type, or in fp64 where that is a Python number.
        reckons_in_lr = isinstance(lr, Tensor) and not group.get("fused", False)
        factors = 1 - lr * self._tensor(device, lr.dtype if reckons_in_lr else torch.float64)
        if skipped is not None:  # a gradient scaler's, under which a fused step runs but changes nothing
            factors = torch.where(skipped.to(device) != 0, torch.ones_like(factors), factors)
        each = factors.unbind()
        return [each[place] for place in places]

    def _tensor(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The decays on a device, kept for good so that graphs see later decays."""
        key = (device, dtype)
        if key not in self._tensors:
            self._tensors[key] = torch.tensor(self._numbers, dtype=dtype, device=device)
        return self._tensors[key]


def _keep_tensors(tensors: TensorDecays, groups: Sequence[dict[str, Any]], host: Host) -> None:
    """Say it where a load has left captured steps with tensors that nobody writes."""
    replaced = tensors.keep(groups)
    if replaced and (host.group is None or dist.get_rank(host.group) == 0):
        warn(
            f"optimizer: {replaced} param groups have another tensor as weight_decay than before, as after a "
            "load; decays are written into that one, but a graph captured before reads the old one, and the "
            "old moments: capture it again"
        )


_HOOKS: WeakKeyDictionary[torch.optim.Optimizer, Any] = WeakKeyDictionary()


def _check_decoupled(optimizer: torch.optim.Optimizer) -> None:
    decoupled = isinstance(optimizer, torch.optim.Adam) and all(
        group.get("decoupled_weight_decay", False) for group in optimizer.param_groups
    )
    if not decoupled:
        raise UserError(
            f"apply: found {PREMULTIPLY!r} with {type(optimizer).__name__}, expected torch.optim.AdamW, "
            f"whose decay is such a product; use apply={GROUPS!r}"
        )


WRITERS: dict[str, Callable[[Settings, Host, Sequence[Weight]], Writer]] = {MATRIX_DECAY: matrix_decay_writer}
