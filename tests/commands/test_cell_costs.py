"""What a table says before it is run."""

from __future__ import annotations

import re

import pytest

from alphadecay_dist import cli
from alphadecay_dist.commands.cell_costs import costs_of
from alphadecay_dist.commands.published import Choice, published_table
from alphadecay_dist.commands.table import ranges
from alphadecay_dist.training.outputs.run_files import RunFiles


def costs(*choice, **options):
    table = published_table(Choice(*choice), **options)
    return {cell.place["method"]: costs_of(table)[number] for number, cell in table.cells.items()}


@pytest.mark.parametrize(
    ("size", "published"),
    [
        ("60m", {"uniform": 1.4, "interval_250": 1.4, "interval_100": 1.5, "interval_50": 1.6,
                 "interval_1": 9.3}),
        ("130m", {"uniform": 5.6, "interval_500": 5.7, "interval_250": 5.9, "interval_100": 6.3,
                  "interval_50": 7.1, "interval_1": 74.5}),
    ],
)  # fmt: skip
def test_the_estimate_gives_the_published_hours_back(size, published):
    found = costs("interval", size)
    for method, hours in published.items():
        assert found[method].hours == pytest.approx(hours, rel=0.03), method


def test_other_sizes_are_scaled_by_the_work():
    known, larger = (costs("adam", size, methods=["uniform"])["uniform"] for size in ("130m", "350m"))
    tokens = 60_000 * 512 * 256
    assert (larger.steps, larger.targets, larger.counted) == (60_000, tokens, "tokens")
    # 6 flops a weight and token (all but the embedding's), and attention's 12 x layers x width x length
    assert larger.hours / known.hours == pytest.approx(
        3
        * (6 * (367.97e6 - 32.768e6) + 12 * 24 * 1024 * 256)
        / (6 * (134.11e6 - 24.576e6) + 12 * 12 * 768 * 256),
        rel=1e-3,
    )


def test_what_is_done_is_not_to_go(tmp_path):
    table = published_table(Choice("adamw", "60m"), methods=["uniform"], decays=["0.1"], output=str(tmp_path))
    (number,) = table.cells
    before = costs_of(table)[number]
    RunFiles(table.cells[number].folder).status("preempted", 2_500, 75, "SIGTERM")
    after = costs_of(table)[number]
    assert (before.left, after.left) == (before.hours, pytest.approx(0.75 * before.hours))


def test_the_dry_run_prints_cells_tokens_hours_and_their_source(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--methods=uniform,alphadecay", "--decays=0.1,0.05"]
    assert cli.main(["table", "--preset", "adamw", "--size", "60m", "--dry-run", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r" +1  method=uniform,weight_decay=0\.1,seed=0 +10000 +1\.31e\+09 +1\.4  not begun", lines[2]
    )
    assert lines[6].startswith("4 cells, at most 5.24e+09 tokens, 5.63 A100 hours, 5.63 of them to go")
    assert lines[7] == "tokens: updates x sequences x their length, with padding; the paper says 1e+09 a run"
    assert lines[8].startswith(
        "hours: an estimate, from the published ones of an A100 (1.4 of LLaMA-60M, 5.6 of"
    )
    assert any(line.startswith("masters:") for line in lines)
    assert not list(tmp_path.iterdir())


def test_the_array_names_the_chosen_cells_and_a_cell_is_a_command_line(capsys):
    assert cli.main(["table", "adamw:60m", "--array"]) == 0
    assert (
        cli.main(["table", "adamw:60m", "--methods=uniform,alphadecay", "--decays=0.1,0.05", "--array"]) == 0
    )
    assert capsys.readouterr().out == "0-12\n1-2,10-11\n"
    assert cli.main(["table", "adamw:60m:reference", "--cell", "13"]) == 2
    assert "no cell 13, expected one of 0-12" in capsys.readouterr().err
    assert ranges([7, 3, 1, 2]) == "1-3,7"
