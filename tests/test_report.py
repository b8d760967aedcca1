from __future__ import annotations

import json
import math

import pytest

from alphadecay_dist import cli
from alphadecay_dist.refresh import ModuleRefresh, Refresh
from alphadecay_dist.training.metrics import RunFiles, means_by_type

NAMES = [f"model.layers.{layer}.{part}" for layer in (0, 1) for part in ("self_attn.q_proj", "mlp.down_proj")]


def a_refresh(step, alphas):
    modules = {
        name: ModuleRefresh(alpha, 0.1 * number, 0, "assigned" if alpha else "zero")
        for number, (name, alpha) in enumerate(zip(NAMES, alphas, strict=True), 1)
    }
    return Refresh(step, step, 0.5, (0, 0), modules)


def test_means_by_module_type():
    means = means_by_type(a_refresh(0, [2.0, 3.0, 4.0, None]))
    assert means == {
        "alpha/q": 3.0,
        "weight_decay/q": pytest.approx(0.2),
        "alpha/down": 3.0,
        "weight_decay/down": pytest.approx(0.3),
    }


def test_a_type_without_a_defined_alpha_has_no_mean_alpha():
    assert "alpha/down" not in means_by_type(a_refresh(0, [2.0, None, 4.0, None]))


def write_run(folder):
    files = RunFiles(folder)
    for step, alphas in ((0, [2.0, 3.0, 2.5, None]), (10, [1.9, None, 2.4, None])):
        files.append("decay.jsonl", a_refresh(step, alphas).as_dict())
    for step in range(1, 21):
        files.append("metrics.jsonl", {"step": step, "loss": 5 / math.sqrt(step)})
    files.append("eval.jsonl", {"step": 0, "loss": 6.0})


def test_report_draws_a_picture(tmp_path, capsys):
    write_run(tmp_path)
    assert cli.main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.png")
    picture = (tmp_path / "report.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000


def test_report_of_no_run_is_one_line(tmp_path, capsys):
    assert cli.main(["report", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"alphadecay: error: {tmp_path}")


def test_a_refresh_is_a_line_of_plain_json(tmp_path):
    write_run(tmp_path)
    first = json.loads((tmp_path / "decay.jsonl").read_text().splitlines()[0])
    assert set(first) == {"step", "written_at", "seconds", "bytes_received", "undefined", "modules"}
    assert first["undefined"] == 1
    assert first["bytes_received"] == [0, 0]
    assert first["modules"][NAMES[3]] == {"alpha": None, "weight_decay": 0.4, "owner": 0, "status": "zero"}
