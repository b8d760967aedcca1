"""Results of a table: statistics over seeds, what is missing, and the three formats."""

from __future__ import annotations

import csv
import io
import json
import statistics

import pytest

from alphadecay_dist import cli
from alphadecay_dist.commands.comparable import data_of
from alphadecay_dist.commands.published import Choice, published_table
from alphadecay_dist.commands.results import render, rows_of, statistic
from alphadecay_dist.errors import UserError
from alphadecay_dist.training.config import to_yaml
from alphadecay_dist.training.outputs.run_files import RunFiles


@pytest.fixture
def table(tmp_path):
    """Two methods at one decay with three seeds: one finished thrice; one finished once, stopped, failed."""
    chosen = published_table(
        Choice("seeds", "130m", seeds=(5, 6, 7)),
        methods=["uniform", "adadecay", "alphadecay"],
        decays=["5e-6"],
        output=str(tmp_path),
    )
    values = {
        ("alphadecay", "5"): (22.5, 23.25),
        ("alphadecay", "6"): (22.75, 23.5),
        ("alphadecay", "7"): (22.25, 23.0),
        ("uniform", "5"): (23.125, 24.0),
    }
    for cell in chosen.cells.values():
        key = cell.place["method"], cell.place["train.seed"]
        files = RunFiles(cell.folder) if key in values or key[0] == "uniform" else None
        if key in values:
            files.text("config.yaml", to_yaml(cell.config()))
            published, exact = values[key]
            for step, factor in ((0, 2), (20_000, 1)):
                line = {"perplexity": exact * factor, "perplexity_as_published": published * factor}
                files.append("eval.jsonl", {"step": step, "loss": 1.0, **line})
            for step in (1, 2):
                files.append("metrics.jsonl", {"step": step, "step_seconds": 900.0})
            files.status("finished", 20_000, 0)
        elif key == ("uniform", "6"):
            files.status("preempted", 400, 75, "SIGTERM")
        elif key == ("uniform", "7"):
            files.status("failed", 7, 1, "update 8: loss nan | inf")
    return chosen


def test_mean_and_standard_deviation_are_those_of_a_sample():
    values = [22.5, 22.75, 22.25]
    assert statistic(values).mean == pytest.approx(22.5)
    assert statistic(values).deviation == pytest.approx(statistics.stdev(values)) == pytest.approx(0.25)
    assert (statistic([3.0]).mean, statistic([3.0]).deviation, statistic([3.0]).runs) == (3.0, None, 1)


def test_seeds_are_one_row_and_only_finished_runs_count(table):
    uniform, adadecay, alphadecay = rows_of(table)
    assert uniform.place == {"method": "uniform", "decay.weight_decay": "5e-6"}
    assert uniform.numbers["perplexity_as_published"].mean == 23.125  # of one seed
    assert uniform.missing[0] == "seed 6: preempted at update 400 of 20000"
    assert uniform.missing[1] == "seed 7: failed at update 7 of 20000 (update 8: loss nan | inf)"
    assert adadecay.numbers == {}
    assert len(adadecay.missing) == 3
    found = alphadecay.numbers["perplexity_as_published"]
    assert (found.mean, found.deviation, found.runs) == (pytest.approx(22.5), pytest.approx(0.25), 3)
    assert alphadecay.difference("perplexity_as_published") == pytest.approx(22.5 - 22.54)
    assert alphadecay.numbers["hours"].mean == pytest.approx(0.5)
    assert alphadecay.missing == []


def test_markdown_has_ours_beside_the_published_numbers_and_what_is_missing(table):
    lines = render(table, "markdown").splitlines()
    assert lines[0] == "## Adam, six seeds (Table 13): LLaMA-135M, adam, as in the paper"
    assert lines[2] == (
        "| method | weight_decay | perplexity, as published | published | difference | perplexity, exact "
        "| hours here | finished | missing |"
    )
    assert lines[4] == (
        "| uniform | 5e-6 | 23.125 | 23.12 ± 0.03 | +0.005 | 24.000 | 0.500 | 1 of 3 | seed 6: preempted at "
        "update 400 of 20000; seed 7: failed at update 7 of 20000 (update 8: loss nan \\| inf) |"
    )
    assert lines[6] == (
        "| alphadecay | 5e-6 | 22.500 ± 0.250 | 22.54 ± 0.03 | -0.040 | 23.250 ± 0.250 | 0.500 ± 0.000 "
        "| 3 of 3 |  |"
    )
    columns = {line.replace("\\|", "").count("|") for line in lines[2:7]}
    assert columns == {10}
    assert any(line.startswith("- masters: fp32 masters are kept") for line in lines)


