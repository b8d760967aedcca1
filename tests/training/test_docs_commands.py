"""What docs/ shows of the trainer is taken: command lines, models, sections of recipes, a plan."""

from __future__ import annotations

import json
import re
import shlex

import pytest
import yaml

import train
from alphadecay_dist import cli
from alphadecay_dist.training.config import config_from_dict, load_config
from alphadecay_dist.training.tasks.language.model import config_of
from tests.training.runs import ROOT

DOCS = ROOT / "docs"
PAGES = {
    page.relative_to(DOCS).as_posix(): page.read_text(encoding="utf-8") for page in sorted(DOCS.rglob("*.md"))
}
PAGES["README.md"] = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf" *```{language}\n(.*?)```", PAGES[page].replace("\\\n", " "), re.DOTALL)


TRAINER = re.compile(
    r".*?(?:train\.py|train\.sbatch|alphadecay train|alphadecay_dist train) +(--.*?)(?: *#.*)?"
)
COMMANDS = [
    (page, found[1])
    for page in PAGES
    for block in blocks(page, "bash")
    for line in block.splitlines()
    if (found := TRAINER.fullmatch(line))
]


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_the_options_of_a_command_are_those_that_the_trainer_has(page, command):
    options = train.parse(shlex.split(command))
    load_config(options.recipe, options.overrides)


def test_the_models_and_the_section_of_the_trainers_page():
    configs = [config_of("of the page", json.loads(block), 1024) for block in blocks("trainer.md", "json")]
    assert [config.model_type for config in configs] == ["llama", "gpt2"]
    (section,) = blocks("trainer.md", "yaml")
    assert config_from_dict(yaml.safe_load(section)).logging.to == ("wandb", "tensorboard", "csv")


def test_the_plan_for_gpus_that_are_not_at_hand(capsys):
    (line,) = (
        line for block in blocks("plan.md", "bash") for line in block.splitlines() if "--profile" in line
    )
    assert cli.main(shlex.split(line)[1:]) == 0
    assert "refresh: at least " in capsys.readouterr().out


def test_commands_were_found():
    assert {page for page, _ in COMMANDS} >= {"README.md", "trainer.md", "data.md", "vision.md"}
