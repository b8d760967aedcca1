from __future__ import annotations

import pytest

from tests.resilience.sizes import SIZES
from tests.training.runs import tiny_options, train_on


@pytest.fixture(scope="package")
def whole(tmp_path_factory):
    """The unbroken run of an engine on two ranks, made once."""
    runs = {}

    def of(engine):
        if engine not in runs:
            folder = tmp_path_factory.mktemp("whole")
            output = folder / "run"
            runs[engine] = output, train_on(2, engine, output, tiny_options(folder, **SIZES))
        return runs[engine]

    return of
