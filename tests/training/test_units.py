from __future__ import annotations

import pytest

from alphadecay_dist.errors import UserError
from alphadecay_dist.training.config import load_config
from alphadecay_dist.training.units import bytes_of, bytes_per_second


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("268435456", 2**28),
        ("256MiB", 2**28),
        ("256 mib", 2**28),
        ("0.5GiB", 2**29),
        ("1.5GB", 1_500_000_000),
        ("2e6", 2_000_000),
        ("64 kB", 64_000),
        ("12B", 12),
        ("1TiB", 2**40),
    ],
)
def test_a_size(text, size):
    assert bytes_of(text, "x") == size
    if text.isdigit() or not text[-1].isdigit():  # 2e6 is a text to YAML
        assert load_config("demo", [f"decay.memory_budget={text}"]).decay.memory_budget == size


@pytest.mark.parametrize("text", ["", "MiB", "1XB", "-1MB", "0.3B", "25GB/s", "1 MB x", "nan", "inf", "1_0"])
def test_no_size_is_refused_with_what_is_expected(text):
    with pytest.raises(
        UserError, match=r"--memory_budget: found .*, expected bytes, or a size such as 256MiB"
    ):
        bytes_of(text, "--memory_budget")


def test_a_recipes_size_is_refused_with_its_field():
    with pytest.raises(UserError, match=r"decay.memory_budget: found 'much', expected bytes"):
        load_config("demo", ["decay.memory_budget=much"])


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("25e9", 25e9),
        ("25GB", 25e9),
        ("25 GB/s", 25e9),
        ("25GBps", 25e9),
        ("25GiB/s", 25 * 2**30),
        ("200Gb/s", 25e9),
        ("200Gbps", 25e9),
        ("200Gbit/s", 25e9),
        ("200 gbit", 25e9),
        ("1.5 Mbytes/s", 1.5e6),
    ],
)
def test_a_rate(text, rate):
    assert bytes_per_second(text, "x") == rate


@pytest.mark.parametrize("text", ["", "fast", "0", "-1", "25G", "25 GB/min", "1e999", "nan"])
def test_no_rate_is_refused_with_what_is_expected(text):
    with pytest.raises(UserError, match=r"--bandwidth: found .*, expected bytes a second, or such as 25GB/s"):
        bytes_per_second(text, "--bandwidth")
