"""Findings and problems as a table, and as JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from alphadecay_dist.doctor.findings import BETWEEN, WITHIN, Finding, Link, Place, Problem
from alphadecay_dist.doctor.judge import bad_nodes
from alphadecay_dist.doctor.roll_call import spans
from alphadecay_dist.errors import UserError

HEADER = (
    "node", "ranks", "device", "memory free", "cores", "threads", "clock", "disk free", "/dev/shm",
    "within", "between", "state",
)  # fmt: skip


def table(findings: Sequence[Finding], links: Sequence[Link], problems: Sequence[Problem]) -> str:
    """Aligned text, with one line for all ranks of a node that are alike.

    It shows the minimum of memory, disk and /dev/shm, the largest clock offset, and the median of the links:
    half of the links of a healthy node may lead to bad ones.
    """
    alike: dict[tuple[object, ...], list[Finding]] = {}
    for finding in findings:
        cores, threads = len(finding.processor.cores), finding.processor.threads
        alike.setdefault((finding.place.node, finding.device.name, cores, threads), []).append(finding)
    rows = [HEADER, *(_row(own, links, problems) for own in alike.values())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def problem_lines(problems: Sequence[Problem]) -> list[str]:
    """One line per problem, the bad ones first."""
    return [
        f"{'BAD ' if problem.bad else 'warn'}  {', '.join(problem.nodes)} "
        f"({'rank' if len(problem.ranks) == 1 else 'ranks'} {spans(problem.ranks)}): {problem.what}: "
        f"found {problem.found}, expected {problem.expected}; {problem.advice}"
        for problem in sorted(problems, key=lambda problem: not problem.bad)
    ]


def closing_line(places: Sequence[Place], problems: Sequence[Problem]) -> str:
    """Whether training may begin."""
    nodes, bad = {place.node for place in places}, bad_nodes(problems)
    if bad:
        return f"{len(bad)} of {len(nodes)} nodes bad: {', '.join(bad)}"
    warned = f", with {len(problems)} {_plural('warning', len(problems))}" if problems else ""
    where = f"{len(nodes)} {_plural('node', len(nodes))}"
    if len(places) == 1:
        return f"1 rank on {where} is well{warned}"
    return f"all {len(places)} ranks on {where} are well{warned}"


def write_json(
    path: Path, findings: Sequence[Finding], links: Sequence[Link], problems: Sequence[Problem]
) -> None:
    """Write everything.

    Raises:
        UserError: the file cannot be written.
    """
    everything = {
        "well": not bad_nodes(problems),
        "bad_nodes": bad_nodes(problems),
        "problems": [asdict(problem) for problem in problems],
        "ranks": [asdict(finding) for finding in findings],
        "links": [asdict(link) for link in links],
    }
    try:
        path.write_text(json.dumps(everything, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--json {path}: cannot be written: {error.strerror}; choose another file") from None


def _row(own: Sequence[Finding], links: Sequence[Link], problems: Sequence[Problem]) -> tuple[str, ...]:
    first, ranks = own[0], [finding.place.rank for finding in own]
    theirs = [problem for problem in problems if set(ranks) & set(problem.ranks)]
    state = "BAD" if any(p.bad for p in theirs) else "warned" if theirs else "well"
    count = f"{len(own)} x " if first.device.identity else ""
    clock = max((finding.clock[0] for finding in own), key=abs)
    disk = [finding.folder.free for finding in own if finding.folder.free is not None]
    shared = [finding.shared_memory or 0 for finding in own]
    return (
        first.place.node,
        spans(ranks),
        f"{count}{first.device.name}",
        _bytes(min(finding.device.free for finding in own)),
        str(len(first.processor.cores)),
        str(first.processor.threads),
        f"{clock:+.3f} s",
        _bytes(min(disk)) if disk else "?",
        _bytes(min(shared)),
        _usual(links, WITHIN, ranks),
        _usual(links, BETWEEN, ranks),
        state,
    )


def _usual(links: Sequence[Link], kind: str, ranks: Sequence[int]) -> str:
    rates = [link.rate for link in links if link.kind == kind and set(link.ranks) & set(ranks)]
    return f"{statistics.median(rates) / 1e9:.3g} GB/s" if rates else "-"


def _bytes(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"
