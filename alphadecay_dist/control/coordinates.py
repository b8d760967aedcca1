"""Decays that differ from coordinate to coordinate, which no param group can say.

During the optimizer's step the groups' decays are 0. Before it the decay of each coordinate is multiplied
into the weights, as AdamW does, or added to the gradient, as an L2 optimizer does. A cautious decay depends
on the step itself: its weights are copied before, and it is taken off after.

    before: w0 = copy of w (cautious alone);  theta from g and the weight's mean and std of |g|, else 1
            w <- w (1 - lr * decay * theta)          not cautious, decoupled
            g <- g + decay * theta * w               not cautious, L2
    step
    after:  w <- w - lr * decay * theta * w0         cautious, where (w0 - w) * w0 >= 0
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from alphadecay_dist.control.advice import low_precision
from alphadecay_dist.control.decoupled import is_decoupled
from alphadecay_dist.control.hooks import StepHooks
from alphadecay_dist.control.refresh import Measurement
from alphadecay_dist.decay.policies import COORDINATE_DECAY
from alphadecay_dist.decay.settings import Settings
from alphadecay_dist.engines.host import Host
from alphadecay_dist.engines.native.shares import local_gradient
from alphadecay_dist.errors import UserError
from alphadecay_dist.params.groups import GROUP_KEY
from alphadecay_dist.params.inventory import Weight
from alphadecay_dist.sharding.planning import parts_of

STABILIZER = 1e-8  # added to the standard deviation of |g|


@dataclass
class _Held:
    """A tensor between the hooks: what it was before the step, and what decays it after."""

    weight: Tensor
    before: Tensor
    strength: float | Tensor


class CoordinateDecay:
    """Applies the groups' decays coordinate by coordinate: by their gradients, or only where they agree.

    The groups go on to hold the decays, so that any writer may change them, and checkpoints have them.

    Args:
        settings: of the policy.
        host: the engine that holds the groups.
        weights: all that the groups name.

    Raises:
        UserError: weights of half precision without fp32 masters, where such a product rounds away; a
            cautious decay of an optimizer whose decay is not decoupled; see :class:`StepHooks`.
    """

    def __init__(self, settings: Settings, host: Host, weights: Sequence[Weight]) -> None:
        purpose = "cautious decay" if settings.is_cautious else f"policy {settings.policy!r}"
        low = low_precision(host)
        if low:
            raise UserError(
                f"optimizer: found {', '.join(sorted(map(str, low)))} weights without fp32 masters with "
                f"{purpose}, whose products round back to the same weights; keep fp32 weights and compute "
                "under autocast"
            )
        for optimizer in host.optimizers:
            if settings.is_cautious and not is_decoupled(optimizer):
                raise UserError(
                    f"optimizer: found {type(optimizer).__name__} with cautious decay, which adds the decay "
                    "to the gradient (L2), expected a decoupled one such as torch.optim.AdamW"
                )
        self._cautious = settings.is_cautious
        self._by_gradient = settings.row.moves == COORDINATE_DECAY
        self._part_of = {weight.name: parts_of(weight)[0] for weight in weights}
        self._found: Mapping[str, Measurement] = {}
        self._decays: list[tuple[dict[str, Any], Any]] = []
        self._held: list[_Held] = []
        for optimizer in host.optimizers:
            before = functools.partial(self._before_step, decoupled=is_decoupled(optimizer))
            StepHooks(optimizer, purpose).add(before, self._after_step)

    def observe(self, found: Mapping[str, Measurement]) -> None:
        """Take up the mean and the standard deviation of |g| of each weight."""
        self._found = found or self._found

    @torch.no_grad()
    def _before_step(self, optimizer: torch.optim.Optimizer, decoupled: bool) -> None:
        self._restore()  # after a step that raised
        for group in optimizer.param_groups:
            moments = self._moments_of(group)
            if self._by_gradient and moments is None and not self._cautious:
                continue  # what is not tuned decays as ever
            for weight, gradient in _updated(group):
                theta = 1.0 if moments is None else _theta(gradient, *moments)
                decay = group["weight_decay"] * theta
                if decoupled:
                    self._decay_by(weight, group["lr"] * decay * _made(optimizer, weight.device))
                else:
                    gradient.add_(decay * weight)
            decay = group["weight_decay"]
            self._decays.append((group, decay))
            group["weight_decay"] = torch.zeros_like(decay) if isinstance(decay, Tensor) else 0.0

    def _decay_by(self, weight: Tensor, strength: float | Tensor) -> None:
        """Now, or after the step where that has to agree."""
        if self._cautious:
            self._held.append(_Held(weight, weight.clone(), strength))
        else:
            weight.mul_(1 - strength)

    @torch.no_grad()
    def _after_step(self, optimizer: torch.optim.Optimizer) -> None:
        for held in self._held:
            agrees = (held.before - held.weight) * held.before >= 0
            held.weight.sub_(held.strength * held.before * agrees)
        self._restore()

    def _restore(self) -> None:
        """Give the groups their decays again, and let go of what was kept."""
        for group, decay in self._decays:
            group["weight_decay"] = decay
        self._held.clear()
        self._decays.clear()

    def _moments_of(self, group: Mapping[str, Any]) -> tuple[float, float] | None:
        """Mean and standard deviation of |g| over the group's weight; None where it has none."""
        part = self._part_of.get(group.get(GROUP_KEY, ""), "")
        metrics = self._found[part].metrics if self._by_gradient and part in self._found else {}
        mean, std = metrics.get("mean"), metrics.get("std")
        return None if mean is None or std is None else (mean, std)


def _theta(gradient: Tensor, mean: float, std: float) -> Tensor:
    """2 / (1 + exp(-4 z)) of each |g|'s z-score within its weight (arXiv 1907.08931), in (0, 2)."""
    return 1 + torch.tanh(2 * (gradient.abs() - mean) / (std + STABILIZER))


def _updated(group: Mapping[str, Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """The group's tensors that the step will update on this rank, with their gradients."""
    for parameter in group["params"]:
        gradient = parameter.grad
        if gradient is None:
            continue
        if isinstance(parameter, DTensor):
            yield parameter.to_local(), local_gradient(parameter)
        else:
            yield parameter, gradient


def _made(optimizer: torch.optim.Optimizer, device: torch.device) -> float | Tensor:
    """1, or 0 where a gradient scaler lets a fused step change nothing."""
    skipped = getattr(optimizer, "found_inf", None)
    return 1.0 if skipped is None else (skipped.to(device) == 0).to(torch.float32)
