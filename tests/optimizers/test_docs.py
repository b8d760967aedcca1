"""The loops of docs/muon.md run as they are printed, and decay each matrix by its own."""

from __future__ import annotations

import re
from pathlib import Path

import deepspeed
import pytest
import torch
from torch.distributed.fsdp import fully_shard

from alphadecay_dist import AlphaDecay, ShardedMuon, param_groups
from tests.models import Blocks
from tests.multirank import run_ranks

PAGE = (Path(__file__).parents[2] / "docs" / "muon.md").read_text(encoding="utf-8")
SHARDED, ZERO = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def check(code, stage):
    torch.manual_seed(0)
    model = Blocks()
    if stage is None:
        fully_shard(model)
    names = {
        "model": model,
        "loader": [torch.randn(4, 64) for _ in range(2)],
        "torch": torch,
        "deepspeed": deepspeed,
        "AlphaDecay": AlphaDecay,
        "ShardedMuon": ShardedMuon,
        "param_groups": param_groups,
        "ds_config": {"train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": stage}},
    }
    before = {name: own.detach().clone() for name, own in model.named_parameters()}
    with torch.compiler.set_stance("force_eager"):
        exec(code, names)
    decays = sorted(module.weight_decay for module in names["decay"].modules.values())
    assert decays[0] == pytest.approx(0.1 * 2 / 3)
    assert decays[-1] == pytest.approx(0.5)
    for name, own in model.named_parameters():
        moved = own.detach() - before[name]
        moved = moved.full_tensor() if stage is None else moved
        assert moved.abs().max() > 0, name
        if name.endswith("0.weight"):  # two updates of singular values about the rate, and the decay
            assert 0.015 < torch.linalg.svdvals(moved)[0] < 0.09, name


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("code", "stage"),
    [
        pytest.param(SHARDED, None, id="fsdp2"),
        pytest.param(ZERO, 1, marks=pytest.mark.long, id="1"),
        pytest.param(ZERO, 2, id="2"),
    ],
)
def test_a_loop_of_the_page_runs_as_it_is_printed(code, stage):
    run_ranks(check, 2, code, stage)
