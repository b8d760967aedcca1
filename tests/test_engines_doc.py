"""Every example of docs/engines.md runs as it is printed, and writes its decays where the engine reads."""

from __future__ import annotations

import os
import re
from pathlib import Path

import deepspeed
import pytest
import torch
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

from alphadecay_dist import AlphaDecay, param_groups
from tests.models import Blocks
from tests.multirank import run_ranks

PAGE = (Path(__file__).parents[1] / "docs" / "engines.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)
EXAMPLES = {name: code for name, text in SECTIONS.items() for code in CODE.findall(text)}
TWO_GROUPS = EXAMPLES.pop("Two groups instead of one per matrix")
del EXAMPLES["Saving and loading"]
SAVED_BY_DEEPSPEED, SAVED_BY_TORCH = CODE.findall(SECTIONS["Saving and loading"])
BEFORE = ["When it acts"]
AFTER = ["Saving and loading", "Accelerate", "A file of refreshes", "The end of a process"]


def run_example(code, stage):
    torch.manual_seed(0)
    names = {
        "torch": torch,
        "deepspeed": deepspeed,
        "fully_shard": fully_shard,
        "FullyShardedDataParallel": FullyShardedDataParallel,
        "AlphaDecay": AlphaDecay,
        "param_groups": param_groups,
        "model": Blocks(),
        "batches": [torch.randn(4, 64) for _ in range(3)],
        "device_type": "cpu",
        "device": torch.device("cpu"),
        "ds_config": {"train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": stage}},
    }
    exec(code, names)
    optimizer = names["engine"].optimizer if "engine" in names else names["optimizer"]
    return {group["module"]: group["weight_decay"] for group in optimizer.param_groups}


CASES = [(name, 2) for name in EXAMPLES]
CASES += [(name, stage) for name in EXAMPLES if "ZeRO" in name for stage in (0, 1, 3)]


def test_every_engine_has_a_section_of_about_ten_lines():
    assert [name.split(",")[0] for name in SECTIONS] == [
        *BEFORE,
        "One process",
        "DDP",
        "DeepSpeed ZeRO-0",
        "DeepSpeed ZeRO-3",
        "FSDP2",
        "FSDP1",
        "Two groups instead of one per matrix",
        *AFTER,
    ]
    assert all(len(text.splitlines()) <= 24 for name, text in SECTIONS.items() if name not in BEFORE + AFTER)


def test_the_example_of_two_groups_runs_as_it_is_printed():
    assert run_example(TWO_GROUPS, None) == {"tuned": 0.0, "untuned": 0.1}


@pytest.mark.ranks
@pytest.mark.filterwarnings("ignore:.*FSDP.*")
@pytest.mark.parametrize(("name", "stage"), CASES)
def test_an_example_runs_as_it_is_printed(name, stage):
    decays = run_ranks(run_example, 1 if name == "One process" else 2, EXAMPLES[name], stage)
    assert all(found == decays[0] for found in decays)
    found = dict(decays[0])
    assert found.pop("untuned") == 0.1
    assert set(found) == {"blocks.0.0", "blocks.1.0", "blocks.2.0"}
    assert min(found.values()) == pytest.approx(0.1 * 2 / 3)
    assert max(found.values()) == pytest.approx(0.5)


def save_and_load(training, saving, stage, folder):
    """The example after training, in a directory of its own."""
    os.chdir(folder)
    return run_example(f"{training}\nbefore = decay.modules\n{saving}\nassert decay.modules == before", stage)


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("engine", "saving"),
    [
        ("DeepSpeed ZeRO-0, 1, 2", SAVED_BY_DEEPSPEED),
        ("FSDP2, HSDP, tensor and expert parallelism", SAVED_BY_TORCH),
    ],
)
def test_the_decays_are_saved_as_it_is_printed(engine, saving, tmp_path):
    first, second = run_ranks(save_and_load, 2, EXAMPLES[engine], saving, 2, str(tmp_path))
    assert first == second
    assert len(set(first.values())) >= 3
