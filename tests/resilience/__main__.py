"""The long count of kills: python -m tests.resilience --kills 200 --seed 1 --append."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.resilience.kills import Campaign, Result
from tests.resilience.summary import append_row, failed, summary
from tests.training.runs import ROOT


def main(argv: list[str]) -> int:
    """Kill, print what comes of it; 1 where a run was not as promised, or kills are missing."""
    parser = argparse.ArgumentParser(prog="python -m tests.resilience", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="for the runs; those that are not as promised stay there")
    parser.add_argument("--append", action="store_true", help="add the result to docs/reliability.md")
    options = parser.parse_args(argv)
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="kills-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    commit, results = _commit(), list[Result]()
    for result in Campaign(options.seed, folder).count(options.kills):
        results.append(result)
        done = sum(len(each.kills) for each in results)
        print(f"{done}/{options.kills} kills; run {result.number}: {_line(result)}", flush=True)
    print(summary(results))
    if options.append:
        command = f"python -m tests.resilience --kills {options.kills} --seed {options.seed}"
        append_row(ROOT / "docs" / "reliability.md", time.strftime("%F"), commit, command, results)
    killed = sum(len(result.kills) for result in results)
    return int(bool(failed(results)) or killed != options.kills)


def _line(result: Result) -> str:
    setup = result.setup
    kills = "; ".join(f"{kill.fault} ({kill.redone} redone)" for kill in result.kills)
    end = "PROBLEM: " + "; ".join(result.problems) if result.problems else "as the unbroken run"
    beside = ", saved beside training" if setup.background else ""
    return f"{setup.engine}, {setup.ranks} ranks, {setup.dtype}, lag {setup.lag}{beside}: {kills}: {end}"


def _commit() -> str:
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
