"""DeepSpeed's universal checkpoint: a folder a parameter, which stages 1 to 3 read on any number of ranks.

    DIR/latest_universal                            the name of the folder below
    DIR/global_step100/mp_rank_00_model_states.pt   counters, read at stages 1 and 2; at stage 3 the same
                       zero_pp_rank_0_mp_rank_00_model_states.pt  under this name
                       zero/optimizer_state.pt      what all groups share
                       zero/NAME/fp32.pt            master weight, whole; so exp_avg.pt, exp_avg_sq.pt
                       zero/NAME/step.pt            updates that the optimizer has made of it

The format is DeepSpeed's own, and its files are pickles: ``tests/commands/test_export_universal.py`` has
engines of all stages load what is written here.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

MASTER = "fp32"  # DeepSpeed's name for what is called a weight here
LATEST = "latest_universal"
MODEL_STATES = ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt")


class Parameter(NamedTuple):
    """A parameter: its name in the model, whole fp32 tensors by DeepSpeed's names, its step counter."""

    name: str
    tensors: Iterable[tuple[str, Tensor]]
    step: float


def write_universal(
    folder: Path, step: int, world_size: int, parameters: Iterable[Parameter], hyper: Mapping[str, Any]
) -> None:
    """Write a universal checkpoint, one tensor at a time.

    Args:
        folder: an existing folder to write to.
        step: updates finished.
        world_size: ranks that trained.
        parameters: all that are trained.
        hyper: what every param group is to get, such as the learning rate. What a group keeps of its own,
            such as its decay, must not be in it: DeepSpeed gives every group the first group's values at
            stage 3, and below matches groups by position.
    """
    home = folder / f"global_step{step}"
    shared, steps = home / "zero", []
    for parameter in parameters:
        own = shared / parameter.name
        own.mkdir(parents=True)
        for kind, tensor in parameter.tensors:
            _save({"param": tensor}, own / f"{kind}.pt")
        _save(torch.tensor(parameter.step), own / "step.pt")
        steps.append(parameter.step)
    # One group per parameter: no engine has more, and DeepSpeed stops at the end of the shorter list.
    groups = [dict(hyper) for _ in steps]
    state = {
        "ds_version": version("deepspeed"),
        "param_groups": groups,  # read at stages 1 and 2
        "optimizer_state_dict": {
            "state": {0: {"step": torch.tensor(max(steps))}},
            "param_groups": groups[:1],
        },
    }
    _save(state, shared / "optimizer_state.pt")
    counters = {
        "dp_world_size": world_size,
        "mp_world_size": 1,
        "global_steps": step,
        "skipped_steps": 0,
        "lr_scheduler": None,
    }
    for name in MODEL_STATES:
        _save(counters, home / name)
    (folder / LATEST).write_text(home.name, encoding="utf-8")


def _save(data: object, path: Path) -> None:
    """Pickle in memory first: on a full disk torch's own writing raises what does not say so."""
    content = io.BytesIO()
    torch.save(data, content)
    path.write_bytes(content.getbuffer())
