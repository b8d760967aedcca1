"""``alphadecay table``: the runs of a table, published or your own: cost, training, results."""

from __future__ import annotations

import argparse
import itertools
import json
import os
from collections.abc import Iterable
from pathlib import Path

from alphadecay_dist.commands.cells import changed, read_table, show
from alphadecay_dist.commands.paths import PAGES, require_place, require_there
from alphadecay_dist.commands.published import (
    WAYS,
    Choice,
    Table,
    choice_of,
    names_preset,
    published_table,
    seeds_of,
    sizes_of,
)
from alphadecay_dist.commands.published_facts import facts
from alphadecay_dist.commands.results import FORMATS, render
from alphadecay_dist.errors import UserError, shown
from alphadecay_dist.files import write_atomically
from alphadecay_dist.training.arguments import Parser

OF_PRESETS = ("size", "way", "seeds", "methods", "decays", "output", "deepspeed")
A_TABLE = "a YAML file such as slurm/table.yaml, or PRESET:SIZE such as adamw:60m"


def add_arguments(parser: Parser) -> None:
    """The command's arguments."""
    parser.epilog = "--section.key=value changes a field of the recipe in all cells. See docs/tables.md."
    parser.allow_abbrev = False
    parser.set_defaults(left_over=parser.fields_of)
    parser.add_argument("table", nargs="?", help=f"{A_TABLE} (:WAY:SEEDS may follow)")
    parser.add_argument("--preset", help=f"a published table: {', '.join(facts()['presets'])}")
    parser.add_argument("--size", help="its model: 60m, 130m, 350m, 1b or tiny, as the preset has it")
    parser.add_argument(
        "--way", choices=WAYS, help="the published runs as the text or the code has them (the text)"
    )
    parser.add_argument("--seeds", metavar="0,1,2", help="default: those of the published runs")
    parser.add_argument("--methods", metavar="M,M", help="keep only these cells; they keep their numbers")
    parser.add_argument("--decays", metavar="D,D", help="keep only these base decays, as 1e-5,5e-6")
    parser.add_argument("--output", metavar="DIR", help="of the cells (runs/tables/PRESET_SIZE_WAY)")
    parser.add_argument("--deepspeed", metavar="JSON", help="train the cells under DeepSpeed")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--run", action="store_true", help="train the cells in turn on this machine")
    what.add_argument(
        "--dry_run", action="store_true", help="print cells, their data and estimated GPU hours"
    )
    what.add_argument("--array", action="store_true", help="print the numbers of its cells, as 0-23")
    what.add_argument("--cell", type=int, metavar="N", help="print a cell's options for the trainer, as JSON")
    parser.add_argument("--ranks", type=int, metavar="N", help="with --run, of a cell (one a GPU; 1 without)")
    parser.add_argument("--format", choices=FORMATS, help="of the results (markdown)")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the results as an HTML page")


def run(args: argparse.Namespace) -> int:
    """Print or do what was asked for; the exit code is that of the cells that were run."""
    _refuse_idle(args)
    table = _table(args)
    if args.cell is not None:
        if args.cell not in table.cells:
            numbers = ranges(table.cells)
            raise UserError(f"table {table.title}: no cell {args.cell}, expected one of {numbers}")
        print(json.dumps(table.cells[args.cell].arguments()))
    elif args.array:
        print(ranges(table.cells))
    elif args.dry_run:
        from alphadecay_dist.commands.cell_costs import describe

        print(describe(table))
    elif args.run:
        return _run(table, args)
    else:
        _show_results(table, args)
    return 0


def _refuse_idle(args: argparse.Namespace) -> None:
    """Refuse what the given action would pass over."""
    if args.ranks is not None and not args.run:
        raise UserError(f"--ranks {args.ranks}: belongs to --run; give both, or leave it out")
    for option, action in itertools.product(("format", "page"), ("cell", "array", "dry_run")):
        given = getattr(args, option)
        if given is not None and getattr(args, action) not in (None, False):
            raise UserError(
                f"--{option} {given}: is of results, which --{action} prints none of; leave it out"
            )
    require_place("--page", args.page, PAGES)


def ranges(numbers: Iterable[int]) -> str:
    """Numbers as SLURM's --array takes them: ``0-3,7``."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _run(table: Table, args: argparse.Namespace) -> int:
    if args.ranks is not None and args.ranks < 1:
        raise UserError(f"--ranks: found {args.ranks}, expected 1 or more")
    from alphadecay_dist.commands.cell_runs import run_cells
    from alphadecay_dist.engines.zero.config import read_json

    for path in {cell.deepspeed for cell in table.cells.values() if cell.deepspeed is not None}:
        read_json(path)  # a mistake of all cells is said once, before any begins
    ranks = _gpus() if args.ranks is None else args.ranks
    code = run_cells(table.cells, ranks)
    _show_results(table, args)
    return code


def _gpus() -> int:
    """The GPUs of this machine; 1 without."""
    import torch

    return max(1, torch.cuda.device_count())


def _show_results(table: Table, args: argparse.Namespace) -> None:
    """Print them, of a table of one's own a line a cell unless a format is asked for; or write their page."""
    if args.page is not None:
        from alphadecay_dist.commands.page.table import table_page

        write_atomically(args.page, table_page(table))
        print(args.page)
    if args.format is None and table.size is None and args.page is None:
        print(show(list(table.cells.values())))
    elif args.format is not None or args.page is None:
        print(render(table, args.format or FORMATS[0]))


def _table(args: argparse.Namespace) -> Table:
    """What the arguments name."""
    if args.preset is None and args.table is None:
        raise UserError(
            "the following arguments are required: table, or --preset; see alphadecay table --help"
        )
    if args.preset is None and (os.path.isfile(args.table) or not names_preset(args.table)):
        return _own_table(args)
    if args.preset is not None and args.table is not None:
        raise UserError(f"table {args.table}: found --preset {args.preset} as well; give one of them")
    if args.preset is not None and args.size is None and len(sizes_of(args.preset)) > 1:
        raise UserError(f"--size: missing, expected one of {', '.join(sizes_of(args.preset))}")
    given = choice_of(args.table if args.preset is None else f"{args.preset}:{args.size or ''}")
    if args.preset is None and args.size is not None:
        raise UserError(f"--size {args.size}: the table is {args.table} already")
    choice = Choice(
        given.preset,
        given.size,
        args.way or given.way,
        given.seeds if args.seeds is None else seeds_of(args.seeds),
    )
    return published_table(
        choice,
        output=args.output,
        deepspeed=args.deepspeed,
        methods=_words(args.methods),
        decays=_words(args.decays),
        overrides=args.overrides,
    )


def _own_table(args: argparse.Namespace) -> Table:
    """A YAML file's."""
    require_there(Path(args.table), A_TABLE)
    if not os.path.isfile(args.table):
        raise UserError(f"table {shown(args.table)}: found a directory, expected {A_TABLE}")
    for name in OF_PRESETS:
        if getattr(args, name) is not None:
            raise UserError(f"--{name}: belongs to a preset; in {args.table} it is an axis, or in the file")
    cells = changed(read_table(args.table), args.overrides)
    return Table(args.table, dict(enumerate(cells)))


def _words(text: str | None) -> list[str] | None:
    return None if text is None else text.split(",")
