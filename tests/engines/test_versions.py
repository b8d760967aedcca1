from __future__ import annotations

import pytest

from alphadecay_dist.engines import versions
from alphadecay_dist.engines.versions import RANGES, require


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
