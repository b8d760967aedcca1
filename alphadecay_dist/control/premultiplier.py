"""Decays multiplied into the weights, for param groups that hold one decay for all tuned weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from alphadecay_dist.control.advice import low_precision
from alphadecay_dist.control.decoupled import decays_by_product
from alphadecay_dist.control.group_writers import keep_tensors
from alphadecay_dist.control.hooks import keep_handles, remove_hooks
from alphadecay_dist.control.refresh import Measurement
from alphadecay_dist.decay.choices import GROUPS, PREMULTIPLY
from alphadecay_dist.engines.host import Host
from alphadecay_dist.errors import UserError
from alphadecay_dist.params.group_decay import TensorDecays, set_decay
from alphadecay_dist.params.groups import NAMES_KEY, names_in
from alphadecay_dist.params.inventory import Weight


class Premultiplier:
    """Multiplies every tuned weight by 1 - lr * decay, before each optimizer step that updates it.

    Each group that names several weights has a hook of its own on its optimizer.

    Like AdamW it leaves out weights without a gradient; a step that an engine or a gradient scaler skips
    decays nothing. One optimizer has one of these: a later one takes the place of an earlier one.

    Args:
        host: the engine that holds the weights.
        weights: all that the tuned groups name.
        weight_decay: the base decay, which every weight begins with.

    Raises:
        UserError: an optimizer of tuned weights decays otherwise than AdamW and Muon do, the engine cannot be
            served, or it updates half precision weights without fp32 masters.
    """

    def __init__(self, host: Host, weights: Sequence[Weight], weight_decay: float) -> None:
        shared = [(optimizer, names) for optimizer in host.optimizers for names in _shared_names(optimizer)]
        for optimizer, _ in shared:
            _check_decoupled(optimizer)
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
        self._decays = {weight.name: weight_decay for weight in weights}
        parameters = {weight.name: weight.parameter for weight in weights}
        self._products = []
        for optimizer in host.optimizers:
            remove_hooks(optimizer)
        for optimizer, names in shared:
            product = _Product(host, {name: parameters[name] for name in names}, self._decays)
            keep_handles(optimizer, optimizer.register_step_pre_hook(product.before_step))
            self._products.append(product)

    def write(self, numbers: Mapping[str, float], found: Mapping[str, Measurement]) -> None:
        """See :class:`Writer`; what is not named keeps its decay."""
        self._decays |= numbers
        for product in self._products:
            product.take(self._decays)
        groups = self._host.param_groups()
        keep_tensors(self._kept, groups, self._host)
        for group in groups:
            if NAMES_KEY in group:
                set_decay(group, 0.0, self._base)  # a loaded optimizer may have had another


class _Product:
    """The decays of the weights of one group, and the hook that multiplies them in.

    Args:
        host: the engine that holds the weights.
        parameters: the model's, by name, in the order of the group's names.
        decays: of all modules, by name.
    """

    def __init__(
        self, host: Host, parameters: Mapping[str, nn.Parameter], decays: Mapping[str, float]
    ) -> None:
        self._host = host
        self._names = list(parameters)
        self._parameters = list(parameters.values())
        self._tensors: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self.take(decays)

    def take(self, decays: Mapping[str, float]) -> None:
        """Multiply by these from the next step on."""
        self._numbers = [decays[name] for name in self._names]
        for tensor in self._tensors.values():  # in place: compiled and captured steps read these tensors
            tensor.copy_(torch.tensor(self._numbers, dtype=tensor.dtype))

    @torch.no_grad()
    def before_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """The hook. DeepSpeed steps its inner optimizer once a group, or a part of one."""
        if any(given is not None for given in (*args[1:], *kwargs.values())):  # args[0] is the optimizer
            raise UserError(
                f"optimizer.step(closure): not with apply={PREMULTIPLY!r}, which decays before the step: the "
                f"closure would compute gradients of decayed weights; use apply={GROUPS!r}"
            )
        for group in optimizer.param_groups:
            own = NAMES_KEY in group and list(names_in(group)) == self._names
            updated = self._host.updated(group, self._parameters) if own else []
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


def _shared_names(optimizer: torch.optim.Optimizer) -> list[tuple[str, ...]]:
    """The tuned weights of each of the optimizer's groups that names several."""
    return [names_in(group) for group in optimizer.param_groups if NAMES_KEY in group]


def _check_decoupled(optimizer: torch.optim.Optimizer) -> None:
    if not decays_by_product(optimizer):
        raise UserError(
            f"apply: found {PREMULTIPLY!r} with {type(optimizer).__name__}, expected torch.optim.AdamW or "
            f"Muon, whose decay is such a product; use apply={GROUPS!r}"
        )
