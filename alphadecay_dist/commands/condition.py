"""``alphadecay condition``: what the samples of the spectral condition say of a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from alphadecay_dist.commands.paths import require_there
from alphadecay_dist.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("run", type=Path, help="output directory of a run, or any with a condition.jsonl")


def run(args: argparse.Namespace) -> None:
    """Print the table, the order and the suggestion."""
    require_there(args.run, "the output directory of a run")
    from alphadecay_dist.condition.sample import CONDITION
    from alphadecay_dist.condition.summary import suggestion, summary
    from alphadecay_dist.training.outputs.run_files import read_lines

    path = args.run / CONDITION
    lines = read_lines(path) if path.is_file() else []
    if not lines:
        raise UserError(f"{path}: holds no sample; train with --telemetry.spectral_condition=N")
    try:
        print(f"{summary(lines)}\n\n{suggestion(lines)}")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{path}: a line is not what a run writes: {type(error).__name__} {error}; remove it"
        ) from None
