"""``alphadecay plan``: what a refresh will cost, before a job is queued."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alphadecay_dist.commands.deepspeed_plan import sharding_of
from alphadecay_dist.commands.paths import require_there
from alphadecay_dist.engines.registry import SHARDINGS
from alphadecay_dist.errors import UserError
from alphadecay_dist.training.config import load_config
from alphadecay_dist.training.units import bytes_of, bytes_per_second

if TYPE_CHECKING:
    from alphadecay_dist.commands.forecast import Job, Machine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("--recipe", help="a recipe's name or YAML")
    parser.add_argument(
        "--config", type=Path, help="a HF config.json or the directory that holds it, instead"
    )
    parser.add_argument("--world_size", type=int, required=True)
    parser.add_argument("--sharding", choices=list(SHARDINGS), help="default: the recipe's engine, or zero3")
    parser.add_argument(
        "--deepspeed", metavar="JSON", help="its path, or zero1 ...; its stage is the sharding"
    )
    parser.add_argument("--replicas", type=int, help="fsdp1, fsdp2: groups that hold the model each (HSDP)")
    parser.add_argument(
        "--tensor_parallel", type=int, default=1, help="fsdp2: ranks that cut each matrix first"
    )
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="default: the recipe's, or bfloat16")
    parser.add_argument(
        "--memory_budget",
        metavar="BYTES",
        help="that the gathering may hold at once on a rank: a number, or such as 256MiB",
    )
    parser.add_argument(
        "--interval", type=int, help="updates between refreshes (default: the recipe's, or 500)"
    )
    parser.add_argument(
        "--profile",
        default="measured",
        metavar="GPU",
        help="a100, h100, h200 or mi300x: the most that its data sheet allows (default: measured, this "
        "machine's speed now)",
    )
    parser.add_argument(
        "--link",
        metavar="NAME",
        help="what brings a rank its weights: 100gb, 200gb or 400gb, a network port a rank at line rate; "
        "nvlink or xgmi with a GPU's profile",
    )
    parser.add_argument(
        "--machine",
        type=Path,
        metavar="JSON",
        help="what a rank of the job can do: gram, tridiagonal (flop/s, required), bandwidth (bytes/s, or a "
        "text such as 25GB/s), update_seconds, device (cuda unless it says cpu); instead of --profile",
    )
    parser.add_argument(
        "--bandwidth", metavar="RATE", help="bytes a second that a rank takes in, or such as 25GB/s, 200Gb/s"
    )
    parser.add_argument("--update_seconds", type=float, help="seconds of one optimizer update")
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")


def run(args: argparse.Namespace) -> None:
    """Print the forecast."""
    if (args.recipe is None) == (args.config is None):
        raise UserError("plan: expected either --recipe NAME or --config PATH")
    for one, other in (("machine", "profile"), ("bandwidth", "link")):
        if getattr(args, one) is not None and getattr(args, other) not in (None, "measured"):
            raise UserError(f"--{one}: found with --{other} {getattr(args, other)}, expected one of them")
    if args.config is not None:
        require_there(args.config, "a HF config.json or its directory", "--config")
    if args.machine is not None:
        require_there(args.machine, "the JSON of a machine profile", "--machine")
    recipe = load_config(args.recipe) if args.recipe is not None else None
    refreshed, rank = _given_of_job(args), _given_of_machine(args)
    given = args.sharding
    if args.deepspeed is not None:
        given = sharding_of(args.deepspeed, args.world_size, given)
    import torch

    from alphadecay_dist.commands.forecast import forecast, job_of_hf, job_of_recipe
    from alphadecay_dist.commands.muon_plan import forecast_muon
    from alphadecay_dist.engines.expected_layouts import Sharding

    job = job_of_recipe(recipe) if recipe is not None else job_of_hf(args.config)
    name = given or job.sharding
    replicas = job.replicas if name == "fsdp2" and args.replicas is None else args.replicas
    sharding = Sharding(name, args.world_size, 1 if replicas is None else replicas, args.tensor_parallel)
    machine = replace(_machine(args, job), **rank)
    if args.dtype or SHARDINGS[name].masters:
        refreshed["dtype"] = getattr(torch, args.dtype or "float32")
    job = replace(job, **refreshed)
    found = forecast(job, sharding, machine)
    muon = None if recipe is None else forecast_muon(recipe, job, sharding)
    if recipe is not None and not recipe.decay.reads_spectra and not args.json:
        print(f"policy {recipe.decay.policy}: reads no spectra, so its runs gather none of what follows")
    if args.json:
        print(json.dumps({**found.as_dict(), "muon": None if muon is None else muon.as_dict()}))
        return
    print(found.text() if muon is None else f"{found.text()}\n{muon.text()}")


def _given_of_job(args: argparse.Namespace) -> dict[str, Any]:
    """What was given of how a job is refreshed, by the names of its fields."""
    given: dict[str, Any] = {}
    if args.interval is not None:
        given["interval"] = args.interval
    if args.memory_budget is not None:
        given["budget"] = bytes_of(args.memory_budget, "--memory_budget")
    return given


def _given_of_machine(args: argparse.Namespace) -> dict[str, Any]:
    """What was given of a rank's speed, by the names of a machine's fields."""
    given: dict[str, Any] = {}
    if args.update_seconds is not None:
        if not 0 < args.update_seconds < math.inf:
            raise UserError(f"--update_seconds: found {args.update_seconds}, expected a number above 0")
        given["update_seconds"] = args.update_seconds
    if args.bandwidth is not None:
        given["bandwidth"] = bytes_per_second(args.bandwidth, "--bandwidth")
    return given


def _machine(args: argparse.Namespace, job: Job) -> Machine:
    """A rank's speed: from a file, by a data sheet, or measured here."""
    from alphadecay_dist.commands.forecast import read_machine, this_machine
    from alphadecay_dist.commands.gpus import MEASURED, bandwidth_of, machine_of, with_update

    if args.profile != MEASURED:
        machine = machine_of(args.profile, args.link)
        given = args.update_seconds is not None
        return machine if given else with_update(machine, args.profile, job, args.world_size)
    machine = read_machine(args.machine) if args.machine else this_machine()
    return machine if args.link is None else replace(machine, bandwidth=bandwidth_of(args.link))
