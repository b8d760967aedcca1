"""lm-evaluation-harness reads an export: docs/evaluate.md's local task, by the command that stands there."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alphadecay_dist import cli
from tests.commands.test_export import trained_run

pytestmark = [pytest.mark.ranks, pytest.mark.launcher]

PAGE = (Path(__file__).parents[2] / "docs" / "evaluate.md").read_text(encoding="utf-8")
SEVEN = ("arc_challenge", "arc_easy", "piqa", "hellaswag", "openbookqa", "winogrande", "boolq")
HOMES = ("arc", "piqa", "hellaswag", "openbookqa", "winogrande", "super_glue/boolq")  # in the harness


def printed(kind):
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)


def commands():
    """All that the page prints, a list of words each."""
    lines = "".join(printed("bash")).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines]


def evaluated(folder):
    """Results and questions of the page's last command."""
    (folder / "tasks").mkdir()
    (folder / "tasks" / "novels.yaml").write_text(printed("yaml")[0])
    (folder / "tasks" / "novels.jsonl").write_text(printed("json")[0])
    own = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    own["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        commands()[-1],
        cwd=folder,
        env=os.environ | own,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = folder.glob("zero_shot/*/results_*.json")
    (samples,) = folder.glob("zero_shot/*/samples_novels_*.jsonl")
    return json.loads(results.read_text()), [json.loads(line) for line in samples.read_text().splitlines()]


def log_likelihood(model, tokenizer, begin, end):
    """Of the end after the beginning, in nats."""
    ids = tokenizer(f"{begin} {end}", return_tensors="pt").input_ids
    known = len(tokenizer(begin).input_ids)
    with torch.no_grad():
        logs = model(ids).logits[0, :-1].log_softmax(-1)  # (s - 1, v)
    return float(logs.gather(1, ids[0, 1:, None])[known - 1 :].sum())


def right(question, scores):
    """Whether the likeliest end is the right one."""
    return scores.index(max(scores)) == question["right"]


def test_the_harness_gives_what_transformers_gives(tmp_path):
    run, _ = trained_run(tmp_path, tied=False)
    export = ["export", str(run), *commands()[-3][3:]]
    assert cli.main([*export[:-1], str(tmp_path / export[-1])]) == 0
    results, samples = evaluated(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "demo_hf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "demo_hf")
    questions = [json.loads(line) for line in printed("json")[0].splitlines()]
    assert [sample["doc"] for sample in samples] == questions
    plain, normed = [], []
    for question, sample in zip(questions, samples, strict=True):
        ends = question["ends"]
        scores = [log_likelihood(model, tokenizer, question["begin"], end) for end in ends]
        assert [float(answer[0]) for answer in sample["filtered_resps"]] == pytest.approx(scores, rel=1e-5)
        plain.append(right(question, scores))
        normed.append(right(question, [score / len(end) for score, end in zip(scores, ends, strict=True)]))
    found = results["results"]["novels"]
    assert found["acc,none"] == pytest.approx(sum(plain) / len(questions))
    assert found["acc_norm,none"] == pytest.approx(sum(normed) / len(questions))
    assert plain != normed, "the two would be told apart by no question"


def test_the_page_has_the_papers_seven_tasks_and_the_harness_knows_them():
    (command,) = [words for words in commands() if words[0] == "lm_eval" and "boolq" in words[-1]]
    assert tuple(command[-1].split(",")) == SEVEN
    tasks = Path(find_spec("lm_eval").origin).parent / "tasks"
    texts = [path.read_text() for home in HOMES for path in (tasks / home).glob("**/*.yaml")]
    assert set(SEVEN) <= {name for text in texts for name in re.findall(r"^task: (\w+)$", text, re.MULTILINE)}
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if "| `" in line
    ]
    assert [row[1].strip("`") for row in rows] == list(SEVEN)
    (means,) = [line.strip("|").split("|") for line in PAGE.splitlines() if line.startswith("| mean")]
    for column in range(2, 6):
        mean = sum(float(row[column]) for row in rows) / len(rows)
        assert float(means[column]) == pytest.approx(mean, abs=0.006)
