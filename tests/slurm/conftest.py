from __future__ import annotations

import pytest

from tests.slurm import cluster as clusters


@pytest.fixture(scope="package")
def cluster():
    """The two-node cluster; its tests are skipped by name where there is no SLURM."""
    reason = clusters.why_not()
    if reason:
        pytest.skip(reason)
    with clusters.running() as started:
        yield started
