"""What rank 0 says of a controller, each thing once: what it tunes, and what is allowed but seldom meant."""

from __future__ import annotations

import math
import weakref
from collections.abc import Collection, Iterator, Sequence

import torch
import torch.distributed as dist

from alphadecay_dist.decay.choices import GROUPS
from alphadecay_dist.decay.policies import EVERY_DECAY
from alphadecay_dist.decay.settings import Settings
from alphadecay_dist.engines.host import Host
from alphadecay_dist.errors import warn
from alphadecay_dist.notices import notice
from alphadecay_dist.params.coverage import Coverage
from alphadecay_dist.params.group_decay import decay_of
from alphadecay_dist.params.group_snapshot import ALWAYS
from alphadecay_dist.params.groups import GROUP_KEY, UNTUNED, layout_of, names_in

ADAPTIVE = (
    torch.optim.Adam,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adamax,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.RMSprop,
)  # they divide an L2 decay by the gradients' size, unless it is decoupled


def doubts(host: Host, settings: Settings) -> Iterator[str]:
    """What to say of a controller that is being constructed, one line each.

    Args:
        host: the engine.
        settings: of the policy; one that moves nothing leaves nothing to be doubted.
    """
    if settings.row.moves is None:
        return
    if settings.weight_decay == 0:
        yield (
            "weight_decay: found 0 (transformers' Trainer has it by default), so that every decay is 0; give "
            "param_groups() and AlphaDecay the base decay"
        )
    if settings.row.moves != EVERY_DECAY:  # which writes into all groups, whatever they had
        yield from _other_base(host, settings.weight_decay)
    for optimizer in _with_tuned(host):
        if not settings.choices.coupled:  # its decay is meant to be added to the gradient (L2)
            inner = getattr(optimizer, "optim", optimizer)  # ZeroRedundancyOptimizer's own
            yield from _not_decoupled(inner)
        yield from _rounded_away(low_precision(host), optimizer, settings.weight_decay)


def _with_tuned(host: Host) -> list[torch.optim.Optimizer]:
    """The optimizers that update tuned weights."""
    return [own for own in host.optimizers if any(names_in(group) for group in own.param_groups)]


def _other_base(host: Host, weight_decay: float) -> Iterator[str]:
    """Of groups that all have one decay, which is not the base: after a load they have several."""
    groups = host.param_groups()
    named = [group for group in groups if names_in(group)]
    if layout_of(groups) != GROUPS:  # the tuned group has none there
        named = [group for group in groups if group.get(GROUP_KEY) == UNTUNED and decay_of(group) != 0]
    found = {decay_of(group) for group in named}
    if len(found) == 1 and weight_decay not in found:
        yield (
            f"weight_decay: found {weight_decay} in AlphaDecay and {found.pop()} in the optimizer's groups, "
            "which what is not tuned keeps; give param_groups() and AlphaDecay the same"
        )


def _not_decoupled(optimizer: torch.optim.Optimizer) -> Iterator[str]:
    if _divides_decay(optimizer):
        yield (
            f"optimizer: found {type(optimizer).__name__}, which adds the decay to the gradient (L2) and "
            "divides both by the gradient's size, so that decays do not act by their ratios; use "
            "torch.optim.AdamW"
        )


