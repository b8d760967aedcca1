"""What a run keeps: of what it was made, where it is, and how it ended."""

from __future__ import annotations

import dataclasses

from alphadecay_dist.training.fingerprint import FileMark
from alphadecay_dist.training.inputs import Inputs
from alphadecay_dist.training.recipe import Config, TrainConfig

INPUTS = Inputs(
    model={"hidden_size": 64},
    tokenizer="5e",
    data={"data.source": {"a.jsonl": FileMark(120, "0f")}},
    revision=None,
    engine={"name": "ddp", "settings": {"dtype": "float32"}},
    init_from={"model.safetensors": FileMark(3, "ab")},
    command=("train.py", "--recipe", "demo"),
    versions={"torch": "2.13.0"},
    changes=({"step": 3, "change": "data.source a.jsonl: 3 bytes longer"},),
)
STATE = {
    "config": dataclasses.asdict(Config(train=TrainConfig(dtype="float32"))),
    "tokens": 300,
    "lanes": {"0": {"documents": {"epoch": 0, "file": 0, "row": 0, "taken": 1}, "carry": [1, 2]}},
    "evaluation_owed": False,
    "bad_updates": {"total": 0, "in_a_row": 0},
    "decay": {"alphadecay": "{}"},
    "inputs": dataclasses.asdict(INPUTS),
}
FINISHED = {"state": "finished", "step": 3, "exit_code": 0, "reason": None}
