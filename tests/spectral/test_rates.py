from __future__ import annotations

import torch

from alphadecay_dist.spectral import measured_rates


def test_this_machine_is_measured():
    rates = measured_rates(torch.device("cpu"))
    assert rates.gram > rates.tridiagonal > 1e7
    assert measured_rates(torch.device("cpu")) is rates
