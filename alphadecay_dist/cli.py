"""The ``alphadecay`` command."""

from __future__ import annotations

import alphadecay_dist.openmp  # noqa: F401  (before torch is loaded)

# isort: split

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from alphadecay_dist import __version__
from alphadecay_dist.commands import spectrum_rows as spectra
from alphadecay_dist.commands.cells import cell_of, read_table, show
from alphadecay_dist.commands.exports import Trained, export_hf, export_universal, trained
from alphadecay_dist.commands.forecast import forecast, job_of, read_machine, this_machine
from alphadecay_dist.commands.pictures import plot_run, plot_spectrum
from alphadecay_dist.commands.weight_files import open_weights
from alphadecay_dist.decay import SHAPES
from alphadecay_dist.decay.settings import CHOOSABLE_FITS, NORMALIZE, Settings
from alphadecay_dist.doctor.examine import Examination, examine
from alphadecay_dist.doctor.findings import Limits
from alphadecay_dist.engines.expected_layouts import Sharding
from alphadecay_dist.engines.rank_variables import settle_rank
from alphadecay_dist.engines.registry import SHARDINGS
from alphadecay_dist.errors import UserError
from alphadecay_dist.spectral import METRICS
from alphadecay_dist.training.arguments import Parser, normalized
from alphadecay_dist.training.config import load_config
from alphadecay_dist.training.data.prepare import prepare
from alphadecay_dist.training.data.prepared import SPLITS, Manifest, verify
from alphadecay_dist.training.options import add_options, options_of
from alphadecay_dist.training.process.environment import limit_threads
from alphadecay_dist.training.process.exit_codes import USER_ERROR, exit_code_of
from alphadecay_dist.training.process.launcher import end_with_launcher
from alphadecay_dist.training.tasks.language.model import read_model_config
from alphadecay_dist.training.units import bytes_of, bytes_per_second

DOCTOR = "doctor"  # the one command that is started on many ranks
PICTURES = (".png", ".pdf", ".svg", ".jpg", ".jpeg")
PUBLISHED = Settings()


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand; a user's mistake is one line and exit code 2."""
    words = normalized(sys.argv[1:] if argv is None else argv)
    if next((word for word in words if not word.startswith("-")), None) == DOCTOR:
        return exit_code_of(lambda: _run_as_rank(words), f"alphadecay {DOCTOR}")
    try:
        return _run(words)
    except UserError as error:
        print(f"alphadecay: error: {error}", file=sys.stderr)
        return USER_ERROR


def _run_as_rank(words: list[str]) -> int:
    """Run what is started on every rank; rank 0 speaks for all."""
    settle_rank()
    end_with_launcher()
    limit_threads()
    return _run(words)


def _run(words: list[str]) -> int:
    """Run what a command line asks for; returns the exit code."""
    parser = Parser(prog="alphadecay", description="Tools around AlphaDecay.")
    parser.add_argument("--version", action="version", version=f"alphadecay {__version__}")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # added by the deepspeed launcher
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_report(commands)
    _add_spectrum(commands)
    _add_plan(commands)
    _add_data(commands)
    _add_doctor(commands)
    _add_export(commands)
    _add_table(commands)
    args, rest = parser.parse_known_args(words)
    if args.command in (_prepare, _doctor):
        args.overrides = args.parser.fields_of(rest)
    else:
        args.parser.refuse(rest)
    return args.command(args) or 0


def _add_report(commands: argparse._SubParsersAction[Parser]) -> None:
    report = commands.add_parser("report", help="draw a run's alphas, decays and loss")
    report.add_argument("run", type=Path, help="output directory of a run")
    report.add_argument("--out", type=Path, help="the picture (default: RUN/report.png)")
    report.set_defaults(command=_report, parser=report)


