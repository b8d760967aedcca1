"""Small file systems in memory, to be filled."""

from __future__ import annotations

import contextlib
import subprocess

import pytest

MEGABYTE = 1 << 20


class Disk:
    """A file system in memory, of some bytes."""

    def __init__(self, place, size):
        self.place = place
        place.mkdir()
        done = mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", place)
        if done.returncode:
            pytest.skip(
                f"a tmpfs cannot be mounted here, so disks that are full are not tested: {done.stderr}"
            )

    def again(self, option):
        """Mount it anew with an option."""
        mount("-o", f"remount,{option}", self.place).check_returncode()


def mount(*arguments):
    command = ["mount", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def fill(path):
    """A file that takes all the room there is."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
