from __future__ import annotations

import pytest

from tests.commands.page import browser as browsers


@pytest.fixture(scope="package")
def browser():
    """A Chromium; its tests are skipped by name where there is none."""
    reason = browsers.why_not()
    if reason:
        pytest.skip(reason)
    with browsers.running() as started:
        yield started
