"""Machines that are not at hand, by what their makers' data sheets allow: ``recipes/tables/gpus.yaml``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

import yaml

from alphadecay_dist.commands.forecast import Job, Machine
from alphadecay_dist.errors import UserError, shown
from alphadecay_dist.spectral import Rates
from alphadecay_dist.training.utilization import Utilization, peak_flops

MEASURED = "measured"
FLOPS_PER_BYTE = 2.0  # the most that a tridiagonalisation in fp32 makes; gpus.yaml says why


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU.

    Attributes:
        device_name: as its driver gives it.
        fp32: FLOP/s of products without TF32.
        memory: bytes a second between it and its memory.
        links: bytes a second into it from others of its node, by the link's name.
        source: the data sheet, with its numbers.
    """

    device_name: str
    fp32: float
    memory: float
    links: dict[str, float]
    source: str


def machine_of(profile: str, link: str | None) -> Machine:
    """The most that a rank with such a GPU can do.

    Args:
        profile: a name of gpus.yaml.
        link: a name there, of what brings a rank its weights; None where it is not known.

    Raises:
        UserError: a name that is not there, or a link that this GPU has not.
    """
    gpu, ports = _gpu(profile), table()["ports"]
    rates = gpu.links | ports
    if link is not None and link not in rates:
        raise UserError(f"--link: found {shown(link)}, expected one of {', '.join(rates)} with {profile}")
    return Machine(
        Rates(gpu.fp32, FLOPS_PER_BYTE * gpu.memory),
        "cuda",
        None if link is None else rates[link],
        origin=f"the most that the data sheet of {profile} allows",
        at_most=True,
        notes=(
            f"source: {gpu.source}",
            f"products: fp32 without TF32; tridiagonalisation: {FLOPS_PER_BYTE:g} flops a byte of memory "
            "traffic, as it reads half of the trailing matrix for each column; solvers also wait on "
            "themselves, most on small matrices: measure it with --profile measured on such a GPU",
        ),
    )


def bandwidth_of(link: str) -> float:
    """Of a link that needs no GPU's data sheet.

    Raises:
        UserError: another name.
    """
    ports: dict[str, float] = table()["ports"]
    if link not in ports:
        raise UserError(
            f"--link: found {shown(link)} without a GPU's profile, expected one of {', '.join(ports)}; or "
            "give --profile"
        )
    return ports[link]


def with_update(machine: Machine, profile: str, job: Job, world_size: int) -> Machine:
    """The same with the time of an update, at an assumed utilisation; as it was where that is not known."""
    share, dtype = table()["utilization"], str(job.dtype).removeprefix("torch.")
    peak = peak_flops(_gpu(profile).device_name, dtype)
    if job.flops is None or peak is None:
        return machine
    seconds = Utilization(job.flops, peak * world_size).seconds_at(share)
    note = f"an update: {job.flops:.3g} flops at {share:.0%} of {peak / 1e12:.4g} Tflop/s a rank in {dtype}"
    return replace(machine, update_seconds=seconds, notes=(*machine.notes, note))


def _gpu(profile: str) -> Gpu:
    gpus = table()["gpus"]
    if profile not in gpus:
        raise UserError(f"--profile: found {shown(profile)}, expected {MEASURED} or {', '.join(gpus)}")
    return Gpu(**gpus[profile])


def table() -> dict[str, Any]:
    """What gpus.yaml holds."""
    file = resources.files("alphadecay_dist.recipes") / "tables" / "gpus.yaml"
    found: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return found
