"""The trainer's command line, for whatever is started with it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from alphadecay_dist import __version__
from alphadecay_dist.engines import registry
from alphadecay_dist.engines.registry import DEFAULT, ENGINES
from alphadecay_dist.errors import UserError, shown
from alphadecay_dist.training.config import flat

if TYPE_CHECKING:  # a command line is read without torch
    from alphadecay_dist.training.preflight import ResolvedRun
    from alphadecay_dist.training.process.ranks import Ranks

# Kinds of files that may have changed since a run was begun.
MODEL, TOKENIZER, DATA, DEEPSPEED = KINDS = ("model", "tokenizer", "data", "deepspeed")


@dataclass(frozen=True)
class Options:
    """The command line: see :func:`add_options`."""

    recipe: str
    overrides: tuple[str, ...]
    deepspeed: str | None
    engine: str | None
    output_dir: str | None
    resume: str = "auto"
    overwrite: bool = False
    init_from: str | None = None
    accept_changes: frozenset[str] = frozenset()
    dry_run: bool = False

    @property
    def command(self) -> tuple[str, ...]:
        """The command line that begins such a run, without launcher and without where it is written."""
        named = {"recipe": self.recipe, "deepspeed": self.deepspeed, "engine": self.engine}
        named |= {"init_from": self.init_from}
        words = [word for name, value in named.items() if value is not None for word in (f"--{name}", value)]
        return ("alphadecay", "train", *words, *(f"--{override}" for override in self.overrides))


def add_options(parser: argparse.ArgumentParser) -> None:
    """The trainer's options; what the parser then leaves over are fields of the recipe."""
    parser.add_argument("--version", action="version", version=f"alphadecay_dist {__version__}")
    parser.add_argument("--recipe", default="demo", help="a name or a YAML file (default: demo)")
    parser.add_argument(
        "--deepspeed", metavar="JSON", help="train under DeepSpeed with this config: its path, or zero2 ..."
    )
    others = [name for name in ENGINES if name != registry.DEEPSPEED]
    parser.add_argument("--engine", choices=others, help=f"without --deepspeed (default: {DEFAULT})")
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


def options_of(args: argparse.Namespace, overrides: Sequence[str]) -> Options:
    """The options that were given.

    Args:
        args: what a parser with :func:`add_options` understood.
        overrides: fields of the recipe, ``section.key=value`` each.
    """
    given = {field.name: getattr(args, field.name) for field in fields(Options) if field.name != "overrides"}
    return Options(overrides=tuple(overrides), **given)


def require_same_options(options: Options, checked: ResolvedRun, ranks: Ranks) -> None:
    """Refuse ranks that were given different runs. Collective.

    Raises:
        UserError: the first option that differs, and on which rank.
    """
    given = {
        "output_dir": str(checked.folder),
        "resume": options.resume,
        "overwrite": options.overwrite,
        "dry_run": options.dry_run,
        **{key: value for key, value in flat(checked.config) if key not in checked.task.paths},
    }
    first, *others = ranks.gather(given)
    for rank, other in enumerate(others, 1):
        for name, value in first.items():
            if other[name] != value:
                raise UserError(
                    f"--{name}: rank 0 has {shown(value)}, rank {rank} has {shown(other[name])}; give all "
                    "ranks the same options"
                )
