"""The health check from start to end: roll call, join, measure, judge, report."""

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
from alphadecay_dist.doctor.findings import Device, Finding, Limits, Link, Place, Problem
from alphadecay_dist.doctor.folder import look_at
from alphadecay_dist.doctor.judge import bad_nodes, judge, judge_places, judge_versions
from alphadecay_dist.doctor.judge_links import judge_links
from alphadecay_dist.doctor.links import measured_links
from alphadecay_dist.doctor.pairs import rounds
from alphadecay_dist.doctor.roll_call import call_roll, part
from alphadecay_dist.doctor.source import fault_of_data
from alphadecay_dist.doctor.watch import Watch
from alphadecay_dist.engines.process_group import join, local_device, open_store
from alphadecay_dist.errors import LaunchError, UserError
from alphadecay_dist.sharding.collectives import Collectives
from alphadecay_dist.training.config import to_yaml
from alphadecay_dist.training.options import Options
from alphadecay_dist.training.preflight import ResolvedRun, parameter_count, resolve
from alphadecay_dist.training.process.environment import environment
from alphadecay_dist.training.resume import CHECKPOINTS

DATA_SHARE = 0.7  # part of the time for all checks in which a node may try to read a sample
BYTES_A_WEIGHT = 12  # in a checkpoint: fp32 weight and two moments


@dataclass(frozen=True)
class Examination:
    """The options of one health check.

    Attributes:
        options: the trainer's.
        limits: thresholds of warnings and problems.
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
    places = _met(store, _place(device, checked), asked.timeout)
    assert isinstance(checked, ResolvedRun)  # else _met() has refused its place
    hints = report.problem_lines(judge_versions(places))
    watch = Watch(store, places, environment("RANK", 0), asked.timeout, hints)
    found = watch.step("device", lambda: measures.device_of(device))
    # The watch must report before a collective's own timeout: NCCL then aborts the process.
    limit = timedelta(seconds=2 * asked.timeout + 60)
    made_group = watch.step("joining the process group", lambda: join(device, store, limit))
    ranks = Collectives(dist.group.WORLD, device)
    watch.step("first collective", ranks.barrier)
    links = watch.step("bandwidth", lambda: _links(ranks, places, device, asked.limits))
    fault = watch.step("data", lambda: _fault_of_data(places[ranks.rank], checked, asked.timeout))
    findings = _findings(watch, ranks, found, fault, checked, places)
    problems = judge(findings, asked.limits) + judge_links(links, places, asked.limits)
    watch.step("report", lambda: ranks.from_main(lambda: _report(asked, findings, links, problems)))
    watch.step("the end", ranks.barrier)
    watch.stop()
    ranks.barrier()  # rank 0, which may serve the store, outlives the others' watches
    if made_group:
        dist.destroy_process_group()
    return not bad_nodes(problems)


def needed_bytes(checked: ResolvedRun) -> int:
    """Bytes that the run's checkpoints will need in addition to those in its directory now.

    While a checkpoint is written, all that are kept are still there.
    """
    checkpoint, steps = checked.config.checkpoint, checked.config.train.steps
    saves = max(1, steps // checkpoint.every) if checkpoint.every else 1
    most = (checkpoint.keep or saves) + 1
    there = sum(1 for _ in (checked.folder / CHECKPOINTS).glob("step-*"))
    return max(1, most - there) * BYTES_A_WEIGHT * parameter_count(checked.shapes)


def _checked(options: Options) -> ResolvedRun | str:
    """The trainer's own checks; a mistake is reported to all ranks, because only one node may have it."""
    try:
        return resolve(options)
    except UserError as error:
        return str(error)


def _store(seconds: float) -> dist.TCPStore:
    try:
        return open_store(timedelta(seconds=seconds))
    except (OSError, dist.DistError) as error:
        reason = " ".join(str(error).split())[:200]
        raise LaunchError(
            f"rank {os.environ['RANK']} on {measures.node()} found no rank 0 at {os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']} within {seconds:g} s ({reason}); look at rank 0's log and node"
        ) from None


def _place(device: torch.device, checked: ResolvedRun | str) -> Place:
    """This rank's place, with its versions, or the mistake in its options."""
    if isinstance(checked, str):
        return measures.place_of(device, measures.versions(), checked)
    recipe = hashlib.sha256(to_yaml(checked.config).encode()).hexdigest()[:12]
    return measures.place_of(device, {**measures.versions(), "recipe": recipe}, None)


def _met(store: dist.TCPStore, mine: Place, seconds: float) -> list[Place]:
    """The places of all ranks, after checking that they can be joined."""
    world_size = environment("WORLD_SIZE", 1)
    try:
        places = call_roll(store, mine, world_size, seconds)
        if judge_places(places):
            raise UserError(_refusal(places))
    except UserError:
        part(store, mine.rank, world_size)
        raise
    return places


def _refusal(places: Sequence[Place]) -> str:
    """Why these ranks cannot be joined."""
    mistakes = {place.mistake for place in places}
    if len(mistakes) == 1 and None not in mistakes:
        return str(places[0].mistake)  # the same on all: not the fault of a node
    problems = judge_places(places)
    return "\n".join([*report.problem_lines(problems), report.closing_line(places, problems)])


def _links(ranks: Collectives, places: Sequence[Place], device: torch.device, limits: Limits) -> list[Link]:
    """All links; if one looks slow, all are measured again, because other work may have disturbed it."""
    links = measured_links(ranks, rounds(places), device)
    if judge_links(links, places, limits):
        again = measured_links(ranks, rounds(places), device)
        return [max(both, key=lambda link: link.rate) for both in zip(links, again, strict=True)]
    return links


def _fault_of_data(place: Place, checked: ResolvedRun, timeout: float) -> str | None:
    """Why this node cannot read the run's documents; only its first rank tries."""
    if place.local_rank:
        return None
    config, task, model = checked.config, checked.task, checked.model
    return fault_of_data(config.data, lambda: task.open(config, model), DATA_SHARE * timeout)


def _findings(
    watch: Watch,
    ranks: Collectives,
    device: Device,
    fault: str | None,
    checked: ResolvedRun,
    places: Sequence[Place],
) -> list[Finding]:
    """The findings of all ranks, except links, on every rank."""
    folder = watch.step(
        f"output directory {checked.folder}", lambda: look_at(checked.folder, needed_bytes(checked), ranks)
    )
    offsets = watch.step("clock", lambda: measured_offsets(ranks))
    mine = Finding(
        place=places[ranks.rank],
        device=device,
        processor=measures.processor_of(),
        kernel=measures.kernel(),
        shared_memory=watch.step("/dev/shm", measures.shared_memory),
        folder=folder,
        clock=offsets[ranks.rank],
        data=fault,
    )
    return watch.step("collecting findings", lambda: ranks.gather(mine))


def _report(
    asked: Examination, findings: Sequence[Finding], links: Sequence[Link], problems: Sequence[Problem]
) -> None:
    lines = [report.table(findings, links, problems), *report.problem_lines(problems)]
    closing = report.closing_line([finding.place for finding in findings], problems)
    print("\n".join([*lines, closing]), flush=True)
    if asked.json is not None:
        report.write_json(asked.json, findings, links, problems)
