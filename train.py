"""Train a LLaMA with AlphaDecay.

DeepSpeed: deepspeed train.py --deepspeed ds_configs/zero2.json; FSDP2: torchrun --nproc_per_node 2 train.py;
MPI: mpirun -np 2 python train.py; one process: python train.py.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys

if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, lambda *_: os._exit(75))  # loading torch takes seconds: nothing is lost yet

import alphadecay_dist.openmp  # noqa: F401  (before torch is loaded)

# isort: split

from alphadecay_dist.engines.rank_variables import settle_rank
from alphadecay_dist.engines.versions import require
from alphadecay_dist.training.arguments import Parser, normalized
from alphadecay_dist.training.field_help import listing
from alphadecay_dist.training.options import Options, add_options, options_of
from alphadecay_dist.training.process.exit_codes import exit_code_of
from alphadecay_dist.training.process.launcher import end_with_launcher
from alphadecay_dist.training.process.preemption import StopRequests


def parse(argv: list[str]) -> Options:
    """Options from the command line; ``--section.key=value`` are left to the recipe."""
    parser = Parser(
        prog="train.py",
        description=__doc__,
        epilog=listing(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_options(parser)
    args, rest = parser.parse_known_args(normalized(argv))
    return options_of(args, parser.fields_of(rest))


def start(argv: list[str], requests: StopRequests) -> None:
    """Find out which rank this is, and run what the command line asks for."""
    settle_rank()
    end_with_launcher()
    options = parse(argv)
    require("torch")  # before it is loaded
    from alphadecay_dist.training.process.environment import limit_threads  # noqa: PLC0415  (loads torch)
    from alphadecay_dist.training.run import run_recipe  # noqa: PLC0415

    limit_threads()
    run_recipe(options, requests)


def main(argv: list[str]) -> int:
    """Run; what ends a run early is one line on rank 0, and an exit code on every rank."""
    requests = StopRequests()
    requests.listen()
    return exit_code_of(lambda: start(argv, requests))


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # All is saved: threads of data readers and of gloo now and then abort an orderly exit, with another code.
    os._exit(code)
