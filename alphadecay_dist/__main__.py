"""The ``alphadecay`` command, and ``python -m alphadecay_dist``."""

import sys

from alphadecay_dist.commands import command_in
from alphadecay_dist.training.process.exit_codes import leave
from alphadecay_dist.training.process.preemption import end_on_signals


def main() -> int:
    """Run what the command line asks for; returns the exit code. The trainer ends the process itself."""
    trains = command_in(sys.argv[1:]) == "train"
    if trains:
        end_on_signals()
    from alphadecay_dist import cli  # noqa: PLC0415  (signals are heard before)

    code = cli.main()
    return leave(code) if trains else code


if __name__ == "__main__":
    sys.exit(main())