def _add_spectrum(commands: argparse._SubParsersAction[Parser]) -> None:
    spectrum = commands.add_parser(
        "spectrum",
        help="alpha, norms and decay of every matrix on disk",
        epilog="Without options the rule is that of the run that saved the weights, else the published one.",
    )
    spectrum.add_argument("path", type=Path, help="a safetensors file, a HF directory, a run or a checkpoint")
    spectrum.add_argument(
        "--trust", action="store_true", help="open pickles (.bin, .pt): you know their maker"
    )
    spectrum.add_argument("--metric", choices=list(METRICS), help="what decides (default: alpha)")
    spectrum.add_argument("--fit", choices=CHOOSABLE_FITS, help="estimator of alpha (default: hill)")
    spectrum.add_argument("--xmin_pos", type=float, help="hill begins at N / this (default: 2)")
    spectrum.add_argument("--farms_rows", type=int, help="rows of FARMS' windows (default: whole matrices)")
    spectrum.add_argument("--farms_aspect", type=float, default=1.0, help="rows over columns of a window")
    spectrum.add_argument("--farms_grid", type=int, nargs=2, default=(1, 1), metavar=("ROWS", "COLUMNS"))
    spectrum.add_argument("--assign", choices=list(SHAPES), help="the map (default: linear)")
    spectrum.add_argument("--normalize", choices=NORMALIZE, help="mean keeps the base decay in the mean")
    spectrum.add_argument("--weight_decay", type=float, help="the base decay (default: 0.1)")
    spectrum.add_argument("--min_ratio", type=float, help="smallest decay, in base decays (default: 2/3)")
    spectrum.add_argument("--max_ratio", type=float, help="largest decay, in base decays (default: 5)")
    for form in ("json", "csv", "plot"):
        spectrum.add_argument(
            f"--{form}", type=Path, metavar="FILE", help=f"write {form} to this file as well"
        )
    spectrum.set_defaults(command=_spectrum, parser=spectrum)


def _add_plan(commands: argparse._SubParsersAction[Parser]) -> None:
    plan = commands.add_parser("plan", help="owners, traffic and cost of a refresh, before a job is queued")
    plan.add_argument("--recipe", help="a recipe's name or YAML")
    plan.add_argument("--config", type=Path, help="a HF config.json or the directory that holds it, instead")
    plan.add_argument("--world_size", type=int, required=True)
    plan.add_argument("--sharding", choices=list(SHARDINGS), help="default: the recipe's engine, or zero3")
    plan.add_argument("--replicas", type=int, help="fsdp1, fsdp2: groups that hold the model each (HSDP)")
    plan.add_argument(
        "--tensor_parallel", type=int, default=1, help="fsdp2: ranks that cut each matrix first"
    )
    plan.add_argument("--dtype", choices=["bfloat16", "float32"], help="default: the recipe's, or bfloat16")
    plan.add_argument(
        "--memory_budget",
        metavar="BYTES",
        help="that the gathering may hold at once on a rank: a number, or such as 256MiB",
    )
    plan.add_argument(
        "--interval", type=int, help="updates between refreshes (default: the recipe's, or 500)"
    )
    plan.add_argument(
        "--machine",
        type=Path,
        metavar="JSON",
        help="what a rank of the job can do: gram, tridiagonal (flop/s, required), bandwidth (bytes/s, or a "
        "text such as 25GB/s), update_seconds (default: this machine's speed, measured now)",
    )
    plan.add_argument(
        "--bandwidth", metavar="RATE", help="bytes a second that a rank takes in, or such as 25GB/s, 200Gb/s"
    )
    plan.add_argument("--update_seconds", type=float, help="seconds of one optimizer update")
    plan.add_argument("--json", action="store_true", help="print all of it as JSON")
    plan.set_defaults(command=_plan, parser=plan)


