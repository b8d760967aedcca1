"""What the library says to its user, through the logger ``alphadecay_dist``."""

from __future__ import annotations

import logging
import sys

LOGGER = logging.getLogger("alphadecay_dist")


def notice(text: str) -> None:
    """Say a line on stderr, or wherever the user's own logging leads this logger.

    ``logging.getLogger("alphadecay_dist").setLevel(logging.WARNING)`` silences it.
    """
    if not LOGGER.hasHandlers():
        LOGGER.addHandler(logging.StreamHandler(sys.stderr))
    if LOGGER.level == logging.NOTSET:
        LOGGER.setLevel(logging.INFO)
    LOGGER.info(text)
