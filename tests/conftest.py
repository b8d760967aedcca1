from __future__ import annotations

import alphadecay_dist.openmp  # noqa: F401  (before torch is loaded; processes that tests start inherit it)

# isort: split

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One BLAS thread, as a rank of two has it here: BLAS rounds otherwise on several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
