from __future__ import annotations

import json

import pytest
import yaml

from alphadecay_dist import cli
from alphadecay_dist.commands.cells import cell_of, read_table, show
from alphadecay_dist.errors import UserError
from alphadecay_dist.training.outputs.run_files import RunFiles
from tests.training.runs import ROOT

AXES = {
    "method": {"uniform": {"decay.policy": "uniform"}, "mean": {"decay.normalize": "mean"}},
    "decay.weight_decay": ["1e-5", 0.1],
    "train.seed": [0, 1],
}


@pytest.fixture
def table(tmp_path):
    def write(**changed):
        tree = {"recipe": "demo", "output": str(tmp_path / "runs"), "axes": AXES, **changed}
        path = tmp_path / "table.yaml"
        path.write_text(yaml.safe_dump(tree, sort_keys=False))
        return str(path)

    return write


def test_a_cell_is_a_run_of_its_own(table, tmp_path):
    cells = read_table(table(options={"train.steps": 7, "train.seed": 9}, deepspeed="ds_configs/zero1.json"))
    assert len(cells) == 8
    assert cells[6].place == {"method": "mean", "decay.weight_decay": "0.1", "train.seed": "0"}
    assert cells[6].arguments() == [
        *("--recipe", "demo", "--deepspeed", "ds_configs/zero1.json"),
        *("--output_dir", str(tmp_path / "runs" / "method=mean,weight_decay=0.1,seed=0")),
        *("--train.steps=7", "--train.seed=0", "--decay.normalize=mean", "--decay.weight_decay=0.1"),
    ]
    assert len({cell.folder for cell in cells}) == 8


def test_a_table_that_grows_keeps_its_directories(table):
    before = {cell.folder: cell.options for cell in read_table(table())}
    grown = {cell.folder: cell.options for cell in read_table(table(axes={**AXES, "train.seed": [2, 1, 0]}))}
    assert len(grown) == 12
    assert before.items() <= grown.items()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"axis": {}}, "unknown key 'axis'; did you mean 'axes'?"),
        ({"output": None}, "output: found None, expected a text"),
        ({"axes": {}}, "axes: found {}, expected axes"),
        ({"axes": {"seed": [0, 1]}}, "axes.seed: found {'seed': None}, expected section.key"),
        ({"axes": {"train.seed": 3}}, "axes.train.seed: found 3, expected a list"),
        ({"axes": {"method": {"uniform": ["decay.policy"]}}}, "axes.method.uniform: found ['decay.policy']"),
        ({"options": {"steps": 3}}, "options: found {'steps': 3}, expected section.key"),
        ({"axes": {"train.seed": [0, "0"]}}, "two cells would write to"),
    ],
)
def test_a_table_of_another_form_is_refused(table, changed, message):
    with pytest.raises(UserError) as error:
        read_table(table(**changed))
    assert message in str(error.value)


def test_only_its_cells_have_numbers(table):
    with pytest.raises(UserError, match="no cell 8, expected 0 to 7"):
        cell_of(table(), 8)
    with pytest.raises(UserError, match="no such file"):
        read_table("nowhere.yaml")


def test_the_table_tells_how_far_its_cells_are(table):
    path = table(axes={"decay.weight_decay": [0.1, -1], "train.seed": [0, 1]})
    for cell, perplexity in zip(read_table(path), (20.0, 23.0), strict=False):
        files = RunFiles(cell.folder)
        files.append("eval.jsonl", {"step": 300, "perplexity": perplexity})
        files.status("finished", 300, 0)
    RunFiles(read_table(path)[1].folder).status("preempted", 40, 75, "SIGTERM")
    assert show(read_table(path)).splitlines() == [
        "   0  weight_decay=0.1,seed=0  finished at update 300, perplexity 20.00",
        "   1  weight_decay=0.1,seed=1  preempted at update 40",
        "   2  weight_decay=-1,seed=0  error: decay.weight_decay: found -1.0, expected a number >= 0",
        "   3  weight_decay=-1,seed=1  error: decay.weight_decay: found -1.0, expected a number >= 0",
        "mean  weight_decay=0.1  perplexity 20.00, 1 seeds",
    ]
    RunFiles(read_table(path)[1].folder).status("finished", 300, 0)
    assert show(read_table(path)).endswith("mean  weight_decay=0.1  perplexity 21.50 +- 2.12, 2 seeds")


def test_the_command_gives_what_the_array_needs(table, capsys):
    path = table()
    assert cli.main(["table", path, "--array"]) == 0
    assert capsys.readouterr().out == "0-7\n"
    assert cli.main(["table", path, "--cell", "3"]) == 0
    assert json.loads(capsys.readouterr().out) == cell_of(path, 3).arguments()
    assert cli.main(["table", path, "--cell", "8"]) == 2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["{table}", "--train.seed=3"], "--train.seed: has a value of its own in each cell"),
        (
            ["{table}", "--decay.cautious"],
            "--decay.cautious: makes method=uniform and method=cautious the same run",
        ),
        (
            ["adamw:60m", "--decay.policy=awd"],
            "--decay.policy: makes method=uniform,weight_decay=0.1,seed=0 and",
        ),
        (["interval:60m", "--decay.interval=3"], "--decay.interval: makes method=interval_500,"),
        (["adamw:60m", "--run", "--deepspeed=nowhere.json"], "--deepspeed nowhere.json: no such file"),
        (["--preset=adamw"], "--size: missing, expected one of 60m, 130m"),
        (["{folder}"], "found a directory, expected a YAML file"),
        (["{table}", "--ranks=2"], "--ranks 2: belongs to --run"),
        (
            ["{table}", "--dry_run", "--format=csv"],
            "--format csv: is of results, which --dry_run prints none of",
        ),
    ],
)
def test_a_mistake_in_the_command_is_one_line_before_any_run(table, tmp_path, capfd, argv, message):
    axes = {"method": {"uniform": {}, "cautious": {"decay.cautious": True}}}
    path = table(axes=axes if "--decay.cautious" in argv else AXES)
    assert cli.main(["table", *(word.format(table=path, folder=tmp_path) for word in argv)]) == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert message in printed.err


def test_all_cells_of_the_table_that_comes_along_are_sound(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # none of them has begun here
    cells = read_table(str(ROOT / "slurm" / "table.yaml"))
    assert len(cells) == 24
    assert {cell.result()["state"] for cell in cells} == {"not begun"}
