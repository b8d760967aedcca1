"""The published table of the vision transformer: its cells as recipes, what they cost, and what it shows."""

from __future__ import annotations

import csv
import io

import pytest

from alphadecay_dist import cli
from alphadecay_dist.commands.cell_costs import costs_of
from alphadecay_dist.commands.published import Choice, published_table
from alphadecay_dist.commands.results import render, rows_of
from alphadecay_dist.training.config import load_config, to_yaml
from alphadecay_dist.training.optimizer import learning_rate
from alphadecay_dist.training.outputs.run_files import RunFiles
from tests.training.runs import ROOT

pytest.importorskip("timm", reason="the extra vision is not installed (docs/vision.md)")
EPOCH, EPOCHS = 1_281_167 // 384, 120


@pytest.fixture
def table(tmp_path):
    """Uniform and AlphaDecay at one decay, the second finished."""
    chosen = published_table(
        Choice("vit", "tiny"), methods=["uniform", "alphadecay"], decays=["1e-6"], output=str(tmp_path)
    )
    _, cell = chosen.cells.values()
    files = RunFiles(cell.folder)
    files.text("config.yaml", to_yaml(cell.config()))
    for step, top1 in ((EPOCH, 12.5), (EPOCHS * EPOCH, 67.75)):
        line = {"loss": 1.0, "top1": top1, "top5": 88.0, "ema_top1": top1 + 0.25, "ema_top5": 88.5}
        files.append("eval.jsonl", {"step": step, **line})
    files.append("metrics.jsonl", {"step": 1, "step_seconds": 1800.0})
    files.status("finished", EPOCHS * EPOCH, 0)
    return chosen


def test_the_options_of_every_cell_load_as_a_recipe():
    for cell in published_table(Choice("vit", "tiny")).cells.values():
        config = cell.config()
        assert (config.model.task, config.model.name) == ("vision", "deit_tiny_patch16_224")
        assert (config.decay.preset, config.decay.follow) == ("reference_vit", ("bias",))
        assert config.decay.policy == cell.options["decay.policy"]
        assert config.decay.weight_decay == cell.options["decay.weight_decay"]
        due = [update for update in range(config.train.steps) if config.decay.due(update)]
        if cell.place["method"] in ("alphadecay", "adadecay"):
            assert due == [epoch * EPOCH for epoch in range(EPOCHS)]


def test_the_script_for_slurm_is_a_run_of_the_recipe():
    *_, last = (ROOT / "slurm" / "vit_tiny.sbatch").read_text().splitlines()
    overrides = [word[2:] for word in last.split() if word.startswith("--") and "=" in word]
    assert overrides == ["task.workers=12"]
    assert load_config("vit_tiny", overrides).task.workers == 12


def test_the_learning_rate_is_the_published_one():
    config = next(iter(published_table(Choice("vit", "tiny")).cells.values())).config()
    steps, warmup = config.train.steps, 20 * EPOCH
    rates = [learning_rate(update, steps, config.optimizer) for update in (1, 2, warmup + 1, steps + 1)]
    assert rates == pytest.approx([0, 4e-3 / warmup, 4e-3, 4e-9], rel=1e-6)


def test_the_dry_run_counts_images(capsys):
    assert cli.main(["table", "--preset", "vit", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ViT on ImageNet-1K (Table 5): DeiT-tiny/16, adam, as in the reference"
    assert lines[1].split()[:3] == ["cell", "updates", "images"]
    assert lines[2].split()[1:4] == ["method=none,weight_decay=0,seed=0", "400320", "1.54e+08"]
    assert lines[11].startswith("9 cells, at most 1.38e+09 images, ")
    hours = next(line for line in lines if line.startswith("hours: "))
    assert "those of LLaMA-135M (of this size none are published)" in hours
    assert hours.endswith("they were of bfloat16, and float32 takes longer")
    assert not any(line.startswith("tokens: ") for line in lines)
    assert any(
        line.startswith("calendar: refreshes come before the first update of every epoch") for line in lines
    )


def test_hours_follow_from_the_work_of_the_model(table):
    uniform, alphadecay = (costs_of(table)[number] for number in table.cells)
    known = costs_of(published_table(Choice("adam", "130m"), methods=["uniform"], decays=["1e-5"]))
    (language,) = known.values()
    # 2 flops a weight and token in the forward, and twice as many in the backward; attention's two products
    tokens, width = 197, 192
    blocks = 12 * (6 * (12 * width**2) * tokens + 3 * 2 * 2 * tokens**2 * width)
    image = blocks + 6 * (196 * 768 * width + 1000 * width)
    sequence = 256 * (6 * (134.11e6 - 24.576e6) + 12 * 12 * 768 * 256)
    expected = EPOCHS * EPOCH * 384 * image / (20_000 * 512 * sequence)
    assert uniform.hours / language.hours == pytest.approx(expected, rel=0.02)
    assert uniform.hours < alphadecay.hours < 1.1 * uniform.hours


def test_both_accuracies_stand_beside_the_published_one(table):
    _, row = rows_of(table)
    assert row.difference("top1") == pytest.approx(67.75 - 67.73)
    assert row.difference("ema_top1") == pytest.approx(68.0 - 67.73)
    lines = render(table, "markdown").splitlines()
    assert lines[2] == (
        "| method | weight_decay | top-1 in %, higher is better | published | difference "
        "| top-1 of the moving average | published | difference | hours here | finished | missing |"
    )
    assert lines[4] == "| uniform | 1e-6 |  | 66.41 |  |  | 66.41 |  |  | 0 of 1 | seed 0: not begun |"
    assert lines[5] == (
        "| alphadecay | 1e-6 | 67.750 | 67.73 | +0.020 | 68.000 | 67.73 | +0.270 | 0.500 | 1 of 1 |  |"
    )
    assert any(line.startswith("- numbers: the paper does not say whether") for line in lines)
    assert "not the table's settings" not in "\n".join(lines)
    _, found = csv.DictReader(io.StringIO(render(table, "csv")))
    assert (float(found["top1"]), float(found["ema_top1"])) == (67.75, 68.0)
    assert (float(found["top1_published"]), float(found["ema_top1_published"])) == (67.73, 67.73)


def test_a_run_with_other_augmentation_is_named(table):
    _, cell = table.cells.values()
    text = to_yaml(cell.config())
    assert "drop_path: 0.1" in text
    RunFiles(cell.folder).text("config.yaml", text.replace("drop_path: 0.1", "drop_path: 0.3"))
    assert f"({cell.name}): task.drop_path 0.3, not 0.1" in render(table, "markdown")
