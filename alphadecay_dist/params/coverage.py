"""How much of a model is tuned, what is left out, and why: one line, or an error if nothing is tuned."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import nn

from alphadecay_dist.errors import UserError
from alphadecay_dist.params.entries import entries
from alphadecay_dist.params.inventory import Weight, all_weights
from alphadecay_dist.params.tuned_rule import SMALL, VECTOR, not_by_default, unfit
from alphadecay_dist.params.wrappers import named_modules
from alphadecay_dist.spectral import MIN_EIGENVALUES

SHOWN = 3  # kinds of weights that a line names
NOT_CHOSEN = "not chosen"  # left out by modules= or a preset, although it would be tuned by default


@dataclass(frozen=True)
class LeftOut:
    """A trained parameter that is not tuned.

    Attributes:
        name: dotted name of its module, or its own.
        shape: shape of the whole parameter.
        numel: number of elements.
        reason: why it is not tuned, in a few words.
    """

    name: str
    shape: tuple[int, ...]
    numel: int
    reason: str


@dataclass(frozen=True)
class Coverage:
    """Which part of a model is tuned.

    Attributes:
        tuned: number of elements of the tuned weights.
        total: number of elements of all trained parameters.
        left_out: the other trained parameters, largest first.
        following: number of elements of what has the decay of a tuned weight without being analysed.
    """

    tuned: int
    total: int
    left_out: list[LeftOut]
    following: int = 0

    def line(self) -> str:
        """The share that is tuned, and the largest kinds that are not."""
        share = 100 * self.tuned / max(self.total, 1)
        largest = self.largest()
        rest = f"; not tuned: {largest}" if largest else ""
        if self.following:
            rest = f", {100 * self.following / self.total:.3g} % follow them{rest}"
        return f"tuned: {share:.4g} % of {self.total:,} trained weights{rest}"

    def too_small(self) -> str:
        """How many weights are too small for a spectrum, to show the effect of a model's sizes."""
        small = sum(own.reason == SMALL for own in self.left_out)
        return f"{small or 'none'} left out for {SMALL}"

    def largest(self) -> str:
        """The largest kinds that are left out; names that differ only in numbers are one kind."""
        kinds: dict[tuple[str, tuple[int, ...], str], int] = {}
        for own in self.left_out:
            kind = (pattern_of(own.name), own.shape, own.reason)
            kinds[kind] = kinds.get(kind, 0) + own.numel
        ordered = sorted(kinds, key=lambda kind: -kinds[kind])
        named = [
            f"{name or 'weight'} {100 * kinds[kind] / self.total:.3g} % ({_size(shape)}; {reason})"
            for kind in ordered[:SHOWN]
            for name, shape, reason in [kind]
        ]
        more = len(ordered) - len(named)
        return ", ".join(named) + (f" and {more} smaller kinds" if more > 1 else ", and one more" * more)


def coverage(model: nn.Module, tuned: Sequence[Weight], followers: Collection[str] = ()) -> Coverage:
    """Which part of a model its tuned weights are. Local; shapes are those of whole parameters.

    Args:
        model: any module; its parameters may be sharded, or without storage.
        tuned: its tuned weights, see :func:`alphadecay_dist.params.inventory.tuned_weights`.
        followers: names of what has the decay of one of them.
    """
    chosen = {weight.name for weight in tuned}
    large = {weight.name for weight in all_weights(model)}
    left_out, total, following = [], 0, 0
    for entry in entries(model, named_modules(model)):
        numel = math.prod(entry.shape)
        total += numel
        if entry.name in chosen:
            continue
        if entry.name in followers:
            following += numel
            continue
        reason = unfit(entry) or not_by_default(entry)
        if reason is None:
            reason = NOT_CHOSEN if entry.name in large else SMALL
        left_out.append(LeftOut(entry.name, entry.shape, numel, reason))
    left_out.sort(key=lambda own: -own.numel)
    untuned = following + sum(own.numel for own in left_out)
    return Coverage(total - untuned, total, left_out, following)


def require_weights(weights: Sequence[Weight], model: nn.Module) -> None:
    """Raise if there is nothing to tune, with what there is instead, and how to choose it.

    Args:
        weights: the tuned weights.
        model: their model.

    Raises:
        UserError: there are no tuned weights.
    """
    if weights:
        return
    found = coverage(model, [])
    if not found.total:
        raise UserError("no module to tune: found no parameter with requires_grad=True; unfreeze some")
    candidates = sorted(all_weights(model), key=lambda weight: -math.prod(weight.shape))
    patterns = dict.fromkeys(pattern_of(weight.name) for weight in candidates if weight.name)
    advice = (
        f"give modules={list(patterns)[:SHOWN]}, or other globs over the model's names"
        if patterns
        else f"train matrices of {MIN_EIGENVALUES} rows and columns or more"
    )
    matrices = Coverage(0, found.total, [own for own in found.left_out if own.reason != VECTOR])
    raise UserError(
        "no module to tune: expected a trained Linear, Conv2d or Conv1D inside a numbered block "
        f"(layers.0.mlp.up_proj), of {MIN_EIGENVALUES} rows and columns or more; found "
        f"{matrices.largest() or 'no matrix'}; {advice}"
    )


def pattern_of(name: str) -> str:
    """A glob for all names that differ from this one only in numbers."""
    return re.sub(r"\d+", "*", name)


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "one number"