def test_csv_reads_back(table):
    rows = list(csv.DictReader(io.StringIO(render(table, "csv"))))
    assert [row["method"] for row in rows] == ["uniform", "adadecay", "alphadecay"]
    last = rows[-1]
    assert float(last["perplexity_as_published"]) == pytest.approx(22.5)
    assert float(last["perplexity_as_published_std"]) == pytest.approx(0.25)
    assert float(last["perplexity_as_published_published"]) == 22.54
    assert float(last["perplexity_as_published_published_std"]) == 0.03
    assert float(last["perplexity"]) == pytest.approx(23.25)
    assert (last["finished"], last["cells"], last["missing"]) == ("3", "3", "")
    assert rows[1]["perplexity"] == ""


def test_json_has_rows_cells_and_notes(table):
    tree = json.loads(render(table, "json"))
    row = tree["rows"][-1]
    assert row["numbers"]["perplexity"] == {"mean": 23.25, "deviation": 0.25, "runs": 3}
    assert row["published"] == {"perplexity_as_published": {"mean": 22.54, "deviation": 0.03}}
    assert row["difference"]["perplexity_as_published"] == pytest.approx(-0.04)
    assert [cell["state"] for cell in tree["cells"]][:3] == ["finished", "preempted", "failed"]
    assert tree["notes"] == list(table.notes)


def test_runs_with_other_settings_than_the_tables_are_named(table):
    cell = table.cells[min(table.cells)]
    config = cell.config()
    assert "not the table's settings" not in render(table, "markdown")
    text = to_yaml(config).replace("steps: 20000", "steps: 20").replace("source: c4", "source: demo")
    RunFiles(cell.folder).text("config.yaml", text)
    lines = render(table, "markdown").splitlines()
    assert (
        f"- not the table's settings ({cell.name}): data.source demo, not c4, train.steps 20, not 20000"
        in lines
    )


def test_runs_that_read_other_data_under_the_same_name_are_named(table):
    def begun(cell, digest):
        marks = {"data.source": {"a.jsonl.gz": {"bytes": 5, "sha256": digest}}}
        inputs = {"tokenizer": "t", "revision": None, "data": marks}
        RunFiles(cell.folder).text("inputs.json", json.dumps(inputs))
        return data_of(cell)

    cells = [cell for cell in table.cells.values() if cell.place["method"] == "alphadecay"]
    first, _, last = [begun(cell, digest) for cell, digest in zip(cells, "aab", strict=True)]
    (line,) = [line for line in render(table, "markdown").splitlines() if "not the same data" in line]
    assert line == (
        "- not the same data under the name c4, so compare within each alone: "
        f"{first} ({cells[0].name}, {cells[1].name}); {last} ({cells[2].name})"
    )
    begun(cells[2], "a")
    assert "not the same data" not in render(table, "markdown")
    tree = json.loads(render(table, "json"))
    assert [cell["data"] for cell in tree["cells"]] == [None] * 6 + [first] * 3


def test_a_broken_record_of_a_runs_data_is_one_line(table):
    cell = table.cells[max(table.cells)]
    RunFiles(cell.folder).text("inputs.json", "[]")
    with pytest.raises(UserError, match=r"inputs\.json: cannot be read .*, expected what alphadecay train"):
        render(table, "json")


def test_an_evaluation_of_an_earlier_version_has_no_number_as_published(table):
    cell = table.cells[max(table.cells)]
    (cell.folder / "eval.jsonl").write_text(json.dumps({"step": 20_000, "perplexity": 23.0}) + "\n")
    row = rows_of(table)[-1]
    assert (row.numbers["perplexity"].runs, row.numbers["perplexity_as_published"].runs) == (3, 2)


def test_a_table_of_ones_own_has_the_formats_too(tmp_path, capsys):
    path = tmp_path / "own.yaml"
    path.write_text(f"recipe: demo\noutput: {tmp_path}/runs\naxes: {{train.seed: [0, 1]}}\n")
    assert cli.main(["table", str(path), "--format=csv"]) == 0
    assert capsys.readouterr().out == "finished,cells,missing\n0,2,seed 0: not begun; seed 1: not begun\n"
    assert cli.main(["table", str(path), "--way=paper"]) == 2
    assert "--way: belongs to a preset" in capsys.readouterr().err
