"""``python -m alphadecay_dist``: the ``alphadecay`` command."""

import sys

from alphadecay_dist.cli import main

if __name__ == "__main__":
    sys.exit(main())
