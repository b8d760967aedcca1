"""Train a LLaMA with AlphaDecay.

DeepSpeed: deepspeed train.py --deepspeed ds_configs/zero2.json; FSDP2: torchrun --nproc_per_node 2 train.py;
one process: python train.py.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys

if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, lambda *_: os._exit(75))  # loading torch takes seconds: nothing is lost yet

from alphadecay_dist.errors import UserError
from alphadecay_dist.training.check import Options
from alphadecay_dist.training.exits import exit_code_of
from alphadecay_dist.training.launcher import end_with_launcher
from alphadecay_dist.training.preemption import StopRequests
from alphadecay_dist.training.ranks import limit_threads
from alphadecay_dist.training.run import run


def parse(argv: list[str]) -> Options:
    """Options from the command line; ``--section.key=value`` are left to the recipe."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Any field of the recipe is an option: --train.steps=100 --decay.interval=20",
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("--recipe", default="demo", help="a name or a YAML file (default: demo)")
    parser.add_argument("--deepspeed", metavar="JSON", help="train under DeepSpeed with this config")
    parser.add_argument("--engine", choices=("fsdp2", "ddp"), help="without --deepspeed (default: fsdp2)")
    parser.add_argument("--output_dir", help="default: runs/<recipe name>")
    parser.add_argument("--resume", default="auto", help="auto (default), none, or a checkpoint directory")
    parser.add_argument("--overwrite", action="store_true", help="with --resume none: remove the old run")
    parser.add_argument("--init_from", metavar="DIR", help="start from a HF checkpoint's weights")
    parser.add_argument(
        "--dry_run", action="store_true", help="print config, plan and first batch, then stop"
    )
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # added by the deepspeed launcher
    try:
        args, rest = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise UserError(f"{error}; see --help") from None
    for option in rest:
        if not option.startswith("--") or "." not in option.partition("=")[0]:
            raise UserError(
                f"{option!r}: unknown option; fields of a recipe are --section.key=value, see --help"
            )
    del args.local_rank
    return Options(overrides=tuple(option.removeprefix("--") for option in rest), **vars(args))


def main(argv: list[str]) -> int:
    """Run; what ends a run early is one line on rank 0, and an exit code on every rank."""
    requests = StopRequests()
    requests.listen()
    end_with_launcher()
    limit_threads()
    return exit_code_of(lambda: run(parse(argv), requests))


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # All is saved: threads of data readers and of gloo now and then abort an orderly exit, with another code.
    os._exit(code)
