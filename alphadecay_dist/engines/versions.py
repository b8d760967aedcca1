"""Which versions of torch, DeepSpeed and transformers this package has been run with: docs/versions.md."""

from __future__ import annotations

import re
import warnings
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from alphadecay_dist.errors import VersionError

# The oldest version that works, and the first that has not been run; setup.cfg has the same lower bounds.
RANGES = {"torch": ("2.9", "2.15"), "deepspeed": ("0.17.6", "0.20"), "transformers": ("4.57", "5.25")}
RELEASE = re.compile(r"(?:\d+!)?(\d+(?:\.\d+)*)")  # of "2.13.0a0+5228986c39.nv26.01": 2.13.0


def require(package: str) -> None:
    """Check the version that is installed; warn about one that is newer than any that was run.

    Builds count by their release: NVIDIA's images have 2.13.0a0+..., nightly builds 2.14.0.dev20260101.

    Raises:
        VersionError: it is too old, or not installed; an ImportError.
    """
    least, beyond = RANGES[package]
    advice = f"pip install '{package}>={least},<{beyond}'"
    try:
        found = version(package)
    except PackageNotFoundError:
        raise VersionError(f"{package} is not installed, expected {least} or later: {advice}") from None
    if _release(found) < _release(least):
        raise VersionError(
            f"{package} {found} is too old for alphadecay_dist, expected {least} or later: {advice}"
        )
    if _release(found) >= _release(beyond):
        warnings.warn(
            f"{package} {found} is newer than alphadecay_dist has been tested with (below {beyond}); run its "
            f"tests, or {advice}",
            stacklevel=3,
        )


def without_extra(extra: str, error: ModuleNotFoundError) -> VersionError:
    """The error of a module whose package comes with an extra, where that was not installed."""
    package = str(error.name).partition(".")[0]
    return VersionError(f"{package} is not installed; pip install 'alphadecay-dist[{extra}]'")


def installed() -> dict[str, str]:
    """The versions of these packages that are here, by name."""
    found = {}
    for package in RANGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _release(text: str) -> tuple[int, ...]:
    """The numbers of a version's release, without zeros at the end: 2.13 and 2.13.0 are one."""
    found = RELEASE.match(text)
    numbers = [int(number) for number in found[1].split(".")] if found else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
