"""What the README shows is what runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from tests.models import Blocks
from tests.multirank import run_ranks

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def run_the_example(code, stage):
    torch.manual_seed(0)
    names = {
        "model": Blocks(),
        "batches": [torch.randn(4, 64) for _ in range(6)],
        "ds_config": {
            "train_micro_batch_size_per_gpu": 4,
            "gradient_accumulation_steps": 2,
            "zero_optimization": {"stage": stage},
        },
    }
    exec(code, names)
    groups = names["engine"].optimizer.param_groups
    return {group["module"]: group["weight_decay"] for group in groups}, names["decay"].state_dict()


@pytest.mark.ranks
@pytest.mark.parametrize("stage", [1, 3])
def test_the_example_runs_as_it_is_printed(stage):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert 10 <= len([line for line in code.splitlines() if line.strip()]) <= 12
    results = run_ranks(run_the_example, 2, code, stage)
    assert results[0] == results[1]
    decays, _ = results[0]
    assert set(decays) == {"blocks.0.0", "blocks.1.0", "blocks.2.0", "untuned"}
    assert decays["untuned"] == 0.1
    tuned = sorted(decays[f"blocks.{i}.0"] for i in range(3))
    assert tuned[0] == pytest.approx(0.1 * 2 / 3)
    assert tuned[2] == pytest.approx(0.5)


def test_the_set_up_is_two_commands():
    commands = re.findall(r"^pip install.*$", README, re.MULTILINE)
    assert commands == [
        "pip install -c constraints.txt -e . && deepspeed train.py --deepspeed ds_configs/zero2.json",
        "pip install -c constraints.txt -e '.[test]' && pytest",
    ]


def test_it_is_short_and_leads_to_the_rest():
    assert len(README.splitlines()) < 120
    links = ["tutorial/first_run", "settings", "concepts/spectrum", "troubleshooting"]
    assert [name for name in links if f"(docs/{name}.md)" not in README] == []