def _divides_decay(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it adds its decay to the gradient, and divides both by the gradient's size."""
    coupled = not any(group.get("decoupled_weight_decay", False) for group in optimizer.param_groups)
    return isinstance(optimizer, ADAPTIVE) and not isinstance(optimizer, torch.optim.AdamW) and coupled


def _rounded_away(
    low: Collection[torch.dtype], optimizer: torch.optim.Optimizer, weight_decay: float
) -> Iterator[str]:
    """Of half precision weights without fp32 masters; premultiplying them is refused elsewhere.

    Not of adaptive optimizers with an L2 decay, whose steps are of the learning rate's size with it too.
    """
    groups = optimizer.param_groups
    fused = all(group.get("fused") for group in groups)
    own = type(optimizer).__module__.startswith("torch.optim")
    if low and own and not fused and not _divides_decay(optimizer):
        dtypes = sorted(low, key=str)
        limit = torch.finfo(dtypes[0]).eps / 4  # half of the distance from a number to the next smaller one
        rate = max(float(group.get("initial_lr", group["lr"])) for group in groups)
        yield (
            f"optimizer: found {', '.join(map(str, dtypes))} weights without fp32 masters, where a decayed "
            f"weight rounds back to itself for lr * decay below 2^{math.log2(limit):.0f} = {limit:.3g}; with "
            f"lr {rate:.3g} and the base decay {weight_decay:.3g} it is {rate * weight_decay:.3g}, and "
            "decays below the limit do not apply; keep fp32 weights and compute under autocast, or use "
            "torch.optim.AdamW(..., fused=True)"
        )


def low_precision(host: Host) -> set[torch.dtype]:
    """The types of fewer than 32 bits in which the optimizer updates tuned weights."""
    return {dtype for dtype in host.updated_dtypes() if torch.finfo(dtype).bits < 32}


class Advice:
    """Says of one controller what it tunes, and what is doubtful of it, each thing once.

    Args:
        host: the engine.
        settings: of the rule.
        tuned: how much is tuned, in words.
        coverage: what is tuned of the model, and what is not.
    """

    def __init__(self, host: Host, settings: Settings, tuned: str, coverage: Coverage) -> None:
        self._host = host
        self._speaks = host.group is None or dist.get_rank(host.group) == 0
        self._moves = settings.row.moves is not None
        self._said: set[str] = set()
        self._last: tuple[int, bool] | None = None  # the engine's updates at the last step(), and its answer
        self._began = False
        self._first = host.updates()  # before any call of step()
        self._unsaid: str | None = coverage.line()
        self._notice(f"{tuned} are {'tuned' if self._moves else 'watched'}; {coverage.too_small()}")
        for doubt in doubts(host, settings):
            self._say(doubt)

    def at_step(self, boundary: bool) -> None:
        """Look at a call of ``step()``.

        Args:
            boundary: whether it counts an update.
        """
        updates = self._host.updates()
        if self._last is not None and updates == self._last[0] + 1 and not self._last[1]:
            self._say(MISSED)
        if self._first is not None and updates == self._first + 1:
            self._say(LATE)
        self._first = None
        self._last = None if updates is None else (updates, boundary)
        if boundary:
            if self._moves and _takes_turns(self) and self._began:
                self._say(TURNS)
            self._began = True

    def refreshed(self) -> None:
        """Say at the first refresh what is tuned of the model, and what is not."""
        line, self._unsaid = self._unsaid, None
        if line is not None:
            self._notice(line)

    def loaded(self) -> None:
        """A load may have changed the engine's count."""
        self._last = self._first = None

    def restored(self, keys: Sequence[str]) -> None:
        """Tell of settings that a load had overwritten; names and decays are the controller's own.

        Args:
            keys: of the groups that were restored.
        """
        others = [key for key in keys if key not in ALWAYS]
        if others:
            self._say(
                "optimizer: a load gave param groups the settings of others; each has its "
                f"{', '.join(others)} again as when AlphaDecay was constructed; set what a schedule has "
                "changed since"
            )

    def _notice(self, text: str) -> None:
        if self._speaks:
            notice(f"AlphaDecay: {text}")

    def _say(self, text: str) -> None:
        if self._speaks and text not in self._said:
            self._said.add(text)
            warn(text)


_latest: weakref.ref[Advice] | None = None  # of the controller that stepped last in this process


def _takes_turns(own: Advice) -> bool:
    """Whether another controller, which is still there, has stepped since this one did."""
    global _latest  # noqa: PLW0603  (controllers do not know of each other)
    other = _latest() if _latest is not None else None
    _latest = weakref.ref(own)
    return other is not None and other is not own


LATE = (
    "step(): the engine made an update before the first call, so that each refresh comes an update late; "
    "call step() before engine.step(), and where Accelerate steps inside backward, before backward"
)
MISSED = (
    "step(): the engine made an update that the call before it took for a micro-batch without one; where the "
    "engine's accumulation boundary is set inside backward, as Accelerate does, give "
    "step(boundary=accelerator.sync_gradients) before backward"
)
TURNS = (
    "two AlphaDecay objects step in turn in this process: where both tune parts of one model, each maps its "
    "own smallest and largest alpha to the ends; give one AlphaDecay the whole model and one optimizer"
)
