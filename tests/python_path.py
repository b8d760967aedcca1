"""PYTHONPATH of the programs that tests start."""

from __future__ import annotations

import os


def python_path(*folders: object) -> str:
    """These folders first, and then what this process gives to its own: see conftest.py."""
    return os.pathsep.join([*map(str, folders), os.environ["PYTHONPATH"]])
