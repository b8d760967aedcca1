from __future__ import annotations

from alphadecay_dist.engines.names import MASTERS
from alphadecay_dist.engines.names import SHARDINGS as NAMES

from alphadecay_dist.engines.expected_layouts import SHARDINGS


def test_every_sharding_that_can_be_named_has_layouts():
    assert tuple(SHARDINGS) == NAMES
    assert set(MASTERS) < set(NAMES)
