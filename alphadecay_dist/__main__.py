"""The ``alphadecay`` command, and ``python -m alphadecay_dist``."""

import sys

from alphadecay_dist.errors import VersionError
from alphadecay_dist.training.process.exit_codes import say_error


def main() -> int:
    """Run the command; a package that is too old for it is one line and exit code 2."""
    try:
        from alphadecay_dist import cli  # noqa: PLC0415  (loads torch and transformers)
    except VersionError as error:
        return say_error("alphadecay", error)
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
