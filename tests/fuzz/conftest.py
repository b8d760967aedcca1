from __future__ import annotations

import pytest

from tests.training.conftest import prepared, texts

__all__ = ["place", "prepared", "texts"]


@pytest.fixture
def place(tmp_path_factory):
    """A directory that is one of its own, for hypothesis repeats a test in one."""
    return tmp_path_factory.mktemp("fuzz")
