"""``alphadecay table``: how far the cells of a table of runs are."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from alphadecay_dist.commands.paths import require_there


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("table", help="a YAML file such as slurm/table.yaml")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--array", action="store_true", help="print the numbers of its cells, as 0-23")
    shown.add_argument("--cell", type=int, metavar="N", help="print a cell's options for train.py, as JSON")


def run(args: argparse.Namespace) -> None:
    """Print what was asked for: one cell's options, the numbers of all, or their results."""
    require_there(Path(args.table), "a YAML file such as slurm/table.yaml")
    from alphadecay_dist.commands.cells import cell_of, read_table, show

    if args.cell is not None:
        print(json.dumps(cell_of(args.table, args.cell).arguments()))
        return
    cells = read_table(args.table)
    print(f"0-{len(cells) - 1}" if args.array else show(cells))
