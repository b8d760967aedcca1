"""What the room offers: all of it can be had by name, and what can be chosen is what computes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields

import pytest

from alphadecay_dist import spectral
from alphadecay_dist.spectral import FIT_NAMES, FITS, METRICS, Analysis


@pytest.mark.parametrize("name", spectral.__all__)
def test_every_name_is_there(name):
    assert getattr(spectral, name) is not None
    assert name in dir(spectral)


def test_what_is_not_offered_is_no_name():
    with pytest.raises(AttributeError, match=r"'alphadecay_dist.spectral' has no attribute 'analyse'"):
        spectral.analyse  # noqa: B018


def test_choices_are_what_there_is():
    assert tuple(FITS) == FIT_NAMES
    assert set(METRICS) == {field.name for field in fields(Analysis)} - {"status", "ks", "histogram"}


def test_choices_are_known_without_torch():
    code = (
        "import sys, alphadecay_dist.decay.settings, alphadecay_dist.spectral as s; s.METRICS, s.Windows(50)"
    )
    subprocess.run([sys.executable, "-c", f"{code}; sys.exit('torch' in sys.modules)"], check=True)
