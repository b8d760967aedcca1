"""The trainer's command line, for whatever is started with it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields

from alphadecay_dist.errors import UserError, shown
from alphadecay_dist.training.changes import KINDS
from alphadecay_dist.training.check import Options


def add_options(parser: argparse.ArgumentParser) -> None:
    """The trainer's options; what the parser then leaves over are fields of the recipe."""
    parser.add_argument("--recipe", default="demo", help="a name or a YAML file (default: demo)")
    parser.add_argument("--deepspeed", metavar="JSON", help="train under DeepSpeed with this config")
    parser.add_argument("--engine", choices=("fsdp2", "ddp"), help="without --deepspeed (default: fsdp2)")
    parser.add_argument("--output_dir", help="default: runs/<recipe name>")
    parser.add_argument("--resume", default="auto", help="auto (default), none, or a checkpoint directory")
    parser.add_argument("--overwrite", action="store_true", help="with --resume none: remove the old run")
    parser.add_argument(
        "--accept_changes",
        type=_kinds,
        default=frozenset(),
        metavar="KINDS",
        help=f"go on with files that have changed since the run was begun: {','.join(KINDS)}",
    )
    parser.add_argument("--init_from", metavar="DIR", help="start from a HF checkpoint's weights")
    parser.add_argument(
        "--dry_run", action="store_true", help="print config, plan and first batch, then stop"
    )
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # added by the deepspeed launcher


def _kinds(text: str) -> frozenset[str]:
    """The kinds of changes in a list with commas."""
    kinds = frozenset(text.split(","))
    if not kinds <= set(KINDS):
        raise argparse.ArgumentTypeError(f"found {shown(text)}, expected some of {','.join(KINDS)}")
    return kinds


def options_of(args: argparse.Namespace, rest: Sequence[str]) -> Options:
    """The options that were given.

    Args:
        args: what a parser with :func:`add_options` understood.
        rest: what it left over, ``--section.key=value`` each.

    Raises:
        UserError: something else was left over.
    """
    for option in rest:
        if not option.startswith("--") or "." not in option.partition("=")[0]:
            raise UserError(
                f"{option!r}: unknown option; fields of a recipe are --section.key=value, see --help"
            )
    given = {field.name: getattr(args, field.name) for field in fields(Options) if field.name != "overrides"}
    return Options(overrides=tuple(option.removeprefix("--") for option in rest), **given)
