"""C4 through the hub's own client, from a hub on this machine whose connections fail."""

from __future__ import annotations

import hashlib
import json
import sys

import pytest

from alphadecay_dist.training.data.retries import WAITS
from tests.training.fake_hub import TRAIN
from tests.training.runs import launch

pytestmark = pytest.mark.launcher

DIGEST = hashlib.sha256("".join(TRAIN).encode()).hexdigest()


FOR_A_WHILE = [
    (["ok"], 0),
    (["ok", "ok", "cut", "cut", "ok"], 0),  # the hub's client mends it
    (["ok"] * 2 + ["cut"] * 9 + ["ok"], 1),
    (["ok"] * 2 + ["reset"] * 20 + ["ok"], 3),
    (["ok"] * 3 + ["503"] * 14 + ["ok"] * 2 + ["500"] * 7 + ["ok"], 3),
]
AWAY = ["ok", "ok", "reset"]
REFUSED = {status: ["ok", "ok", status] for status in ("401", "403", "404")}


@pytest.fixture(scope="module")
def c4_from():
    """By faults: what was read of C4, and the lines that this project printed about failures."""
    runs = [*(faults for faults, _ in FOR_A_WHILE), AWAY, *REFUSED.values()]
    code, text = launch(sys.executable, "-m", "tests.training.fake_hub", json.dumps(runs))
    assert code == 0, text
    found, lines, told = iter(map(tuple, runs)), [], {}
    for line in text.splitlines():
        if line.startswith("data: c4: "):
            lines.append(line)
        elif line.startswith("{"):
            told[next(found)], lines = (json.loads(line), lines), []
    assert len(told) == len(runs), text
    return lambda faults: told[tuple(faults)]


@pytest.mark.parametrize(("faults", "attempts"), FOR_A_WHILE)
def test_a_connection_that_fails_for_a_while_changes_no_document(c4_from, faults, attempts):
    told, lines = c4_from(faults)
    assert told["error"] is None
    assert (told["rows"], told["digest"], told["revision"]) == (len(TRAIN), DIGEST, "a" * 40)
    assert len(lines) == attempts
    assert all(f"of {len(WAITS)} in " in line for line in lines)


def test_a_connection_that_stays_away_is_one_error_after_all_attempts(c4_from):
    told, lines = c4_from(AWAY)
    assert 0 < told["rows"] < len(TRAIN)
    assert told["error"].startswith("data: c4: cannot be read: Server Disconnected (at row ")
    assert len(lines) == len(WAITS)
    assert sum(told["waits"]) < 600  # NCCL waits so long for a rank


@pytest.mark.parametrize("status", REFUSED)
def test_what_the_hub_refuses_is_an_error_at_once(c4_from, status):
    told, lines = c4_from(REFUSED[status])
    assert f"{status} " in told["error"]
    assert (lines, told["waits"]) == ([], [])
