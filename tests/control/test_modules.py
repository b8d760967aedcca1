"""What is tuned, as a controller shows it, and the file of refreshes that a library's user keeps."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from alphadecay_dist import AlphaDecay, TunedModule, log_refresh, param_groups
from alphadecay_dist.training.outputs.run_files import read_lines
from tests.controllers import SETTINGS, setup, update
from tests.engines.tiny import TUNABLE, Uneven


def of(modules, field):
    return [getattr(module, field) for module in modules.values()]


@pytest.mark.parametrize("apply", ["groups", "premultiply"])
def test_the_modules_show_what_applies_now(apply):
    torch.manual_seed(0)
    model = Uneven(TUNABLE)
    optimizer = torch.optim.AdamW(param_groups(model, weight_decay=0.1, apply=apply), lr=1e-3)
    decay = AlphaDecay(model, optimizer, interval=2, apply=apply, **SETTINGS)
    first = TunedModule("layers.0.up", (64, 172), None, 0.1, "not_refreshed")
    assert decay.modules["layers.0.up"] == first
    assert of(decay.modules, "shape") == TUNABLE
    refresh = decay.refresh()
    for field in ("alpha", "weight_decay", "status"):
        assert of(decay.modules, field) == of(refresh.modules, field)

    other = AlphaDecay(model, optimizer, interval=2, apply=apply, **SETTINGS)
    other.load_state_dict(decay.state_dict())
    assert other.modules == decay.modules


def test_an_undefined_module_shows_why():
    model, _, decay = setup()
    nn.init.zeros_(model.layers[4]["up"].weight)
    decay.refresh()
    assert decay.modules["layers.4.up"] == TunedModule("layers.4.up", (50, 90), None, 0.1, "zero")


def test_a_monitor_says_that_it_watches(caplog):
    model = Uneven(TUNABLE)
    AlphaDecay(model, torch.optim.AdamW(model.parameters()), policy="monitor")
    (line,) = caplog.messages
    assert "weights are watched; " in line


def test_what_is_tuned_is_said_at_construction_and_what_is_not_at_the_first_refresh(caplog):
    torch.manual_seed(0)
    model = Uneven([*TUNABLE, (40, 90)])
    optimizer = torch.optim.AdamW(param_groups(model, weight_decay=0.1))
    decay = AlphaDecay(model, optimizer, **SETTINGS)
    tuned = sum(rows * columns for rows, columns in TUNABLE)
    begin, few = f"AlphaDecay: {len(TUNABLE)} modules", "1 left out for fewer than 50 eigenvalues"
    assert caplog.messages == [f"{begin}, {len(TUNABLE)} matrices, {tuned:,} weights are tuned; {few}"]
    decay.refresh()
    decay.refresh()
    _, line = caplog.messages
    total = sum(parameter.numel() for parameter in model.parameters())
    assert line.startswith(f"AlphaDecay: tuned: {100 * tuned / total:.4g} % of {total:,} trained weights")
    assert "40 x 90; fewer than 50 eigenvalues" in line


class Fused(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"qkv": nn.Linear(64, 192)}) for _ in range(2))


def test_a_fused_weight_has_the_means_of_its_parts():
    torch.manual_seed(0)
    model = Fused()
    optimizer = torch.optim.AdamW(param_groups(model, weight_decay=0.1))
    decay = AlphaDecay(model, optimizer, parts={"*.qkv": (64, 64, 64)}, **SETTINGS)
    nn.init.zeros_(model.layers[1]["qkv"].weight[:64])
    refresh = decay.refresh()
    for field in ("alpha", "weight_decay", "status"):
        assert of(decay.modules, field) == of(refresh.modules, field)
    assert of(decay.modules, "status") == ["assigned", "mixed"]
    assert repr(decay).startswith("AlphaDecay(2 modules, 6 matrices, 24,576 weights tuned; weight_decay=0.1")


def test_its_text_counts():
    model, optimizer, decay = setup()
    assert repr(decay) == (
        f"AlphaDecay(5 modules, 5 matrices, {sum(m * n for m, n in TUNABLE):,} weights tuned; "
        "weight_decay=0.1, interval=3; 0 updates counted, no refresh yet)"
    )
    for number in range(4):
        update(model, optimizer, decay, number)
    assert repr(decay).endswith("4 updates counted, last refresh before update 3)")


def test_a_state_of_before_there_were_statuses_still_loads():
    _, _, decay = setup()
    for refreshed, status in ((False, "not_refreshed"), (True, "assigned")):
        if refreshed:
            decay.refresh()
        state = json.loads(decay.state_dict()["alphadecay"])
        for module in state["modules"].values():
            del module["status"]
        _, _, other = setup()
        other.load_state_dict({"alphadecay": json.dumps(state)})
        assert of(other.modules, "status") == [status] * 5
        assert of(other.modules, "weight_decay") == of(decay.modules, "weight_decay")
        state["modules"]["layers.2.up"]["alpha"] = None
        other.load_state_dict({"alphadecay": json.dumps(state)})
        assert other.modules["layers.2.up"].status == ("unknown" if refreshed else "not_refreshed")


def test_a_users_own_loop_keeps_the_trainers_file(tmp_path):
    model, optimizer, decay = setup()
    folder = tmp_path / "mine"
    written = []
    for number in range(5):
        refresh = update(model, optimizer, decay, number)
        log_refresh(folder, refresh)
        written += [refresh] if refresh else []
    lines = read_lines(folder / "decay.jsonl")
    assert [line["step"] for line in lines] == [0, 3]
    assert lines == [json.loads(json.dumps(refresh.as_dict())) for refresh in written]
    assert set(lines[0]) == {"step", "written_at", "seconds", "bytes_received", "undefined", "modules"}
    assert set(lines[0]["modules"]["layers.0.up"]) == {"alpha", "weight_decay", "owner", "status"}
