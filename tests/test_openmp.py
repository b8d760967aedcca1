"""Threads that wait sleep soon: torch's OpenMP reads it from the environment, once, when torch is loaded."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILE = ROOT / "alphadecay_dist" / "openmp.py"
OURS = "GOMP_SPINCOUNT = '2000'"

STARTS = {
    "trainer": ["-c", "import train, torch"],
    "command": ["-c", "import alphadecay_dist.cli, torch"],
    "tests": ["-c", "import tests.conftest"],
}


def settings_of_openmp(arguments, **given):
    """What libgomp says of itself when torch loads it."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))}
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**own, "OMP_DISPLAY_ENV": "VERBOSE", **given},
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.mark.launcher
@pytest.mark.parametrize("start", STARTS)
def test_openmp_knows_how_long_to_spin_when_torch_loads_it(start):
    assert OURS in settings_of_openmp(STARTS[start])


@pytest.mark.launcher
def test_a_script_that_imports_the_library_keeps_its_own_environment():
    said = settings_of_openmp(["-c", "import alphadecay_dist; alphadecay_dist.AlphaDecay"])
    assert re.search(r"GOMP_SPINCOUNT = '\d+'", said)
    assert OURS not in said


@pytest.mark.parametrize("given", [{"GOMP_SPINCOUNT": "77"}, {"OMP_WAIT_POLICY": "ACTIVE"}, {}])
def test_what_the_user_has_set_stays(given):
    code = f"import json, os, runpy; runpy.run_path({str(FILE)!r}); print(json.dumps(dict(os.environ)))"
    done = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert {name: found.get(name) for name in given} == given
    assert ("GOMP_SPINCOUNT" in found) == ("OMP_WAIT_POLICY" not in given)
