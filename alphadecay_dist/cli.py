"""The ``alphadecay`` command: finds the one of ``commands/`` that is asked for, and runs it."""

from __future__ import annotations

import alphadecay_dist.openmp  # noqa: F401  (before torch is loaded)

# isort: split

import argparse
import os
import sys
from importlib import import_module

from alphadecay_dist import __version__
from alphadecay_dist.commands import COMMANDS, command_in
from alphadecay_dist.engines.rank_variables import settle_rank
from alphadecay_dist.engines.versions import require
from alphadecay_dist.errors import UserError
from alphadecay_dist.training.arguments import Parser, normalized
from alphadecay_dist.training.process.exit_codes import USER_ERROR, exit_code_of
from alphadecay_dist.training.process.launcher import end_with_launcher


def main(argv: list[str] | None = None) -> int:
    """Run a command; a user's mistake is one line and exit code 2."""
    words = normalized(sys.argv[1:] if argv is None else argv)
    command = command_in(words)
    if command in COMMANDS and COMMANDS[command].on_every_rank:
        return exit_code_of(lambda: _run_as_rank(words), f"alphadecay {command}")
    try:
        return _run_and_flush(words)
    except UserError as error:
        print(f"alphadecay: error: {error}", file=sys.stderr)
        return USER_ERROR
    except BrokenPipeError:  # who read the output has seen enough, as head has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still to be flushed
        return 1


def _run_as_rank(words: list[str]) -> int:
    """Run what is started on every rank; rank 0 speaks for all."""
    settle_rank()
    end_with_launcher()
    return _run(words)


def _run_and_flush(words: list[str]) -> int:
    """Run a command, and write out what it printed: where nobody reads that, it is known here."""
    try:
        return _run(words)
    finally:
        sys.stdout.flush()


def _run(words: list[str]) -> int:
    """Run what a command line asks for; returns the exit code."""
    args, rest = _parser(words).parse_known_args(words)
    args.overrides = args.left_over(rest)
    require("torch")  # before a command loads it
    return args.command(args) or 0


def _parser(words: list[str]) -> Parser:
    """The parser of all commands, with the arguments of those that are named on the command line."""
    parser = Parser(prog="alphadecay", description="Tools around AlphaDecay.")
    parser.add_argument("--version", action="version", version=f"alphadecay {__version__}")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # added by the deepspeed launcher
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, row in COMMANDS.items():
        own = commands.add_parser(name, help=row.help)
        if name in words:
            module = import_module(row.module)
            own.set_defaults(command=module.run, left_over=own.refuse)
            module.add_arguments(own)
    return parser


if __name__ == "__main__":
    sys.exit(main())
