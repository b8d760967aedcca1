"""The health check from start to end: meet, join, measure, judge, report."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from alphadecay_dist.doctor import measures, report
from alphadecay_dist.doctor.clock import measured_offsets
from alphadecay_dist.doctor.findings import Finding, Limits, Link, Place, Problem
from alphadecay_dist.doctor.folder import look_at
from alphadecay_dist.doctor.judge import bad_nodes, judge, judge_places
from alphadecay_dist.doctor.judge_links import judge_links
from alphadecay_dist.doctor.links import measured_links
from alphadecay_dist.doctor.pairs import rounds
from alphadecay_dist.doctor.roll_call import call_roll, part, unheard
from alphadecay_dist.doctor.watch import Watch
from alphadecay_dist.engines.process_group import join, local_device, open_store
from alphadecay_dist.errors import UserError
from alphadecay_dist.training.check import Checked, Options, check
from alphadecay_dist.training.config import to_yaml
from alphadecay_dist.training.model import parameter_count
from alphadecay_dist.training.ranks import Ranks, environment
from alphadecay_dist.training.start import CHECKPOINTS

BYTES_A_WEIGHT = 12  # of a checkpoint: fp32 weight and two moments


@dataclass(frozen=True)
class Examination:
    """What is asked of the health check.

    Attributes:
        options: of the trainer.
        limits: from where on something is wrong.
        timeout: seconds to wait for all ranks, and again for all checks.
        json: where to write all findings; None writes none.
    """

    options: Options
    limits: Limits
    timeout: float
    json: Path | None


def examine(asked: Examination) -> bool:
    """Check all ranks and print the result on rank 0.

    Returns:
        Whether training may begin, the same on every rank.

    Raises:
        UserError: ranks are missing, or cannot be joined.
    """
    device = local_device()
    checked = _checked(asked.options)
    store = _store(asked.timeout)
    mistake = checked if isinstance(checked, str) else None
    rank, world_size = environment("RANK", 0), environment("WORLD_SIZE", 1)
    try:
        places = call_roll(store, measures.place_of(device, mistake), world_size, asked.timeout)
        if isinstance(checked, str) or judge_places(places):
            raise UserError(_refusal(places))
    except UserError:
        part(store, rank, world_size)
        raise
    watch = Watch(store, places, rank, asked.timeout)
    # The watch speaks first: NCCL ends a process by an abort.
    made_group = watch.step(
        "joining the process group", lambda: join(device, store, timedelta(seconds=2 * asked.timeout + 60))
    )
    ranks = Ranks(device)
    findings, links = _measured(watch, ranks, device, checked, places)
    problems = judge(findings, asked.limits) + judge_links(links, places, asked.limits)
    watch.step("report", lambda: ranks.from_main(lambda: _report(asked, findings, links, problems)))
    watch.step("the end", ranks.barrier)
    watch.stop()
    ranks.barrier()  # rank 0, who may hold the store, outlives the others' watches
    if made_group:
        dist.destroy_process_group()
    return not bad_nodes(problems)


def needed_bytes(checked: Checked) -> int:
    """What the run's checkpoints will take beside those that are in its directory already.

    While one is written, as many as are kept are still there.
    """
    checkpoint, steps = checked.config.checkpoint, checked.config.train.steps
    saves = max(1, steps // checkpoint.every) if checkpoint.every else 1
    most = (checkpoint.keep or saves) + 1
    there = sum(1 for _ in (checked.folder / CHECKPOINTS).glob("step-*"))
    return max(1, most - there) * BYTES_A_WEIGHT * parameter_count(checked.shapes)


def _checked(options: Options) -> Checked | str:
    """The trainer's own checks; a mistake is told to all ranks, for it may be one node's alone."""
    try:
        return check(options)
    except UserError as error:
        return str(error)


def _store(seconds: float) -> dist.TCPStore:
    if "RANK" not in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        raise UserError(
            f"RANK: not set in one of {os.environ['SLURM_STEP_NUM_TASKS']} tasks of a SLURM step, "
            "expected RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as train.py needs them; "
            "export them in each task, see docs/doctor.md"
        )
    try:
        return open_store(timedelta(seconds=seconds))
    except (OSError, dist.DistError) as error:
        reason = " ".join(str(error).split())[:200]
        raise unheard(
            f"rank {os.environ['RANK']} on {measures.node()} found no rank 0 at {os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']} within {seconds:g} s ({reason}); look at rank 0's log and node"
        ) from None


def _refusal(places: Sequence[Place]) -> str:
    """Why these ranks cannot be joined."""
    mistakes = {place.mistake for place in places}
    if len(mistakes) == 1 and None not in mistakes:
        return str(places[0].mistake)  # the same for all: no node's fault
    problems = judge_places(places)
    return "\n".join([*report.problem_lines(problems), report.closing_line(places, problems)])


def _measured(
    watch: Watch, ranks: Ranks, device: torch.device, checked: Checked, places: Sequence[Place]
) -> tuple[list[Finding], list[Link]]:
    """All measures, of all ranks, on every rank."""
    found = watch.step("device", lambda: measures.device_of(device))
    versions = watch.step("versions", measures.versions)
    recipe = {"recipe": hashlib.sha256(to_yaml(checked.config).encode()).hexdigest()[:12]}
    folder = watch.step(
        f"output directory {checked.folder}", lambda: look_at(checked.folder, needed_bytes(checked), ranks)
    )
    offsets = watch.step("clock", lambda: measured_offsets(ranks))
    links = watch.step("bandwidth", lambda: measured_links(ranks, rounds(places), device))
    mine = Finding(
        place=places[ranks.rank],
        device=found,
        processor=measures.processor_of(),
        versions={**versions, **recipe},
        kernel=measures.kernel(),
        shared_memory=measures.shared_memory(),
        folder=folder,
        clock=offsets[ranks.rank],
    )
    return watch.step("collecting findings", lambda: ranks.gather(mine)), links


def _report(
    asked: Examination, findings: Sequence[Finding], links: Sequence[Link], problems: Sequence[Problem]
) -> None:
    lines = [report.table(findings, links, problems), *report.problem_lines(problems)]
    closing = report.closing_line([finding.place for finding in findings], problems)
    print("\n".join([*lines, closing]), flush=True)
    if asked.json is not None:
        report.write_json(asked.json, findings, links, problems)
