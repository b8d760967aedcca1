"""The ``alphadecay`` command, and ``python -m alphadecay_dist``."""

import sys

from alphadecay_dist.cli import main

if __name__ == "__main__":
    sys.exit(main())
