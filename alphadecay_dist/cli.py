"""The ``alphadecay`` command."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from alphadecay_dist import spectrum as spectra
from alphadecay_dist.decay import SHAPES, Bounds
from alphadecay_dist.errors import UserError
from alphadecay_dist.report import plot_run, plot_spectrum
from alphadecay_dist.spectral import FITS, Estimator, Windows


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand; a user's mistake is one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="alphadecay", description="Tools around AlphaDecay.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_report(commands)
    _add_spectrum(commands)
    args = parser.parse_args(argv)
    try:
        args.command(args)
    except UserError as error:
        print(f"alphadecay: error: {error}", file=sys.stderr)
        return 2
    return 0


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    report = commands.add_parser("report", help="draw a run's alphas, decays and loss")
    report.add_argument("run", type=Path, help="output directory of a run")
    report.add_argument("--out", type=Path, help="the picture (default: RUN/report.png)")
    report.set_defaults(command=_report)


def _add_spectrum(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    spectrum = commands.add_parser("spectrum", help="alpha, norms and decay of every matrix in a weight file")
    spectrum.add_argument("path", type=Path, help="a safetensors file or a HF checkpoint directory")
    spectrum.add_argument("--fit", choices=list(FITS), default="hill")
    spectrum.add_argument("--xmin_pos", type=float, default=2.0, help="hill begins at N / this (default: 2)")
    spectrum.add_argument("--farms_rows", type=int, help="rows of FARMS' windows (default: whole matrices)")
    spectrum.add_argument("--farms_aspect", type=float, default=1.0, help="rows over columns of a window")
    spectrum.add_argument("--farms_grid", type=int, nargs=2, default=(1, 1), metavar=("ROWS", "COLUMNS"))
    spectrum.add_argument("--assign", choices=list(SHAPES), default="linear")
    spectrum.add_argument("--weight_decay", type=float, default=0.1, help="the base decay (default: 0.1)")
    spectrum.add_argument("--min_ratio", type=float, default=2 / 3)
    spectrum.add_argument("--max_ratio", type=float, default=5.0)
    for form in ("json", "csv", "plot"):
        spectrum.add_argument(
            f"--{form}", type=Path, metavar="FILE", help=f"write {form} to this file as well"
        )
    spectrum.set_defaults(command=_spectrum)


def _report(args: argparse.Namespace) -> None:
    picture = args.out or args.run / "report.png"
    plot_run(args.run, picture)
    print(picture)


def _spectrum(args: argparse.Namespace) -> None:
    bounds = Bounds(args.weight_decay, args.min_ratio, args.max_ratio)
    try:
        given = args.farms_rows, args.farms_aspect, tuple(args.farms_grid)
        windows = Windows(*given) if args.farms_rows is not None else None
        estimator = Estimator(args.fit, args.xmin_pos, windows)
    except ValueError as error:
        raise UserError(str(error)) from None
    rows = spectra.spectrum(args.path, bounds, shape=args.assign, estimator=estimator)
    print(spectra.table(rows))
    for write, path in (
        (spectra.write_json, args.json),
        (spectra.write_csv, args.csv),
        (plot_spectrum, args.plot),
    ):
        if path is not None:
            write(rows, path)
