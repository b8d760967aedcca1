"""Train a LLaMA with AlphaDecay; ``alphadecay train`` is the same without the repository.

DeepSpeed: deepspeed train.py --deepspeed ds_configs/zero2.json; FSDP2: torchrun --nproc_per_node 2 train.py;
MPI: mpirun -np 2 python train.py; one process: python train.py.
"""

from __future__ import annotations

import sys

from alphadecay_dist.training.process.preemption import end_on_signals

if __name__ == "__main__":
    end_on_signals()

import alphadecay_dist.openmp  # noqa: F401  (before torch is loaded)

# isort: split

from alphadecay_dist.commands.train import add_arguments, train
from alphadecay_dist.engines.rank_variables import settle_rank
from alphadecay_dist.engines.versions import require
from alphadecay_dist.training.arguments import Parser, normalized
from alphadecay_dist.training.options import Options, options_of
from alphadecay_dist.training.process.exit_codes import exit_code_of, leave
from alphadecay_dist.training.process.launcher import end_with_launcher


def parse(argv: list[str]) -> Options:
    """Options from the command line; ``--section.key=value`` are left to the recipe."""
    parser = Parser(prog="train.py", description=__doc__)
    add_arguments(parser)
    args, rest = parser.parse_known_args(normalized(argv))
    return options_of(args, parser.fields_of(rest))


def start(argv: list[str]) -> None:
    """Find out which rank this is, and train what the command line asks for."""
    settle_rank()
    end_with_launcher()
    options = parse(argv)
    require("torch")  # before it is loaded
    train(options)


def main(argv: list[str]) -> int:
    """Train; what ends a run early is one line on rank 0, and an exit code on every rank."""
    return exit_code_of(lambda: start(argv))


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
