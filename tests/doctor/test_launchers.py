"""The commands of docs/doctor.md: the launchers of train.py start it as well, with the same options."""

from __future__ import annotations

import pytest

from tests.ports import free_port
from tests.training.runs import launch

pytestmark = pytest.mark.launcher

DEEPSPEED = ("deepspeed", "--num_gpus", 2)
TORCHRUN = ("torchrun", "--nproc_per_node", 2)


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(
            (*TORCHRUN, "--master_port", "PORT", "--no-python", "alphadecay"), marks=pytest.mark.long
        ),
        (*DEEPSPEED, "--master_port", "PORT", "--no_python", "alphadecay"),
        ("python", "-m", "alphadecay_dist.cli"),
    ],
    ids=["torchrun", "deepspeed", "python"],
)
def test_a_launcher_starts_it_with_the_trainers_options(tmp_path, command):
    command = [free_port() if part == "PORT" else part for part in command]
    options = ["--train.steps=3", "--resume=none", "--output_dir", tmp_path]
    options += ["--deepspeed", "ds_configs/zero2.json"] if "deepspeed" in command else []
    code, printed = launch(*command, "doctor", *options)
    assert code == 0, printed
    ranks = "1 rank on 1 node is" if command[0] == "python" else "all 2 ranks on 1 node are"
    assert f"{ranks} well" in printed