def _add_data(commands: argparse._SubParsersAction[Parser]) -> None:
    data = commands.add_parser("data", help="tokenize a corpus once, for data.prepared")
    actions = data.add_subparsers(required=True, metavar="ACTION")
    prepare = actions.add_parser(
        "prepare",
        help="tokenize a recipe's corpus into shards; where it was broken off, go on",
        epilog="Any field of the recipe is an option: --data.source='texts/*.jsonl'; see train.py --help",
        allow_abbrev=False,
    )
    prepare.add_argument("--recipe", default="demo", help="a name or a YAML file (default: demo)")
    prepare.add_argument("--output", type=Path, required=True, metavar="DIR", help="where to")
    prepare.set_defaults(command=_prepare, parser=prepare)
    verify = actions.add_parser("verify", help="compare a prepared corpus with its checksums")
    verify.add_argument("folder", type=Path, metavar="DIR")
    verify.set_defaults(command=_verify, parser=verify)


def _add_doctor(commands: argparse._SubParsersAction[Parser]) -> None:
    doctor = commands.add_parser(
        DOCTOR,
        help="check every rank, node and link before training",
        epilog="Started on every rank by the launcher of train.py, with its options; 0: well, 2: not.",
        allow_abbrev=False,
    )
    add_options(doctor)
    limits = Limits()
    doctor.add_argument(
        "--timeout",
        type=float,
        default=120.0,
        metavar="S",
        help="to wait for all ranks, and for all checks (120)",
    )
    doctor.add_argument("--json", type=Path, metavar="FILE", help="write all findings to this file")
    doctor.add_argument(
        "--link_fraction",
        type=float,
        default=limits.link_fraction,
        help="a link below this part of the median is bad (%(default)s)",
    )
    for name in ("clock_warn", "clock_bad"):
        doctor.add_argument(
            f"--{name}",
            type=float,
            default=getattr(limits, name),
            metavar="S",
            help="offset from rank 0's clock (%(default)s)",
        )
    doctor.set_defaults(command=_doctor, parser=doctor)


def _add_export(commands: argparse._SubParsersAction[Parser]) -> None:
    export = commands.add_parser("export", help="a run's weights in the formats of others")
    export.add_argument(
        "path", type=Path, help="a run, of which the newest checkpoint is taken, or a checkpoint"
    )
    export.add_argument(
        "--to",
        choices=list(EXPORTS),
        required=True,
        help="hf: weights, config and tokenizer "
        "for transformers; deepspeed: its universal checkpoint, optimizer state included",
    )
    export.add_argument("--output", type=Path, required=True, metavar="DIR", help="where to; new or empty")
    export.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        default="float32",
        help="hf: of the weights (default: float32, the masters)",
    )
    export.add_argument("--model", metavar="JSON", help="hf: the model's config, where the run's own is gone")
    export.set_defaults(command=_export, parser=export)


def _add_table(commands: argparse._SubParsersAction[Parser]) -> None:
    table = commands.add_parser("table", help="a table of runs: how far its cells are, and its job array")
    table.add_argument("table", help="a YAML file such as slurm/table.yaml")
    shown = table.add_mutually_exclusive_group()
    shown.add_argument("--array", action="store_true", help="print the numbers of its cells, as 0-23")
    shown.add_argument("--cell", type=int, metavar="N", help="print a cell's options for train.py, as JSON")
    table.set_defaults(command=_table, parser=table)


def _report(args: argparse.Namespace) -> None:
    picture = args.out or args.run / "report.png"
    _require_place("--out", picture, PICTURES)
    plot_run(args.run, picture)
    print(picture)


def _spectrum(args: argparse.Namespace) -> None:
    _require_place("--json", args.json)
    _require_place("--csv", args.csv)
    _require_place("--plot", args.plot, PICTURES)
    weights = open_weights(args.path, args.trust)
    rows = spectra.spectrum(weights, _settings(args, weights.settings or PUBLISHED))
    print(weights.path)
    print(spectra.table(rows))
    for write, path in (
        (spectra.write_json, args.json),
        (spectra.write_csv, args.csv),
        (plot_spectrum, args.plot),
    ):
        if path is not None:
            write(rows, path)


def _require_place(option: str, path: Path | None, kinds: Sequence[str] = ()) -> None:
    """Refuse a file that cannot be written, before what is written in it is computed."""
    if path is None:
        return
    if not os.access(path.absolute().parent, os.W_OK):
        raise UserError(f"{option} {path}: found no directory to write to; choose another")
    if kinds and path.suffix.lower() not in kinds:
        raise UserError(f"{option} {path}: found {path.suffix!r}, expected one of {', '.join(kinds)}")


