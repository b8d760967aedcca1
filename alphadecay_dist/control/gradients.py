"""Measures of gradients: sums over the shards of every weight, added up by one small all-reduce.

No gradient moves. What is measured is that of the averaged gradients of a whole update, as the optimizer's
step will see them: where an engine clips in its step, the norms here are scaled as it will scale them.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from alphadecay_dist.control.measure import Measure, Measured
from alphadecay_dist.control.refresh import Measurement
from alphadecay_dist.engines.shares import Share
from alphadecay_dist.errors import UserError
from alphadecay_dist.params.inventory import Weight
from alphadecay_dist.sharding.collectives import Collectives
from alphadecay_dist.sharding.planning import parts_of
from alphadecay_dist.spectral.report import NON_FINITE, OK

CHUNK = 2**16  # elements that are made fp64 at once on a CPU
STABILIZER = 1e-8  # added to the norm of all weights, as in AWD's released code


class GradientMeasure(Measure):
    """Sums over gradients, by tuned weight and over all that is trained.

    The parts of a fused weight, and the experts of a stack, have the number of the whole.

    Args:
        measured: what is measured.

    Raises:
        UserError: the engine shows no gradients, or cannot be served.
    """

    _kinds: int  # how many numbers are summed up of a share; the first is that of the gradient's squares

    def __init__(self, measured: Measured) -> None:
        self._host = measured.host
        refusal = self._host.gradients_refusal()
        if refusal is not None:
            raise UserError(f"policy: {measured.settings.policy!r} reads gradients: {refusal}")
        self._host.sources(measured.weights, None)  # refuses ranks that hold copies unknown to the others
        self._weights: Sequence[Weight] = measured.weights
        self._ranks = Collectives(measured.host.group)
        self._places = {weight.name: place for place, weight in enumerate(self._weights)}

    def received_by_rank(self) -> tuple[int, ...]:
        """None of the weights moves."""
        return (0,) * self._ranks.world_size

    @abstractmethod
    def _sums_of(self, share: Share) -> list[Tensor]:
        """What is summed up of one share: fp64 scalars, of each kind one."""

    def _summed(self) -> tuple[list[float], dict[str, list[float]]]:
        """The sums over all shares, and those of each tuned weight. Collective."""
        rows: dict[int, list[list[Tensor]]] = {}
        everything = len(self._places)  # the row of all that is trained
        for share in self._host.shares(self._weights):
            sums = self._sums_of(share)
            rows.setdefault(everything, []).append(sums)
            if share.name in self._places:
                rows.setdefault(self._places[share.name], []).append(sums)
        zeros = [[torch.zeros((), dtype=torch.float64)] * self._kinds]  # where this rank holds nothing
        flat = [
            sum(own[1:], start=own[0])
            for place in range(everything + 1)
            for own in zip(*rows.get(place, zeros), strict=True)
        ]
        found = self._ranks.sum(*_beside_each_other(flat))
        by_row = [found[start : start + self._kinds] for start in range(0, len(found), self._kinds)]
        return by_row[everything], {name: by_row[place] for name, place in self._places.items()}

    def _by_part(self, weight: Weight, measurement: Measurement) -> dict[str, Measurement]:
        return dict.fromkeys(parts_of(weight), measurement)


class GradientNorms(GradientMeasure):
    """The norm of each weight's gradient."""

    _kinds = 1

    def _sums_of(self, share: Share) -> list[Tensor]:
        return [_squares(share.gradient)]

    def measure(self) -> dict[str, Measurement]:
        """See :class:`Measure`."""
        (total,), by_name = self._summed()
        scale = self._host.gradient_scale(math.sqrt(total)) if math.isfinite(total) else math.nan
        found: dict[str, Measurement] = {}
        for weight in self._weights:
            (squares,) = by_name[weight.name]
            found |= self._by_part(weight, _measurement(scale * math.sqrt(squares)))
        return found


class GradientMoments(GradientMeasure):
    """Mean and standard deviation of |g| over each weight, as metrics ``mean`` and ``std``."""

    _kinds = 2

    def _sums_of(self, share: Share) -> list[Tensor]:
        return [
            _squares(share.gradient),
            torch.linalg.vector_norm(share.gradient, 1, dtype=torch.float64),
        ]

    def measure(self) -> dict[str, Measurement]:
        """See :class:`Measure`."""
        (total, _), by_name = self._summed()
        scale = self._host.gradient_scale(math.sqrt(total)) if math.isfinite(total) else math.nan
        found: dict[str, Measurement] = {}
        for weight in self._weights:
            squares, absolutes = by_name[weight.name]
            size = math.prod(weight.shape)
            mean = absolutes / size
            variance = max(0.0, squares / size - mean**2) if math.isfinite(squares) else math.nan
            own = _measurement(scale * mean, {"mean": scale * mean, "std": scale * math.sqrt(variance)})
            found |= self._by_part(weight, own)
        return found


class NormRatio(GradientMeasure):
    """The norm of all gradients over that of all weights that have one, the same for every matrix."""

    _kinds = 2

    def _sums_of(self, share: Share) -> list[Tensor]:
        return [_squares(share.gradient), _squares(share.weight)]

    def measure(self) -> dict[str, Measurement]:
        """See :class:`Measure`."""
        (gradients, weights), _ = self._summed()
        norm = math.sqrt(gradients) if math.isfinite(gradients) else math.nan
        ratio = norm * self._host.gradient_scale(norm) / (math.sqrt(weights) + STABILIZER)
        found: dict[str, Measurement] = {}
        for weight in self._weights:
            found |= self._by_part(weight, _measurement(ratio))
        return found


def _beside_each_other(scalars: Sequence[Tensor]) -> list[float]:
    """Scalars of several devices as numbers: a GPU is waited for once."""
    device = next((scalar.device for scalar in scalars if scalar.device.type != "cpu"), None)
    return torch.stack([scalar.to(device or "cpu") for scalar in scalars]).tolist()


def _squares(tensor: Tensor) -> Tensor:
    """The sum of squares, fp64; nothing of the tensor's size is made."""
    if tensor.is_cuda:
        return torch.linalg.vector_norm(tensor, dtype=torch.float64).square()
    # On CPUs that call is not vectorised: chunks that stay in the cache are many times faster.
    chunks = (chunk.double() for chunk in tensor.reshape(-1).split(CHUNK))
    return torch.stack([torch.dot(chunk, chunk) for chunk in chunks]).sum()


def _measurement(value: float, metrics: dict[str, float] | None = None) -> Measurement:
    """A value that every rank found together; undefined where it is not finite."""
    if not math.isfinite(value):
        return Measurement(None, None, NON_FINITE, 0)
    return Measurement(None, value, OK, 0, metrics or {})
