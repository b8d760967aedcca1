from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

import alphadecay_dist
from alphadecay_dist.doctor import measures

PACKAGE = Path(alphadecay_dist.__file__).parent


def test_the_digest_sees_a_changed_or_renamed_file(tmp_path):
    digest = measures.source_digest(PACKAGE)
    copy = tmp_path / "copy"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    assert measures.source_digest(copy) == digest
    (copy / "cli.py").rename(copy / "cli2.py")
    assert measures.source_digest(copy) != digest
    (copy / "cli2.py").rename(copy / "cli.py")
    (copy / "recipes" / "demo.yaml").write_text("train: {}\n")
    assert measures.source_digest(copy) != digest


def test_a_wrong_product_is_a_fault(monkeypatch):
    device = torch.device("cpu")
    assert measures.compute_fault(device) is None
    right = torch.Tensor.cpu

    def wrong(tensor):
        return right(tensor).index_fill(1, torch.tensor([7]), -1.0)

    monkeypatch.setattr(torch.Tensor, "cpu", wrong)
    assert measures.compute_fault(device) == "256 of 65536 elements are wrong"


def test_a_place_is_by_the_launchers_variables(monkeypatch):
    for name, value in {"RANK": 5, "LOCAL_RANK": 1, "LOCAL_SIZE": 4, "SLURMD_NODENAME": "n2"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    found = measures.place_of(torch.device("cpu"), {"torch": "2.13.0"}, None)
    assert (found.rank, found.node, found.local_rank, found.local_ranks) == (5, "n2", 1, 4)
    assert found.machine == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def test_free_bytes_and_cores_are_the_systems(tmp_path):
    assert measures.free_bytes(tmp_path / "none") is None
    free = shutil.disk_usage(tmp_path).free
    assert abs(measures.free_bytes(tmp_path) - free) < 2**30
    assert measures.processor_of().cores == tuple(sorted(os.sched_getaffinity(0)))
