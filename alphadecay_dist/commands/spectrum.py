"""``alphadecay spectrum``: the spectra of a model on disk, and the decays that it would get."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from alphadecay_dist.commands.paths import PICTURES, require_place, require_there
from alphadecay_dist.decay import SHAPES
from alphadecay_dist.decay.choices import CHOOSABLE_FITS, NORMALIZE
from alphadecay_dist.decay.settings import Settings
from alphadecay_dist.errors import UserError
from alphadecay_dist.spectral import METRICS

PUBLISHED = Settings()
RULE = ("metric", "fit", "xmin_pos", "heads", "assign", "normalize", "weight_decay", "min_ratio", "max_ratio")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.epilog = (
        "Without options the rule is that of the run that saved the weights, else the published one."
    )
    parser.add_argument("path", type=Path, help="a safetensors file, a HF directory, a run or a checkpoint")
    parser.add_argument("--trust", action="store_true", help="open pickles (.bin, .pt): you know their maker")
    parser.add_argument("--metric", choices=METRICS, help="what decides (default: alpha)")
    parser.add_argument("--fit", choices=CHOOSABLE_FITS, help="estimator of alpha (default: hill)")
    parser.add_argument("--xmin_pos", type=float, help="hill begins at N / this (default: 2)")
    parser.add_argument("--farms_rows", type=int, help="rows of FARMS' windows (default: whole matrices)")
    parser.add_argument("--farms_aspect", type=float, default=1.0, help="rows over columns of a window")
    parser.add_argument("--farms_grid", type=int, nargs=2, default=(1, 1), metavar=("ROWS", "COLUMNS"))
    parser.add_argument(
        "--heads", action="store_true", default=None, help="q, k, v and o of attention head by head"
    )
    parser.add_argument("--assign", choices=list(SHAPES), help="the map (default: linear)")
    parser.add_argument("--normalize", choices=NORMALIZE, help="mean keeps the base decay in the mean")
    parser.add_argument("--weight_decay", type=float, help="the base decay (default: 0.1)")
    parser.add_argument("--min_ratio", type=float, help="smallest decay, in base decays (default: 2/3)")
    parser.add_argument("--max_ratio", type=float, help="largest decay, in base decays (default: 5)")
    for form in ("json", "csv", "plot"):
        parser.add_argument(f"--{form}", type=Path, metavar="FILE", help=f"write {form} to this file as well")


def run(args: argparse.Namespace) -> None:
    """Print the table of spectra, and write it where that was asked for."""
    require_place("--json", args.json)
    require_place("--csv", args.csv)
    require_place("--plot", args.plot, PICTURES)
    require_there(args.path, "a safetensors file, or the directory of a HF model, a run or a checkpoint")
    from alphadecay_dist.commands import pictures, spectrum_rows
    from alphadecay_dist.commands.weight_files import open_weights

    weights = open_weights(args.path, args.trust)
    rows = spectrum_rows.rows_of(weights, _settings(args, weights.settings or PUBLISHED))
    print(weights.path)
    print(spectrum_rows.as_text(rows))
    for write, path in (
        (spectrum_rows.write_json, args.json),
        (spectrum_rows.write_csv, args.csv),
        (pictures.plot_spectrum, args.plot),
    ):
        if path is not None:
            write(rows, path)


def _settings(args: argparse.Namespace, default: Settings) -> Settings:
    """The rule, with what was given on the command line in it."""
    given: dict[str, Any] = {name: getattr(args, name) for name in RULE if getattr(args, name) is not None}
    try:
        if args.farms_rows is not None:
            given |= {"farms_rows": args.farms_rows, "farms_aspect": args.farms_aspect}
            given["farms_grid"] = tuple(args.farms_grid)
        return replace(default, **given)
    except ValueError as error:
        raise UserError(str(error)) from None
