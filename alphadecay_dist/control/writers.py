"""How decays reach the weights: written into a param group a module, or multiplied into the weights.

``WRITERS`` has the targets by name, see also ``control/rates.py`` and ``control/coordinates.py``.

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
from torch import Tensor

from alphadecay_dist.control.advice import low_precision
from alphadecay_dist.control.coordinates import CoordinateDecay
from alphadecay_dist.control.hooks import remove_hooks
from alphadecay_dist.control.rates import RateWriter
from alphadecay_dist.control.refresh import Measurement
from alphadecay_dist.decay.policies import COORDINATE_DECAY, EVERY_DECAY, MATRIX_DECAY, MATRIX_RATE
from alphadecay_dist.decay.settings import AUTO, GROUPS, PREMULTIPLY, Settings
from alphadecay_dist.engines.host import Host
from alphadecay_dist.errors import UserError
from alphadecay_dist.params.groups import GROUP_KEY, NAMES_KEY, layout_of, names_in
from alphadecay_dist.params.inventory import Weight


class Writer(Protocol):
    """What a policy hands its numbers to."""

    def write(self, numbers: Mapping[str, float], found: Mapping[str, Measurement]) -> None:
        """Let the next optimizer steps apply these.

        Args:
            numbers: decays, or what else the policy moves, by module name.
            found: what was measured, by part; empty where only the numbers are known, as after a load.
        """
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
    if settings.row.moves is None:
        return NullWriter()
    layout = layout_of(host.param_groups())
    if settings.needs_groups and layout != GROUPS:
        raise UserError(
            f"apply: the optimizer's groups were built for {layout!r}, expected {GROUPS!r} with "
            f"{settings.what_needs_groups}; leave param_groups(..., apply=) out"
        )
    remove_hooks(host.optimizer)
    writer = WRITERS[settings.row.moves](settings, host, weights)
    if settings.is_cautious or settings.row.moves == COORDINATE_DECAY:
        return CoordinateWriter(writer, CoordinateDecay(settings, host, weights))
    return writer


def every_decay_writer(settings: Settings, host: Host, weights: Sequence[Weight]) -> Writer:
    """The writer of one decay into all groups."""
    return EveryGroupWriter(host)


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
        return GroupWriter(host)
    if sum(bool(names_in(group)) for group in groups) != 1:
        raise UserError(f"optimizer: expected all tuned weights in one group with apply={PREMULTIPLY!r}")
    return Premultiplier(host, weights, settings.weight_decay)


def choose_apply(settings: Settings, optimizer: str, refusal: str | None) -> tuple[str, str]:
    """Which writer is the fastest that is right, to be known before the groups are built.

    Args:
        settings: of the policy.
        optimizer: its name, ``adamw`` or another.
        refusal: why the engine cannot be premultiplied on; None where it can.

    Returns:
        ``premultiply`` or ``groups``, and why.
    """
    if settings.needs_groups:
        return GROUPS, f"policy {settings.policy} needs a group per matrix"
    if optimizer.lower() != "adamw":
        return GROUPS, f"the optimizer is {optimizer}, and premultiplying is AdamW's decoupled decay"
    if refusal is not None:
        return GROUPS, refusal
    return PREMULTIPLY, "AdamW on this engine allows it, and two param groups update faster than many"


class NullWriter:
    """Writes nothing, for policies that only measure."""

    def write(self, numbers: Mapping[str, float], found: Mapping[str, Measurement]) -> None:
        """See :class:`Writer`."""


class EveryGroupWriter:
    """Writes the one decay of all modules into every group, but for groups that had none from the start.

    Groups for ``premultiply`` serve as well: one decay for all needs no product.

    Args:
        host: the engine that holds the groups.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        groups = host.param_groups()
        decays = [float(group["weight_decay"]) for group in groups]
        built = any(decays) or layout_of(groups) == PREMULTIPLY  # else another policy has left 0 in all
        self._free = [
            built and not names_in(group) and decay == 0 for group, decay in zip(groups, decays, strict=True)
        ]

    def write(self, numbers: Mapping[str, float], found: Mapping[str, Measurement]) -> None:
        """See :class:`Writer`."""
        decay = next(iter(numbers.values()))
        for group, free in zip(self._host.param_groups(), self._free, strict=False):
            if not free:
                group["weight_decay"] = decay


class CoordinateWriter:
    """Hands decays to the groups and what was measured to what applies them coordinate by coordinate."""

    def __init__(self, writer: Writer, coordinates: CoordinateDecay) -> None:
        self._writer = writer
        self._coordinates = coordinates

    def write(self, numbers: Mapping[str, float], found: Mapping[str, Measurement]) -> None:
        """See :class:`Writer`."""
        self._writer.write(numbers, found)
        self._coordinates.observe(found)


class GroupWriter:
    """Writes each module's decay into its param group, fetched again each time and found by name."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def write(self, numbers: Mapping[str, float], found: Mapping[str, Measurement]) -> None:
        """See :class:`Writer`."""
        for group in self._host.param_groups():
            if group.get(GROUP_KEY) in numbers:
                group["weight_decay"] = numbers[group[GROUP_KEY]]


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
        self._parameters = [weight.parameter for weight in weights]
        self._decays = {weight.name: weight_decay for weight in weights}
        self._numbers = list(self._decays.values())
        self._tensors: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        if host.optimizer in _HOOKS:
            _HOOKS.pop(host.optimizer).remove()
        _HOOKS[host.optimizer] = host.optimizer.register_step_pre_hook(self._before_step)

    def write(self, numbers: Mapping[str, float], found: Mapping[str, Measurement]) -> None:
        """See :class:`Writer`; what is not named keeps its decay."""
        self._decays |= numbers
        self._numbers = list(self._decays.values())
        for tensor in self._tensors.values():  # in place: compiled and captured steps read these tensors
            tensor.copy_(torch.tensor(self._numbers, dtype=tensor.dtype))
        for group in self._host.param_groups():
            if NAMES_KEY in group:
                group["weight_decay"] = 0.0  # a loaded optimizer may have had another

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


WRITERS: dict[str, Callable[[Settings, Host, Sequence[Weight]], Writer]] = {
    MATRIX_DECAY: matrix_decay_writer,
    EVERY_DECAY: every_decay_writer,
    COORDINATE_DECAY: matrix_decay_writer,
    MATRIX_RATE: RateWriter,
}
