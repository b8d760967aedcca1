"""Model, world size and sharding -> who will own what, and what a refresh will move; without ranks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed.tensor import Replicate, Shard

from alphadecay_dist.engines.fsdp2 import mesh_pieces
from alphadecay_dist.errors import UserError
from alphadecay_dist.sharding.inventory import Weight, require_weights, tuned_weights
from alphadecay_dist.sharding.layout import Flat, Piece, flat_chunks
from alphadecay_dist.sharding.ownership import Plan
from alphadecay_dist.sharding.traffic import Traffic, traffic
from alphadecay_dist.sharding.work import costs_of, plan_for
from alphadecay_dist.spectral import Rates, measured_rates
from alphadecay_dist.training.config import load_config
from alphadecay_dist.training.model import build_on_meta, read_model_config

MOST_RANKS = 65536


@dataclass(frozen=True)
class Machine:
    """What a rank of the job can do.

    Attributes:
        rates: of the Gram product and of tridiagonalisation, of one rank with all its threads.
        bandwidth: bytes a second that a rank takes in; None where it is not known.
        update_seconds: of one optimizer update; None where it is not known.
    """

    rates: Rates
    bandwidth: float | None = None
    update_seconds: float | None = None


@dataclass(frozen=True)
class Forecast:
    """A refresh on a given number of ranks.

    Attributes:
        world_size: number of ranks.
        sharding: a name of ``SHARDINGS``.
        plan: owners and rounds.
        loads: seconds of spectra by rank.
        traffic: bytes by rank.
        seconds: of the whole refresh: the longest queue of spectra and, one after the other, the largest
            intake; None where the bandwidth is not known.
        share: of a training window of ``interval`` updates; None where seconds or update_seconds are not
            known.
    """

    world_size: int
    sharding: str
    plan: Plan
    loads: list[float]
    traffic: Traffic
    seconds: float | None
    share: float | None
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def imbalance(self) -> float:
        """Largest over mean load."""
        return max(self.loads) / (math.fsum(self.loads) / len(self.loads))

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "world_size": self.world_size,
            "sharding": self.sharding,
            "matrices": len(self.plan.owners),
            "rounds": len(self.plan.rounds),
            "imbalance": self.imbalance,
            "seconds": self.seconds,
            "share_of_training": self.share,
            "owners": dict(self.plan.owners),
            "load_seconds": self.loads,
            "bytes_received": self.traffic.received.tolist(),
            "bytes_sent": self.traffic.sent.tolist(),
            "peak_bytes": self.traffic.peak.tolist(),
        }

    def text(self) -> str:
        """A few lines for people."""
        owners = len(set(self.plan.owners.values()))
        known = f"{self.seconds:.3g} s" if self.seconds is not None else "give --bandwidth to estimate"
        share = f", {100 * self.share:.3g} % of training" if self.share is not None else ""
        lines = [
            f"{len(self.plan.owners)} matrices on {owners} of {self.world_size} ranks, {self.sharding}",
            f"rounds: {len(self.plan.rounds)}",
            f"refresh: {known}{share}",
            f"imbalance of the spectra, max / mean: {self.imbalance:.3f}",
            f"{'a rank':<18}{'least':>12}{'mean':>12}{'most':>12}",
            _line("spectra, s", np.array(self.loads), 1),
            _line("received, MiB", self.traffic.received, 2**20),
            _line("sent, MiB", self.traffic.sent, 2**20),
            _line("peak, MiB", self.traffic.peak, 2**20),
        ]
        return "\n".join(lines)


def forecast(
    weights: Sequence[Weight],
    world_size: int,
    sharding: str,
    machine: Machine,
    *,
    itemsize: int,
    replicas: int = 1,
    interval: int = 500,
    budget: int | None = None,
) -> Forecast:
    """Foretell a refresh.

    Args:
        weights: the tuned weights, on any device, meta too.
        world_size: number of ranks.
        sharding: a name of ``SHARDINGS``.
        machine: what a rank can do.
        itemsize: bytes of an element as it travels: 2 for bf16.
        replicas: for ``fsdp2``, how many groups of ranks hold the whole model each (HSDP).
        interval: updates between refreshes.
        budget: see :class:`alphadecay_dist.AlphaDecay`'s ``memory_budget``.

    Raises:
        UserError: sizes that do not go together.
    """
    _check(world_size, sharding, replicas)
    slower = machine.rates.gram / machine.rates.tridiagonal
    blocks, planned = plan_for(weights, world_size, itemsize=itemsize, tridiagonal=slower, budget=budget)
    shapes = {weight.name: weight.shape for weight in weights}
    alike = {shape: SHARDINGS[sharding](shape, world_size, replicas) for shape in set(shapes.values())}
    moved = traffic(
        {name: alike[shape] for name, shape in shapes.items()}, shapes, blocks, planned, world_size, itemsize
    )
    loads = [0.0] * world_size
    for name, cost in costs_of(weights, slower, None).items():
        loads[planned.owners[name]] += cost / machine.rates.gram
    seconds = None
    if machine.bandwidth is not None:
        seconds = max(loads) + float(moved.received.max()) / machine.bandwidth
    known = seconds is not None and machine.update_seconds is not None
    share = seconds / (interval * machine.update_seconds) if known else None  # type: ignore[operator]
    return Forecast(world_size, sharding, planned, loads, moved, seconds, share, shapes)


def weights_of(recipe: str | None, config: Path | None) -> list[Weight]:
    """The tuned weights of a recipe's model or of a HF config, without storage.

    Raises:
        UserError: neither or both are given, or the config cannot be read.
    """
    if (recipe is None) == (config is None):
        raise UserError("plan: expected either --recipe NAME or --config PATH")
    if recipe is not None:
        loaded = load_config(recipe)
        model: nn.Module = build_on_meta(read_model_config(loaded.model.name, loaded.train.seq_len))
    else:
        assert config is not None
        model = _from_hf(config)
    weights = tuned_weights(model)
    require_weights(weights)
    return weights


def this_machine() -> Machine:
    """A rank that has this machine to itself: its GPU, or all threads of its CPU."""
    if torch.cuda.is_available():
        return Machine(measured_rates(torch.device("cuda", torch.cuda.current_device())))
    threads, rates = torch.get_num_threads(), measured_rates(torch.device("cpu"))
    return Machine(Rates(threads * rates.gram, threads * rates.tridiagonal))


def read_machine(path: Path) -> Machine:
    """A machine profile: a JSON with ``gram`` and ``tridiagonal`` in operations a second and rank.

    ``bandwidth`` (bytes a second and rank) and ``update_seconds`` may be in it too.

    Raises:
        UserError: it cannot be read, or a number is missing, unknown or not above 0.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rates = Rates(float(found.pop("gram")), float(found.pop("tridiagonal")))
        machine = Machine(rates, **{name: float(value) for name, value in found.items()})
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(
            f"{path}: no machine profile ({type(error).__name__}: {error}); expected JSON with gram, "
            "tridiagonal and perhaps bandwidth, update_seconds"
        ) from None
    numbers = [rates.gram, rates.tridiagonal, machine.bandwidth or 1.0, machine.update_seconds or 1.0]
    if not all(0 < number < math.inf for number in numbers):
        raise UserError(f"{path}: found {found}, gram {rates.gram}: expected numbers above 0")
    return machine


