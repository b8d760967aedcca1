"""Model, world size and sharding -> who will own what, and what a refresh will move; without ranks."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from alphadecay_dist.commands.stored_rule import config_in, on_meta
from alphadecay_dist.control.module_types import modules_by_type
from alphadecay_dist.engines.expected_layouts import Sharding, layouts
from alphadecay_dist.engines.registry import SHARDINGS
from alphadecay_dist.errors import UserError, shown
from alphadecay_dist.params.coverage import Coverage, coverage, require_weights
from alphadecay_dist.params.groups import followers_in
from alphadecay_dist.params.inventory import Weight, tuned_weights
from alphadecay_dist.sharding.ownership import TRIDIAGONAL
from alphadecay_dist.sharding.planning import analysed, costs_of, schedule_for
from alphadecay_dist.sharding.schedule import Schedule
from alphadecay_dist.spectral import Rates, Windows, measured_rates
from alphadecay_dist.training.optimizer import groups_of, pick_apply
from alphadecay_dist.training.preflight import with_dtype
from alphadecay_dist.training.recipe import Config
from alphadecay_dist.training.tasks.registry import task_named
from alphadecay_dist.training.units import bytes_per_second

SHOWN_OWNERS, SHOWN_TYPES = 8, 7


@dataclass(frozen=True)
class Machine:
    """What a rank of the job can do.

    Attributes:
        rates: of the Gram product and of tridiagonalisation, of one rank with all its threads; for
            times alone.
        device: type of its device, a key of ``TRIDIAGONAL``, by which a run deals owners.
        bandwidth: bytes a second that a rank takes in; None where it is not known.
        update_seconds: of one optimizer update; None where it is not known.
        origin: where the rates are from, for people.
        at_most: whether the rates and the bandwidth are the most that is possible, and so times the least.
        notes: what else people should know of the numbers, a line each.
    """

    rates: Rates
    device: str
    bandwidth: float | None = None
    update_seconds: float | None = None
    origin: str = "given"
    at_most: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """What is trained, and how it is refreshed.

    Attributes:
        model: on any device, meta too.
        weights: its tuned weights.
        dtype: that weights travel in.
        windows: FARMS' windows, where only these are analysed.
        interval: updates between refreshes.
        budget: see :class:`alphadecay_dist.AlphaDecay`'s ``memory_budget``.
        sharding: a name of ``SHARDINGS``: the engine that its recipe names, where it names one.
        replicas: of the whole model, with ``fsdp2``, by its recipe.
        flops: of one update, over all ranks; None where it is not known.
        followers: names of what has the decay of a tuned weight.

    Raises:
        UserError: a number below 1.
    """

    model: nn.Module
    weights: Sequence[Weight]
    dtype: torch.dtype = torch.bfloat16
    windows: Windows | None = None
    interval: int = 500
    budget: int | None = None
    sharding: str = "zero3"
    replicas: int = 1
    flops: float | None = None
    followers: Collection[str] = ()

    def __post_init__(self) -> None:
        for name, found in (("interval", self.interval), ("memory_budget", self.budget)):
            if found is not None and found < 1:
                raise UserError(f"{name}: found {found}, expected 1 or more")


@dataclass(frozen=True)
class Forecast:
    """A refresh on a given number of ranks.

    Attributes:
        sharding: how the ranks hold the weights.
        machine: what a rank was taken to do.
        interval: updates between refreshes.
        schedule: owners and rounds, and bytes by rank.
        loads: seconds of spectra by rank.
        seconds: of the whole refresh: the longest queue of spectra and, one after the other, the largest
            intake; None where there is one and the bandwidth is not known.
        covered: how much of the model is tuned.
        share: of a training window of ``interval`` updates; None where seconds or update_seconds are not
            known.
        estimated: the seconds and the share where the machine's rates are the most that is possible, with
            the tridiagonalisation as slow as owners are dealt by; else None.
    """

    sharding: Sharding
    machine: Machine
    interval: int
    schedule: Schedule
    loads: list[float]
    covered: Coverage
    seconds: float | None
    share: float | None
    estimated: tuple[float | None, float | None] | None

    @property
    def owners(self) -> Mapping[str, int]:
        """Rank by matrix."""
        return self.schedule.plan.owners

    @property
    def imbalance(self) -> float:
        """Largest over mean load."""
        return max(self.loads) / (math.fsum(self.loads) / len(self.loads))

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "world_size": self.sharding.world_size,
            "sharding": self.sharding.name,
            "matrices": len(self.owners),
            "rounds": len(self.schedule.rounds),
            "imbalance": self.imbalance,
            "seconds": self.seconds,
            "share_of_training": self.share,
            "estimated": self.estimated,
            "owners": dict(self.owners),
            "load_seconds": self.loads,
            "bytes_received": self.schedule.received.tolist(),
            "bytes_sent": self.schedule.sent.tolist(),
            "peak_bytes": self.schedule.peak.tolist(),
            "assumed": {**asdict(self.machine), "interval": self.interval},
        }

    def text(self) -> str:
        """A few lines for people."""
        owners = len(set(self.owners.values()))
        least = "at least " if self.machine.at_most else ""
        lines = [
            f"{len(self.owners)} matrices on {owners} of {self.sharding.world_size} ranks, "
            f"{self.sharding.name}",
            f"rounds: {len(self.schedule.rounds)}",
            f"refresh: {_cost(least, self.seconds, self.share)}",
            *self._estimate(),
            f"imbalance of the spectra, max / mean: {self.imbalance:.3f}",
            self.covered.line(),
            *_assumptions(self.machine, self.interval),
            *_owners(self.owners, self.loads),
            f"{'a rank':<18}{'least':>12}{'mean':>12}{'most':>12}",
            ranks_line("spectra, s", np.array(self.loads), 1),
            ranks_line("received, MiB", self.schedule.received, 2**20),
            ranks_line("sent, MiB", self.schedule.sent, 2**20),
            ranks_line("peak, MiB", self.schedule.peak, 2**20),
        ]
        return "\n".join(lines)

    def _estimate(self) -> list[str]:
        if self.estimated is None or self.estimated[0] is None:
            return []
        slower = f"{TRIDIAGONAL[self.machine.device]:g}"
        return [
            f"refresh, with tridiagonalisation {slower} times slower than products, which is an estimate: "
            f"{_cost('', *self.estimated)}"
        ]


def _cost(least: str, seconds: float | None, share: float | None) -> str:
    if seconds is None:
        return "give --bandwidth to estimate"
    return f"{least}{seconds:.3g} s" + (f", {100 * share:.3g} % of training" if share is not None else "")


def _owners(owners: Mapping[str, int], loads: Sequence[float]) -> list[str]:
    """What the first ranks own, by module type; --json lists all of it."""
    owned: dict[int, list[str]] = {}
    for name, owner in owners.items():
        owned.setdefault(owner, []).append(name)
    lines = ["owners:"]
    for rank in sorted(owned)[:SHOWN_OWNERS]:
        types = {kind: len(names) for kind, names in modules_by_type(dict.fromkeys(owned[rank])).items()}
        shown = ", ".join(f"{count} {kind}" for kind, count in list(types.items())[:SHOWN_TYPES])
        more = ", ..." if len(types) > SHOWN_TYPES else ""
        lines.append(f"  rank {rank}: {len(owned[rank])} matrices, {loads[rank]:.3g} s: {shown}{more}")
    if len(owned) > SHOWN_OWNERS:
        lines.append(f"  and {len(owned) - SHOWN_OWNERS} ranks more; --json names each matrix's owner")
    return lines


def _assumptions(machine: Machine, interval: int) -> list[str]:
    """What the times were computed from."""
    gram, tridiagonal = machine.rates.gram / 1e9, machine.rates.tridiagonal / 1e9
    bandwidth, seconds = machine.bandwidth, machine.update_seconds
    return [
        f"assumed of a rank on {machine.device}: {gram:.3g} Gflop/s in products, {tridiagonal:.3g} Gflop/s "
        f"in tridiagonalisation, {machine.origin} (--machine FILE gives the job's)",
        f"assumed of the network: {bandwidth / 1e9:.3g} GB/s into each rank"
        if bandwidth is not None
        else "assumed of the network: nothing; give --bandwidth, as in 25GB/s",
        f"assumed of training: {seconds:.3g} s an update, a refresh every {interval} updates"
        if seconds is not None
        else f"assumed of training: a refresh every {interval} updates; give --update_seconds for its share",
        *machine.notes,
    ]


def forecast(job: Job, sharding: Sharding, machine: Machine) -> Forecast:
    """Owners, bytes and times of a refresh.

    Args:
        job: what is trained.
        sharding: how its ranks hold it.
        machine: what a rank can do.

    Raises:
        UserError: a weight whose layout is not known.
    """
    # torch's engines keep fp32 weights, whatever type they compute in: a smaller one is a copy.
    cast = sharding.keeps_fp32 and job.dtype != torch.float32
    copied = [weight.name for weight in job.weights] if cast else []
    schedule = schedule_for(
        job.weights,
        layouts(job.model, job.weights, sharding),
        sharding.world_size,
        itemsize=job.dtype.itemsize,
        device=machine.device,
        windows=job.windows,
        budget=job.budget,
        copied=copied,
    )
    loads = _loads(job, sharding, schedule, machine.rates)
    estimated = None
    if machine.at_most:
        gram = machine.rates.gram
        slow = _loads(job, sharding, schedule, Rates(gram, gram / TRIDIAGONAL[machine.device]))
        estimated = _seconds_and_share(slow, job, schedule, machine)
    seconds, share = _seconds_and_share(loads, job, schedule, machine)
    covered = coverage(job.model, job.weights, job.followers)
    return Forecast(sharding, machine, job.interval, schedule, loads, covered, seconds, share, estimated)


def _loads(job: Job, sharding: Sharding, schedule: Schedule, rates: Rates) -> list[float]:
    """Seconds of spectra by rank: dealt by the constant of the device, and timed by these rates."""
    loads = [0.0] * sharding.world_size
    for name, cost in costs_of(job.weights, rates.gram / rates.tridiagonal, job.windows).items():
        loads[schedule.plan.owners[name]] += cost / rates.gram
    return loads


def _seconds_and_share(
    loads: Sequence[float], job: Job, schedule: Schedule, machine: Machine
) -> tuple[float | None, float | None]:
    seconds = max(loads) + _seconds_moving(schedule, machine)
    window = job.interval * machine.update_seconds if machine.update_seconds is not None else math.nan
    known, share = (None if math.isnan(value) else value for value in (seconds, seconds / window))
    return known, share


def _seconds_moving(schedule: Schedule, machine: Machine) -> float:
    """Of the largest intake; NaN where the bandwidth is not known."""
    most = float(schedule.received.max())
    if machine.bandwidth is None:
        return math.nan if most else 0.0
    return most / machine.bandwidth


def job_of_hf(config: Path) -> Job:
    """A HF model with the published settings; without storage.

    Raises:
        UserError: the config cannot be read, or there is nothing to tune.
    """
    model = _from_hf(config)
    weights = tuned_weights(model)
    require_weights(weights, model)
    return Job(model, weights)


def job_of_recipe(recipe: Config) -> Job:
    """What a recipe trains and with which settings; without storage.

    Raises:
        UserError: there is no such model, or nothing to tune.
    """
    loaded = with_dtype(recipe)
    trained = task_named(loaded.model.task).model(loaded)
    model = trained.shapes
    settings, engine = loaded.decay, loaded.engine
    return Job(
        model,
        analysed(tuned_weights(model), model, settings),
        getattr(torch, loaded.train.dtype),
        settings.farms,
        settings.interval,
        loaded.decay.memory_budget,
        engine.name if engine.name in SHARDINGS else Job.sharding,
        engine.replicate,
        trained.flops(),
        followers_in(groups_of(model, pick_apply(loaded, None)[0])),
    )


def this_machine() -> Machine:
    """A rank that has this machine to itself: its GPU, or all threads of its CPU."""
    if torch.cuda.is_available():
        rates = measured_rates(torch.device("cuda", torch.cuda.current_device()))
        return Machine(rates, "cuda", origin=f"measured here, on {torch.cuda.get_device_name()}")
    threads, rates = torch.get_num_threads(), measured_rates(torch.device("cpu"))
    threaded = Rates(threads * rates.gram, threads * rates.tridiagonal)
    origin = f"measured here, on this CPU ({threads} {'thread' if threads == 1 else 'threads'})"
    return Machine(threaded, "cpu", origin=origin)


def read_machine(path: Path) -> Machine:
    """A machine profile: a JSON with ``gram`` and ``tridiagonal`` in operations a second and rank.

    ``device`` (``cuda``, the default, or ``cpu``), ``bandwidth`` (bytes a second and rank, or a text such as
    ``25GB/s``) and ``update_seconds`` may be in it too.

    Raises:
        UserError: it cannot be read, a number is missing or not above 0, or something in it is unknown.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rates = Rates(float(found.pop("gram")), float(found.pop("tridiagonal")))
        bandwidth, seconds = found.pop("bandwidth", None), found.pop("update_seconds", None)
        device = found.pop("device", "cuda")
        if found:
            raise ValueError(f"unknown {', '.join(found)}")
        if device not in TRIDIAGONAL:
            raise ValueError(f"device {shown(device)}, expected {' or '.join(TRIDIAGONAL)}")
        machine = Machine(
            rates,
            device,
            None if bandwidth is None else bytes_per_second(str(bandwidth), "bandwidth"),
            None if seconds is None else float(seconds),
            f"given in {path}",
        )
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(
            f"{path}: no machine profile ({type(error).__name__}: {error}); expected JSON with gram, "
            "tridiagonal and perhaps device, bandwidth, update_seconds"
        ) from None
    numbers = {
        "gram": rates.gram,
        "tridiagonal": rates.tridiagonal,
        "update_seconds": 1.0 if seconds is None else machine.update_seconds,
    }
    for name, number in numbers.items():
        if number is None or not 0 < number < math.inf:
            raise UserError(f"{path}: {name}: found {number}, expected a number above 0")
    return machine


def _from_hf(path: Path) -> nn.Module:
    try:
        return on_meta(config_in(path))
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--config {path}: transformers cannot build a model of it: {reason}") from None


def ranks_line(what: str, values: np.ndarray, unit: float) -> str:
    """Least, mean and most of the ranks, as a row of :meth:`Forecast.text`."""
    numbers = (values.min() / unit, values.mean() / unit, values.max() / unit)
    return f"{what:<18}" + "".join(f"{number:>12.4g}" for number in numbers)
