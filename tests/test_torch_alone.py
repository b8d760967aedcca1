"""The library needs torch and numpy and nothing else, and loads nothing else where more is installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


def closure(*packages):
    """The distributions of packages and of all that they require, extras left out."""
    found, waiting = {}, list(packages)
    while waiting:
        wanted = Requirement(waiting.pop())
        name = wanted.name.lower()
        # What another Python or platform needs may still be found here: setuptools brings some for itself.
        if name not in found and (wanted.marker is None or wanted.marker.evaluate({"extra": ""})):
            found[name] = distribution(name)
            waiting += found[name].requires or []
    return found.values()


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A folder that holds torch, numpy and what they require, as an environment with them alone does."""
    folder = tmp_path_factory.mktemp("torch_and_numpy")
    for package in closure("torch", "numpy"):
        for top in {file.parts[0] for file in package.files} - {"..", "__pycache__"}:
            (folder / top).symlink_to(package.locate_file(top))
    return folder


def run(*arguments, path, flags=()):
    done = subprocess.run(
        [sys.executable, *flags, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def check(lines):
    assert re.fullmatch(r"torch \S+: AlphaDecay, param_groups in \d+\.\d\d s more", lines[0])
    assert lines[2:] == [f"{engine}: as in plain torch" for engine in ("DDP", "FSDP2", "FSDP1")]


@pytest.mark.launcher
def test_every_engine_of_torch_runs_with_torch_and_numpy_alone(bare):
    path = f"{bare}:{ROOT}"
    absent = "import importlib.util as i; print(i.find_spec('torch') and not i.find_spec('packaging'))"
    assert run("-c", absent, path=path, flags=["-S"]) == ["True"]
    check(run("-m", "tests.torch_alone", path=path, flags=["-S"]))


@pytest.mark.launcher
def test_nothing_else_is_loaded_where_it_is_installed():
    check(run("-m", "tests.torch_alone", path=str(ROOT)))
