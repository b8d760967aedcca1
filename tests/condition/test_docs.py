"""The example of docs/spectral_condition.md runs as it is printed, and the page has all fields."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import torch

from alphadecay_dist.condition.sample import MatrixCondition
from tests.models import Blocks

PAGE = (Path(__file__).parents[2] / "docs" / "spectral_condition.md").read_text(encoding="utf-8")


def test_the_example_runs_as_it_is_printed(tmp_path, monkeypatch, capsys):
    code, _ = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)  # the other: tests/integrations
    assert 10 <= len([line for line in code.splitlines() if line.strip()]) <= 12
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = Blocks()
    names = {
        "model": model,
        "optimizer": torch.optim.AdamW(model.parameters()),
        "batches": [torch.randn(40, 64) for _ in range(3)],
    }
    exec(code, names)
    assert len(Path("runs/mine/condition.jsonl").read_text().splitlines()) == 2
    assert float(capsys.readouterr().out) > 0


def test_the_page_has_all_fields():
    table = PAGE[PAGE.index("| field |") :]
    assert set(re.findall(r"`(\w+)`", table)) >= {field.name for field in fields(MatrixCondition)}
