from __future__ import annotations

import alphadecay_dist.openmp  # noqa: F401  (before torch is loaded; processes that tests start inherit it)

# isort: split

import gc
import os
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

TORCHVISION = os.path.join(os.path.dirname(__file__), "cpu_torchvision")
if TORCHVISION not in sys.path:  # for this process, and for those that it starts
    sys.path.append(TORCHVISION)
    os.environ["PYTHONPATH"] = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), TORCHVISION])
    import tests.cpu_torchvision.sitecustomize  # noqa: F401

settings.register_profile("suite", deadline=None)  # on a busy machine any example may take long
settings.load_profile("suite")


if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # workers share the cores; what they start sets its own
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // workers))


gc.disable()  # loading and collecting make much and drop little


def pytest_collection_finish() -> None:
    """What was loaded stays: the collector need not go through it."""
    gc.freeze()
    gc.enable()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One BLAS thread, as a rank of two has it here: BLAS rounds otherwise on several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="the long counts too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--long"):
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if not item.get_closest_marker("long")]
