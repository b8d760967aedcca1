from __future__ import annotations

from alphadecay_dist.training.utilization import Utilization, peak_flops


def test_utilization_of_known_devices_alone():
    assert peak_flops("NVIDIA H200", "bfloat16") == 989e12
    assert peak_flops("NVIDIA A100-SXM4-80GB", "bfloat16") == 312e12
    assert peak_flops("NVIDIA H200", "float32") is None
    assert peak_flops("NVIDIA GeForce RTX 3060", "bfloat16") is None
    assert peak_flops(None, "bfloat16") is None
    assert Utilization(4e12, 1e12).of(8.0) == 0.5
    assert Utilization(4e12, None).of(8.0) is None
