"""The ``alphadecay`` command."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from alphadecay_dist.errors import UserError
from alphadecay_dist.report import plot_run


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand; a user's mistake is one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="alphadecay", description="Tools around AlphaDecay runs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    report = commands.add_parser("report", help="draw a run's alphas, decays and loss")
    report.add_argument("run", type=Path, help="output directory of a run")
    report.add_argument("--out", type=Path, help="the picture (default: RUN/report.png)")
    report.set_defaults(command=_report)
    args = parser.parse_args(argv)
    try:
        args.command(args)
    except UserError as error:
        print(f"alphadecay: error: {error}", file=sys.stderr)
        return 2
    return 0


def _report(args: argparse.Namespace) -> None:
    picture = args.out or args.run / "report.png"
    plot_run(args.run, picture)
    print(picture)
