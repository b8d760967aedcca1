"""How decays reach the weights: written into a param group a module, or multiplied into the weights.

``WRITERS`` has the targets by name, see also ``control/rates.py`` and ``control/coordinates.py``.

Both give the same weights. Many groups make an optimizer slow; two do not, but hold one decay for all tuned
weights: so there that decay is 0, and a hook before every optimizer step multiplies each weight by
1 - lr * decay. That is what AdamW does with a group's decay, and equal bit for bit but for its fused CUDA
kernel, which rounds w - lr * decay * w instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from alphadecay_dist.control.coordinates import CoordinateDecay
from alphadecay_dist.control.group_writers import EveryGroupWriter, GroupWriter
from alphadecay_dist.control.hooks import remove_hooks
from alphadecay_dist.control.premultiplier import Premultiplier
from alphadecay_dist.control.rates import RateWriter
from alphadecay_dist.control.refresh import Measurement
from alphadecay_dist.decay.choices import AUTO, GROUPS, PREMULTIPLY
from alphadecay_dist.decay.policies import COORDINATE_DECAY, EVERY_DECAY, MATRIX_DECAY, MATRIX_RATE
from alphadecay_dist.decay.settings import Settings
from alphadecay_dist.engines.host import Host
from alphadecay_dist.errors import UserError
from alphadecay_dist.params.groups import NAMES_KEY, layout_of, names_in
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
    for optimizer in host.optimizers:
        remove_hooks(optimizer)
    writer = WRITERS[settings.row.moves](settings, host, weights)
    if settings.is_cautious or settings.row.moves == COORDINATE_DECAY:
        return CoordinateWriter(writer, CoordinateDecay(settings, host, weights))
    return writer


def every_decay_writer(settings: Settings, host: Host, weights: Sequence[Weight]) -> Writer:
    """The writer of one decay into all groups."""
    return EveryGroupWriter(host, settings.weight_decay)


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
    if any(names_in(group) and NAMES_KEY not in group for group in groups):
        raise UserError(
            f"optimizer: expected all tuned weights in groups that name theirs with apply={PREMULTIPLY!r}"
        )
    return Premultiplier(host, weights, settings.weight_decay)


def choose_apply(settings: Settings, optimizer: str, refusal: str | None) -> tuple[str, str]:
    """Which writer is the fastest that is right, to be known before the groups are built.

    Args:
        settings: of the policy.
        optimizer: its name, ``adamw``, ``muon`` or another.
        refusal: why the engine cannot be premultiplied on; None where it can.

    Returns:
        ``premultiply`` or ``groups``, and why.
    """
    if settings.needs_groups:
        return GROUPS, f"{settings.what_needs_groups} needs a group per matrix"
    if optimizer not in BY_PRODUCT:
        return GROUPS, f"the optimizer is {optimizer}, and premultiplying is AdamW's decoupled decay"
    if refusal is not None:
        return GROUPS, refusal
    name = BY_PRODUCT[optimizer]
    return PREMULTIPLY, f"{name} on this engine allows it, and two param groups update faster than many"


BY_PRODUCT = {"adamw": "AdamW", "muon": "Muon"}  # optimizers of recipes whose decay is a product


class NullWriter:
    """Writes nothing, for policies that only measure."""

    def write(self, numbers: Mapping[str, float], found: Mapping[str, Measurement]) -> None:
        """See :class:`Writer`."""


class CoordinateWriter:
    """Hands decays to the groups and what was measured to what applies them coordinate by coordinate."""

    def __init__(self, writer: Writer, coordinates: CoordinateDecay) -> None:
        self._writer = writer
        self._coordinates = coordinates

    def write(self, numbers: Mapping[str, float], found: Mapping[str, Measurement]) -> None:
        """See :class:`Writer`."""
        self._writer.write(numbers, found)
        self._coordinates.observe(found)


WRITERS: dict[str, Callable[[Settings, Host, Sequence[Weight]], Writer]] = {
    MATRIX_DECAY: matrix_decay_writer,
    EVERY_DECAY: every_decay_writer,
    COORDINATE_DECAY: matrix_decay_writer,
    MATRIX_RATE: RateWriter,
}
