from __future__ import annotations

import json
import math

import pytest
import torch

from alphadecay_dist import cli
from alphadecay_dist.commands.pictures import _drawn, plot_spectrum
from alphadecay_dist.commands.spectrum_rows import Row
from alphadecay_dist.control.module_types import means_by_type
from alphadecay_dist.control.refresh import ModuleRefresh, Refresh
from alphadecay_dist.spectral import analyze
from alphadecay_dist.training.outputs.run_files import RunFiles, read_lines

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
    assert cli.main(["report", str(tmp_path), "--out", str(tmp_path / "paper.png")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "paper.png")
    picture = (tmp_path / "paper.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000


@pytest.mark.parametrize("kept", [["decay.jsonl"], ["metrics.jsonl"], ["eval.jsonl"]])
def test_report_draws_what_there_is(tmp_path, kept):
    write_run(tmp_path)
    for name in {"decay.jsonl", "metrics.jsonl", "eval.jsonl"} - set(kept):
        (tmp_path / name).unlink()
    assert cli.main(["report", str(tmp_path), "--out", str(tmp_path / "report.png")]) == 0
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_a_report_has_a_picture_for_each_thing_that_is_there(tmp_path):
    write_run(tmp_path)
    decay, metrics, evaluations = (
        read_lines(tmp_path / f"{name}.jsonl") for name in ("decay", "metrics", "eval")
    )

    def titles(*series):
        return [axis.get_title() for axis in _drawn(*series).axes]

    refreshes, loss = ["mean alpha by module type", "mean weight decay by module type"], ["loss"]
    assert titles(decay, metrics, evaluations) == refreshes + loss
    assert titles(decay, [], []) == refreshes
    assert titles([], metrics, []) == loss
    assert titles([], [], evaluations) == loss


def test_a_report_has_no_picture_of_what_a_policy_leaves_out():
    def titles(module, metrics=()):
        refreshes = [{"step": 0, "modules": dict.fromkeys(NAMES, module)}] if module else []
        return [axis.get_title() for axis in _drawn(refreshes, list(metrics), []).axes]

    monitor = {"alpha": 3.0, "weight_decay": None}
    assert titles(monitor) == ["mean alpha by module type"]
    assert titles({"alpha": None, "weight_decay": 0.1}) == ["mean weight decay by module type"]
    rates = {"alpha": 3.0, "weight_decay": 0.1, "lr_ratio": 2.0}
    assert titles(rates) == ["mean alpha by module type", "mean learning rate by module type"]
    assert titles(None, [{"step": 1, "loss": 2.0, "mean_decay": 0.3}]) == ["mean weight decay", "loss"]


def test_report_of_empty_files_is_one_line(tmp_path, capsys):
    (tmp_path / "decay.jsonl").touch()
    (tmp_path / "metrics.jsonl").touch()
    assert cli.main(["report", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "found no line in decay.jsonl, metrics.jsonl or eval.jsonl" in line


def test_a_spectrums_picture_counts_layers(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: figures.append(figure))
    analysis = analyze(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))
    plot_spectrum([Row(name, (64, 64), analysis, 0.1) for name in NAMES], tmp_path / "x.png")
    assert {axis.get_xlabel() for axis in figures[0].axes} == {"layer"}


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
