"""``alphadecay train``: the trainer, wherever the package is installed."""

from __future__ import annotations

import argparse

from alphadecay_dist.training.arguments import Parser
from alphadecay_dist.training.field_help import listing
from alphadecay_dist.training.options import Options, add_options, options_of
from alphadecay_dist.training.process.preemption import StopRequests

DESCRIPTION = """\
Train with AlphaDecay what a recipe says.

DeepSpeed: deepspeed --module alphadecay_dist train --deepspeed zero2;
FSDP2: torchrun --nproc_per_node 2 -m alphadecay_dist train;
MPI: mpirun -np 2 python -m alphadecay_dist train; one process: alphadecay train."""


def add_arguments(parser: Parser) -> None:
    """The trainer's options; what is left over are fields of the recipe."""
    parser.description = parser.description or DESCRIPTION
    parser.epilog = listing()
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.allow_abbrev = False
    parser.set_defaults(left_over=parser.fields_of)
    add_options(parser)


def run(args: argparse.Namespace) -> None:
    """Train, as this rank of the launcher's."""
    train(options_of(args, args.overrides))


def train(options: Options) -> None:
    """Train, and stop where a signal asks for it, which is heard from now on."""
    requests = StopRequests()
    requests.listen()
    from alphadecay_dist.training.process.environment import limit_threads
    from alphadecay_dist.training.run import run_recipe

    limit_threads()
    run_recipe(options, requests)
