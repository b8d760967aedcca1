"""docs/vision.md, as it is printed."""

from __future__ import annotations

import re

import pytest

from tests.training.runs import ROOT, launch, left_behind

pytestmark = pytest.mark.launcher
PAGE = (ROOT / "docs" / "vision.md").read_text()
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()
]


def follow(folder, *more):
    """The demo's run and its export, by the page's own commands."""
    trained, exported, loaded = (
        next(line for line in COMMANDS if word in line) for word in ("train.steps", "export", "create_model")
    )
    script = " && ".join([f"{trained} {' '.join(more)} --output_dir {folder}/run", exported, loaded])
    script = script.replace("runs/vit_demo", f"{folder}/run").replace("vit_demo_timm", f"{folder}/timm")
    return launch("bash", "-c", script.replace("# or --weights ema", ""))


def test_the_pages_commands_run(tmp_path):
    code, said = follow(tmp_path, "--train.steps=4")
    assert code == 0, said
    assert [line["step"] for line in left_behind(tmp_path / "run")["eval"]] == [0, 4]
    assert (tmp_path / "timm" / "config.json").is_file()


@pytest.mark.long
def test_the_demo_learns_the_digits(tmp_path):
    code, said = follow(tmp_path, "--train.steps=600")
    assert code == 0, said
    run = left_behind(tmp_path / "run")
    assert run["eval"][-1]["top1"] > 90
    assert run["eval"][-1]["ema_top1"] > 90
    assert len({module["weight_decay"] for module in run["decay"][-1]["modules"].values()}) == 16