def _check(world_size: int, sharding: str, replicas: int) -> None:
    if not 1 <= world_size <= MOST_RANKS:
        raise UserError(f"world_size: found {world_size}, expected 1 to {MOST_RANKS}")
    if sharding not in SHARDINGS:
        raise UserError(f"sharding: found {sharding!r}, expected one of {', '.join(SHARDINGS)}")
    if replicas < 1 or world_size % replicas or (replicas > 1 and sharding != "fsdp2"):
        raise UserError(
            f"replicas: found {replicas} with {sharding} on {world_size} ranks, expected a divisor of the "
            "ranks, and fsdp2"
        )


def _whole(shape: tuple[int, ...], world_size: int, replicas: int) -> list[Piece]:
    return [Piece(tuple(range(world_size)), Flat(0, math.prod(shape)))]


def _flat(shape: tuple[int, ...], world_size: int, replicas: int) -> list[Piece]:
    chunks = flat_chunks(math.prod(shape), world_size)
    return [Piece((rank,), part) for rank, part in enumerate(chunks) if part.numel]


def _rows(shape: tuple[int, ...], world_size: int, replicas: int) -> list[Piece]:
    mesh = (replicas, world_size // replicas)
    return mesh_pieces(shape, (Replicate(), Shard(0)), mesh, tuple(range(world_size)))


# What lies where, as the sources in engines/ say it of a running job.
SHARDINGS: dict[str, Callable[[tuple[int, ...], int, int], list[Piece]]] = {
    "ddp": _whole,
    "zero1": _whole,
    "zero2": _whole,
    "zero3": _flat,
    "fsdp2": _rows,
}


def _from_hf(path: Path) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415  (slow to load)

    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--config {path}: transformers cannot build a model of it: {reason}") from None


def _line(what: str, values: np.ndarray, unit: float) -> str:
    numbers = (values.min() / unit, values.mean() / unit, values.max() / unit)
    return f"{what:<18}" + "".join(f"{number:>12.4g}" for number in numbers)
