"""``alphadecay condition``: what the samples of the spectral condition say of a run."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from alphadecay_dist.commands.paths import require_there
from alphadecay_dist.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("run", type=Path, help="output directory of a run, or any with a condition.jsonl")
    parser.add_argument(
        "--at_least",
        type=float,
        default=1.0,
        metavar="RATIO",
        help="nr / st of a matrix that is suggested (1)",
    )


def run(args: argparse.Namespace) -> None:
    """Print the table, the order and the suggestion."""
    if not 0 < args.at_least < math.inf:
        raise UserError(f"--at_least: found {args.at_least:g}, expected a number above 0")
    require_there(args.run, "the output directory of a run")
    from alphadecay_dist.condition.sample import CONDITION
    from alphadecay_dist.condition.summary import suggestion, summary
    from alphadecay_dist.training.outputs.run_files import read_lines

    path = args.run / CONDITION
    lines = read_lines(path) if path.is_file() else []
    if not lines:
        raise UserError(f"{path}: holds no sample; train with --telemetry.spectral_condition=N")
    try:
        print(f"{summary(lines)}\n\n{suggestion(lines, args.at_least)}")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{path}: a line is not what a run writes: {type(error).__name__} {error}; remove it"
        ) from None
