"""Which versions of torch and DeepSpeed the engines are written for."""

from __future__ import annotations

import warnings
from importlib.metadata import version

from packaging.version import Version

# From the version that the private names used here were read in, to the next one that may change them.
RANGES = {"torch": ("2.13", "2.14"), "deepspeed": ("0.19.8", "0.20")}


def require(package: str) -> None:
    """Check the version that is installed; warn about one that is newer than the tests know.

    Raises:
        ImportError: it is too old.
    """
    found, (least, beyond) = Version(version(package)), RANGES[package]
    release = Version(found.base_version)  # NVIDIA's images and nightly builds have 2.13.0a0+...
    advice = f"pip install '{package}>={least},<{beyond}'"
    if release < Version(least):
        raise ImportError(
            f"{package} {found} is too old for alphadecay_dist, expected {least} or later: {advice}"
        )
    if release >= Version(beyond):
        warnings.warn(
            f"{package} {found} is newer than alphadecay_dist has been tested with (below {beyond}); run its "
            f"tests, or {advice}",
            stacklevel=3,
        )
