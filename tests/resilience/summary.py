"""What many kills came to: in words, and as a row of the table in docs/reliability.md."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.resilience.draws import kind_of
from tests.resilience.kills import Result

HEADER = "| date | commit | command | kills | resumes | redone, mean and most | mismatches | processes left |"


def summary(results: Sequence[Result]) -> str:
    """Kills by what they were in the midst of and by engine, and what became of the runs."""
    kills = [(result, kill) for result in results for kill in result.kills]
    kinds = Counter(kind_of(kill.fault) for _, kill in kills)
    engines = Counter(result.setup.engine for result, _ in kills)
    ranks = Counter(result.setup.ranks for result, _ in kills)
    others = Counter(
        kill.others for result, kill in kills if result.setup.ranks > 1 and not kill.fault.everyone
    )
    lines = [
        f"{len(kills)} kills in {len(results)} runs, by what they were in the midst of: {_told(kinds)}",
        f"by engine: {_told(engines)}; by number of ranks: {_told(ranks)}",
        f"of one rank alone: {others.total()}; the others ended: {_told(others)}",
        f"faults that were drawn and not reached, and so are no kills: {sum(len(r.missed) for r in results)}",
        f"{resumes(results)} resumes; updates redone a kill, mean and most: {redone(results)}",
        f"runs that are not as promised: {len(failed(results))}; processes left: {left(results)}",
    ]
    for result in failed(results):
        lines.append(f"run {result.number}, kept in {result.folder}: {'; '.join(result.problems)}")
    return "\n".join(lines)


def append_row(path: Path, date: str, commit: str, command: str, results: Sequence[Result]) -> None:
    """Add a row to the table of kills."""
    cells = [
        date,
        commit,
        f"`{command}`",
        str(sum(len(result.kills) for result in results)),
        str(resumes(results)),
        redone(results),
        str(len(failed(results))),
        str(left(results)),
    ]
    lines = path.read_text(encoding="utf-8").splitlines()
    end = lines.index(HEADER)
    while end < len(lines) and lines[end].startswith("|"):
        end += 1
    lines.insert(end, f"| {' | '.join(cells)} |")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def failed(results: Sequence[Result]) -> list[Result]:
    """Runs with problems."""
    return [result for result in results if result.problems]


def resumes(results: Sequence[Result]) -> int:
    """Starts of runs that were killed before."""
    return sum(result.resumes for result in results)


def left(results: Sequence[Result]) -> int:
    """Processes that outlived their start."""
    return sum(result.left for result in results)


def redone(results: Sequence[Result]) -> str:
    """Mean and maximum of the updates redone a kill."""
    numbers = [kill.redone for result in results for kill in result.kills]
    return f"{statistics.fmean(numbers):.1f}, {max(numbers)}" if numbers else "none"


def _told(counter: Counter) -> str:
    return ", ".join(f"{name} {count}" for name, count in counter.most_common())
