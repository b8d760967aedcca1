"""Tests of the extra ``vision``: where it is not installed, each file is skipped as a whole."""

from __future__ import annotations

from importlib.util import find_spec

import pytest


class Missing(pytest.Module):
    """A file whose imports cannot be."""

    def collect(self):
        pytest.skip("the extra vision is not installed (docs/vision.md)", allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    return None if find_spec("timm") else Missing.from_parent(parent, path=module_path)
