"""``alphadecay doctor``: the health check of all ranks before training."""

from __future__ import annotations

import argparse
from pathlib import Path

from alphadecay_dist.doctor.findings import Limits
from alphadecay_dist.training.arguments import Parser
from alphadecay_dist.training.options import add_options, options_of
from alphadecay_dist.training.process.exit_codes import USER_ERROR


def add_arguments(parser: Parser) -> None:
    """The trainer's options, and those of the check."""
    parser.epilog = "Started on every rank by the trainer's launcher, with its options; 0: well, 2: not."
    parser.allow_abbrev = False
    parser.set_defaults(left_over=parser.fields_of)
    add_options(parser)
    limits = Limits()
    parser.add_argument(
        "--timeout",
        type=float,
        default=120.0,
        metavar="S",
        help="to wait for all ranks, and for all checks (120)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all findings to this file")
    parser.add_argument(
        "--link_fraction",
        type=float,
        default=limits.link_fraction,
        help="a link below this part of the median is bad (%(default)s)",
    )
    for name in ("clock_warn", "clock_bad"):
        parser.add_argument(
            f"--{name}",
            type=float,
            default=getattr(limits, name),
            metavar="S",
            help="offset from rank 0's clock (%(default)s)",
        )


def run(args: argparse.Namespace) -> int:
    """Check all ranks; the exit code says whether training may begin."""
    from alphadecay_dist.doctor.examine import Examination, examine
    from alphadecay_dist.training.process.environment import limit_threads

    limit_threads()
    limits = Limits(args.link_fraction, args.clock_warn, args.clock_bad)
    asked = Examination(options_of(args, args.overrides), limits, args.timeout, args.json)
    return 0 if examine(asked) else USER_ERROR
