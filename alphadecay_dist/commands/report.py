"""``alphadecay report``: a picture of a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from alphadecay_dist.commands.paths import PICTURES, require_place, require_there


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("run", type=Path, help="output directory of a run")
    parser.add_argument("--out", type=Path, help="the picture (default: RUN/report.png)")


def run(args: argparse.Namespace) -> None:
    """Draw the run, and print where the picture is."""
    require_there(args.run, "the output directory of a run")
    picture = args.out or args.run / "report.png"
    require_place("--out", picture, PICTURES)
    from alphadecay_dist.commands.pictures import plot_run

    plot_run(args.run, picture)
    print(picture)
