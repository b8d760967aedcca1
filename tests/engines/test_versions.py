from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from alphadecay_dist.engines import versions
from alphadecay_dist.engines.versions import RANGES, require
from tests.python_path import python_path

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("package", RANGES)
def test_what_is_installed_is_in_range(package, recwarn):
    require(package)
    assert not recwarn.list


@pytest.mark.parametrize("package", RANGES)
def test_other_versions_are_named(package, monkeypatch):
    least, beyond = RANGES[package]
    advice = f"pip install '{package}>={least}"
    monkeypatch.setattr(versions, "version", lambda name: "0.1.0+cpu")
    with pytest.raises(ImportError, match=rf"{package} 0.1.0\+cpu is too old for .*{advice}"):
        require(package)
    monkeypatch.setattr(versions, "version", lambda name: f"{beyond}.1")
    with pytest.warns(UserWarning, match=rf"{package} {beyond}.1 is newer .*{advice}"):
        require(package)


@pytest.mark.parametrize("package", RANGES)
@pytest.mark.parametrize("suffix", ["a0+5228986c39.nv26.01", ".dev20260101", "rc2"])
def test_images_and_nightly_builds_count_as_their_release(package, suffix, monkeypatch, recwarn):
    least, beyond = RANGES[package]
    monkeypatch.setattr(versions, "version", lambda name: f"{least}{suffix}")
    require(package)
    assert not recwarn.list
    monkeypatch.setattr(versions, "version", lambda name: f"{beyond}{suffix}")
    with pytest.warns(UserWarning, match="is newer"):
        require(package)


def test_what_setup_declares_begins_where_the_gate_does():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    required = setup["options"]["install_requires"].split("\n")
    declared = dict(line.split(">=") for line in required if line.split(">=")[0] in RANGES)
    assert declared == {package: least for package, (least, _) in RANGES.items()}


@pytest.mark.parametrize(
    "name", ["2.13.0", "2.13", "2.13.1.post1", "2.13.0+cu130", "2.13.0a0+5228986c39.nv26.01"]
)
def test_a_release_is_compared_by_numbers(name, monkeypatch, recwarn):
    monkeypatch.setattr(versions, "version", lambda package: name)
    monkeypatch.setitem(RANGES, "torch", ("2.9", "2.13.2"))
    require("torch")
    assert not recwarn.list


def test_what_is_not_installed_is_named(monkeypatch):
    def version(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr(versions, "version", version)
    with pytest.raises(
        ImportError, match=r"deepspeed is not installed, expected 0\.\d+.* or later: pip install"
    ):
        require("deepspeed")


@pytest.mark.parametrize(
    ("host", "package", "extra"),
    [
        ("accelerate", "accelerate", "hf"),
        ("asked", "accelerate", "hf"),
        ("lightning", "lightning", "lightning"),
    ],
)
def test_a_host_without_its_package_names_the_extra(host, package, extra):
    code = f"import sys; sys.modules[{package!r}] = None; import alphadecay_dist.integrations.{host}"
    environment = {**os.environ, "PYTHONPATH": python_path(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stderr.splitlines()[-1] == (
        f"alphadecay_dist.errors.VersionError: {package} is not installed; "
        f"pip install 'alphadecay-dist[{extra}]'"
    )


OTHER = """
import importlib.metadata, runpy, sys, warnings
package, found, sys.argv = sys.argv[1], sys.argv[2], sys.argv[3:]
version = importlib.metadata.version
importlib.metadata.version = lambda name: found if name == package else version(name)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def start(package, found, script, *options):
    """A program that finds another version of a package."""
    return subprocess.run(
        [sys.executable, "-c", OTHER, package, found, str(script), *options],
        env={**os.environ, "PYTHONPATH": python_path(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.launcher
@pytest.mark.parametrize("package", ["torch", "transformers"])
@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("train.py", ["--output_dir=run"]),
        ("alphadecay_dist/__main__.py", ["plan", "--recipe=demo", "--world_size=2"]),
    ],
)
def test_a_program_ends_with_one_line_where_something_is_too_old(package, script, options):
    ended = start(package, "1.0", ROOT / script, *options)
    assert ended.returncode == 2
    (line,) = ended.stderr.strip().split("\n")
    assert re.match(rf"(train.py|alphadecay): error: {package} 1.0 is too old for .*pip install", line)


@pytest.mark.launcher
def test_the_library_warns_once_of_what_is_newer_and_refuses_what_is_too_old(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from alphadecay_dist import AlphaDecay, param_groups\nimport alphadecay_dist.control.controller\n"
    )
    newer = start("torch", "99.1.0a0+abc", script)
    assert newer.returncode == 0
    assert newer.stderr.count("torch 99.1.0a0+abc is newer than alphadecay_dist has been tested with") == 1
    older = start("torch", "2.0.1+cu118", script)
    assert "ImportError" in older.stderr or "VersionError" in older.stderr
    assert "torch 2.0.1+cu118 is too old for alphadecay_dist" in older.stderr.strip().split("\n")[-1]
