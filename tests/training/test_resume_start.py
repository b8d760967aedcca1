"""How a run begins, where an earlier start was killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from alphadecay_dist.training import resume
from alphadecay_dist.training.config import load_config
from alphadecay_dist.training.outputs.run_files import EVAL, RunFiles


@pytest.mark.parametrize("removals", range(9))
def test_what_a_killed_start_left_of_a_run_to_be_cleared_is_cleared_by_the_next(
    tmp_path, monkeypatch, removals
):
    """A line in eval.jsonl of before the first update would stay, and come a second time."""
    files = RunFiles(tmp_path)
    for name in ("config.yaml", "tokenizer.model", "inputs.json", "wandb_id"):
        files.text(name, "")
    for name in ("metrics.jsonl", EVAL, "decay.jsonl", "sequences.jsonl"):
        files.append(name, {"step": 0})
    files.status("running", 0)
    (tmp_path / "checkpoints" / "step-00000004").mkdir(parents=True)
    unlink, left = Path.unlink, [None] * removals

    def killed(path, missing_ok=False):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        resume.clear(tmp_path, ["tokenizer.model"])
    monkeypatch.undo()
    begin = resume.decide_start(tmp_path, load_config("demo", []), "auto", False, {})
    assert begin.clear
    resume.clear(tmp_path, ["tokenizer.model"])
    assert list(tmp_path.iterdir()) == []
