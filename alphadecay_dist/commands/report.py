"""``alphadecay report``: runs as a page, or one run as a picture."""

from __future__ import annotations

import argparse
from pathlib import Path

from alphadecay_dist.commands.paths import PAGES, PICTURES, require_place, require_there
from alphadecay_dist.errors import UserError
from alphadecay_dist.files import write_atomically

PORT = 6070


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.epilog = "See docs/report.md."
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="output directory of a run")
    parser.add_argument(
        "--out",
        type=Path,
        help="the page (default: RUN/report.html; of several runs report.html here); FILE.png, .pdf or .svg "
        "is a picture of one run",
    )
    parser.add_argument(
        "--watch", action="store_true", help="serve the page on this machine, and follow runs that go on"
    )
    parser.add_argument("--port", type=int, metavar="N", help=f"with --watch ({PORT}; 0: any)")


def run(args: argparse.Namespace) -> None:
    """Draw the runs, and print where the page or picture is."""
    for folder in args.runs:
        require_there(folder, "the output directory of a run")
    if args.port is not None and not args.watch:
        raise UserError(f"--port {args.port}: belongs to --watch; give both, or leave it out")
    if args.watch:
        if args.out is not None:
            raise UserError(f"--out {args.out}: --watch writes no file; leave one of them out")
        _watch(args.runs, PORT if args.port is None else args.port)
        return
    out = args.out or (args.runs[0] / "report.html" if len(args.runs) == 1 else Path("report.html"))
    require_place("--out", out, (*PAGES, *PICTURES))
    if out.suffix.lower() in PICTURES:
        _picture(args.runs, out)
    else:
        from alphadecay_dist.commands.page.report import report_page

        write_atomically(out, report_page(args.runs))
    print(out)


def _picture(runs: list[Path], picture: Path) -> None:
    if len(runs) > 1:
        raise UserError(f"--out {picture}: found {len(runs)} runs, expected one for a picture, or a .html")
    from alphadecay_dist.commands.pictures import plot_run

    plot_run(runs[0], picture)


def _watch(runs: list[Path], port: int) -> None:
    """Serve until Ctrl-C."""
    from alphadecay_dist.commands.page.serve import PageServer

    with PageServer(runs, port) as server:
        print(f"{server.url} follows {', '.join(map(str, runs))}; Ctrl-C ends it", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