def _settings(args: argparse.Namespace, default: Settings) -> Settings:
    """The rule, with what was given on the command line in it."""
    names = ("metric", "fit", "xmin_pos", "assign", "normalize", "weight_decay", "min_ratio", "max_ratio")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    try:
        if args.farms_rows is not None:
            given |= {name: getattr(args, name) for name in ("farms_rows", "farms_aspect")}
            given["farms_grid"] = tuple(args.farms_grid)
        return replace(default, **given)
    except ValueError as error:
        raise UserError(str(error)) from None


def _plan(args: argparse.Namespace) -> None:
    job = job_of(args.recipe, args.config)
    name = args.sharding or job.sharding
    replicas = job.replicas if name == "fsdp2" and args.replicas is None else args.replicas
    sharding = Sharding(name, args.world_size, 1 if replicas is None else replicas, args.tensor_parallel)
    given = _given(args, {"interval": "interval"})
    if args.memory_budget is not None:
        given["budget"] = bytes_of(args.memory_budget, "--memory_budget")
    if args.dtype or SHARDINGS[name].masters:
        given["dtype"] = getattr(torch, args.dtype or "float32")
    machine = read_machine(args.machine) if args.machine else this_machine()
    machine = replace(machine, **_given(args, {"update_seconds": "update_seconds"}))
    if args.update_seconds is not None and not 0 < args.update_seconds < math.inf:
        raise UserError(f"--update_seconds: found {args.update_seconds}, expected a number above 0")
    if args.bandwidth is not None:
        machine = replace(machine, bandwidth=bytes_per_second(args.bandwidth, "--bandwidth"))
    found = forecast(replace(job, **given), sharding, machine)
    print(json.dumps(found.as_dict()) if args.json else found.text())


def _prepare(args: argparse.Namespace) -> None:
    config = load_config(args.recipe, args.overrides)
    vocabulary = read_model_config(config.model.name, config.train.seq_len).vocab_size
    _describe(args.output, prepare(config, vocabulary, args.output))
    print(f"train from it: --data.prepared={args.output}")


def _verify(args: argparse.Namespace) -> None:
    _describe(args.folder, verify(args.folder))


def _doctor(args: argparse.Namespace) -> int:
    limits = Limits(args.link_fraction, args.clock_warn, args.clock_bad)
    asked = Examination(options_of(args, args.overrides), limits, args.timeout, args.json)
    return 0 if examine(asked) else USER_ERROR


def _export(args: argparse.Namespace) -> None:
    found = trained(args.path)
    EXPORTS[args.to](found, args)
    print(f"{args.output}: {found.checkpoint.folder}, update {found.checkpoint.manifest.step}")


EXPORTS: dict[str, Callable[[Trained, argparse.Namespace], None]] = {
    "hf": lambda found, args: export_hf(found, args.output, getattr(torch, args.dtype), args.model),
    "deepspeed": lambda found, args: export_universal(found, args.output),
}


def _table(args: argparse.Namespace) -> None:
    if args.cell is not None:
        print(json.dumps(cell_of(args.table, args.cell).arguments()))
        return
    cells = read_table(args.table)
    print(f"0-{len(cells) - 1}" if args.array else show(cells))


def _describe(folder: Path, manifest: Manifest) -> None:
    for split in SPLITS:
        shards = manifest.shards(split)
        documents, tokens = sum(s.documents for s in shards), sum(s.tokens for s in shards)
        print(f"{folder}: {split}: {documents:,} documents, {tokens:,} tokens, {len(shards)} shards")


def _given(args: argparse.Namespace, names: dict[str, str]) -> dict[str, Any]:
    """The options that were given, by the names that fields have for them."""
    found = {field: getattr(args, option) for option, field in names.items()}
    return {field: value for field, value in found.items() if value is not None}


if __name__ == "__main__":
    sys.exit(main())
