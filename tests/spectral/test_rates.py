from __future__ import annotations

import pytest
import torch

from alphadecay_dist.spectral import Rates, measured_rates


@pytest.mark.parametrize("ratio", [0.5, 3.0, 3.8, 7.1, 10.0, 30.0])
def test_what_a_cpu_measures_in_any_run_deals_alike(ratio):
    # 3.8 to 7.1 were seen from run to run and from machine to machine; the class ends far from them.
    assert Rates(1e11, 1e11 / ratio).tridiagonal_weight == 6


@pytest.mark.parametrize("ratio", [150.0, 500.0, 1000.0, 5000.0, 1e6])
def test_what_a_gpu_measures_deals_alike(ratio):
    assert Rates(1e13, 1e13 / ratio).tridiagonal_weight == 1000


def test_this_machine_is_measured():
    rates = measured_rates(torch.device("cpu"))
    assert rates.gram > rates.tridiagonal > 1e7
    assert rates.tridiagonal_weight == 6
    assert measured_rates(torch.device("cpu")) is rates
