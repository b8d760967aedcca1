"""The command that repeats the runs of docs/results.md, on two of its cells made tiny."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

from alphadecay_dist.training.data.corpus import demo_files
from alphadecay_dist.training.outputs.run_files import read_status
from tests.training.runs import ROOT, SIZES, launch, left_behind

TABLE = "docs/results/english_methods.yaml"
TINY = {
    "train.global_batch": 4,
    "train.micro_batch": 4,
    "train.seq_len": 32,
    "train.steps": 8,
    "decay.interval": 4,
    "checkpoint.every": 4,
    "eval.every": 0,
    "eval.tokens": 500,
}


@pytest.fixture
def folder(tmp_path):
    """Two cells of the table, a tiny model in place of its own, and the demo's text for the corpus."""
    shutil.copytree(ROOT / "docs" / "results", tmp_path / "docs" / "results")
    (tmp_path / "docs" / "results" / "llama_2m.json").write_text(
        json.dumps({**SIZES, "max_position_embeddings": 256})
    )
    table = yaml.safe_load((tmp_path / TABLE).read_text())
    methods = table["axes"]["method"]
    table["axes"] = {
        "method": {name: methods[name] for name in ("none", "alphadecay")},
        "decay.weight_decay": [0.5],
        "train.seed": [0],
    }
    (tmp_path / TABLE).write_text(yaml.safe_dump(table, sort_keys=False))
    (tmp_path / "data" / "english").mkdir(parents=True)
    for file, name in zip(demo_files(), ("train", "validation"), strict=True):
        shutil.copy(file, tmp_path / "data" / "english" / f"{name}.jsonl.gz")
    return tmp_path


@pytest.mark.launcher
def test_the_command_trains_goes_on_and_writes_the_numbers(folder):
    def repeat(*more):
        options = [*(f"--{name}={value}" for name, value in TINY.items()), *more]
        return launch("docs/results/english.sh", TABLE, *options, folder=folder)

    numbers = (folder / TABLE).with_suffix(".json")
    numbers.write_text("of an earlier run")
    code, said = repeat("--train.stop_after=4")
    assert code == 75, said
    ends = [read_status(cell) for cell in (folder / "runs" / "english_methods").iterdir()]
    assert [(end["state"], end["step"]) for end in ends] == [("preempted", 4)] * 2
    assert numbers.read_text() == "of an earlier run"
    code, said = repeat()
    assert code == 0, said
    assert said.count("resumed from") == 2
    rows = json.loads(numbers.read_text())["rows"]
    assert [row["place"]["method"] for row in rows] == ["none", "alphadecay"]
    # A method that was ignored would be seen.
    assert len({row["numbers"]["perplexity"]["mean"] for row in rows}) == 2
    alphadecay, none = sorted((folder / "runs" / "english_methods").iterdir())
    for row, cell, refreshes in zip(rows, (none, alphadecay), (1, 2), strict=True):
        found = left_behind(cell)
        assert row["numbers"]["perplexity"]["mean"] == pytest.approx(found["eval"][-1]["perplexity"])
        assert len(found["decay"]) == refreshes
