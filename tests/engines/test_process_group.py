"""How ranks meet."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from alphadecay_dist.engines.process_group import join
from alphadecay_dist.errors import UserError


def test_one_of_several_tasks_of_slurm_does_not_take_itself_for_the_whole_run(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(UserError, match=r"RANK: not set in one of 4 tasks .* slurm/rank.sh"):
        join(torch.device("cpu"))
    assert not dist.is_initialized()
