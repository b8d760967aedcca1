"""The tutorials are walked as they are printed: every command and every example, in their order."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

import pytest
import torch

from alphadecay_dist import AlphaDecay, cli, log_refresh, param_groups
from tests.models import Blocks
from tests.multirank import run_ranks
from tests.site import DOCS
from tests.training.test_docs_commands import COMMANDS as TRAINED

pytestmark = pytest.mark.launcher

SMALLER = ["--logging.to=none", "--train.global_batch=6", "--eval.tokens=2000"]  # a tenth of the work
BLOCK = re.compile(r"^( *)```(bash|python)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)


def blocks(page, language):
    """The blocks of a page in one language, without their indentation."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found = [(indent, code) for indent, kind, code in BLOCK.findall(text) if kind == language]
    return [re.sub(f"^{indent}", "", code, flags=re.MULTILINE) for indent, code in found]


def lines(page):
    """The commands of a page."""
    return [
        line
        for block in blocks(page, "bash")
        for line in block.replace("\\\n", " ").splitlines()
        if line.strip()
    ]


def in_folder(folder, words):
    os.chdir(folder)
    return cli.main(words)


def examples(folder, codes, names):
    """Run examples one after the other, in one namespace; what they leave in it that can be sent."""
    os.chdir(folder)
    torch.manual_seed(0)
    for code in codes:
        exec(code, names)
    groups = names["optimizer"].param_groups if "optimizer" in names else []
    return {group["module"]: group["weight_decay"] for group in groups}


def test_the_first_run(tmp_path, monkeypatch, capsys):
    install, *commands = lines("tutorial/first_run.md")
    assert install == "pip install -c constraints.txt -e '.[plot]'"
    assert [line.split()[:2][1] for line in commands] == ["train", "train", "spectrum", "report", "export"]
    for line in commands:
        program, *words = shlex.split(line)
        assert program == "alphadecay"
        words += SMALLER if words[0] == "train" else []
        assert run_ranks(in_folder, 1, str(tmp_path), words) == [0]
    text = (tmp_path / "runs" / "first" / "report.html").read_text()
    assert "model.layers.0.self_attn.q_proj" in text
    monkeypatch.chdir(tmp_path)
    decays, novel = blocks("tutorial/first_run.md", "python")
    exec(decays, {})
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 28
    assert rows[0].endswith("decay 0.067")
    assert rows[-1].endswith("decay 0.500")
    assert len((tmp_path / "runs" / "first" / "decay.jsonl").read_text().splitlines()) == 4
    exec(novel, {})
    assert "It is a truth" in capsys.readouterr().out


def test_your_own_trainer(tmp_path):
    trainer, loop, attached, watched = blocks("tutorial/own_trainer.md", "python")
    run_ranks(trainer_example, 1, str(tmp_path), trainer)
    found, more = run_ranks(loop_examples, 1, str(tmp_path), loop, [attached, watched])[0]
    for decays in (found, more):
        tuned = sorted(own for name, own in decays.items() if name != "untuned")
        assert tuned[0] == pytest.approx(0.1 * 2 / 3)
        assert tuned[-1] == pytest.approx(0.5)
    (line,) = lines("tutorial/own_trainer.md")
    assert run_ranks(in_folder, 1, str(tmp_path), shlex.split(line)[1:]) == [0]
    assert (tmp_path / "runs" / "loop" / "report.html").exists()


def trainer_example(folder, code):
    os.chdir(folder)
    names = {}
    exec(code, names)
    decays = sorted(module.weight_decay for module in names["decay"].decay.modules.values())
    assert decays[0] >= 0.1 * 2 / 3 - 1e-9  # a fused weight has the mean of its parts
    assert decays[-1] <= 0.5 + 1e-9
    assert decays[-1] > 4 * decays[0]
    names["args"].max_steps = 22
    names["trainer"].train(resume_from_checkpoint=True)
    assert names["trainer"].state.global_step == 22


def loop_examples(folder, loop, others):
    found = examples(folder, [loop], {})
    names = {}
    first = examples(folder, [others[0], "decay.refresh()"], names)
    examples(folder, [others[1]], names)
    assert {group["module"]: group["weight_decay"] for group in names["optimizer"].param_groups} == first
    return found, first


def test_your_own_cluster(capsys):
    """What has to be started on a cluster is read by the parsers, below and in tests/training."""
    plan = next(line for line in lines("tutorial/own_cluster.md") if line.startswith("alphadecay plan"))
    assert cli.main(shlex.split(plan)[1:]) == 0
    assert "168 matrices on 16 of 16 ranks, zero3" in capsys.readouterr().out
    assert sum(page == "tutorial/own_cluster.md" for page, _ in TRAINED) >= 4


def of_a_script():
    """What pages call theirs: a model, batches of it."""
    torch.manual_seed(0)
    names = {"torch": torch, "AlphaDecay": AlphaDecay, "param_groups": param_groups, "model": Blocks()}
    return names | {"batches": [torch.randn(4, 64) for _ in range(3)]}


def test_the_examples_of_the_other_pages(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (home,) = blocks("index.md", "python")
    names = of_a_script()
    decays = examples(tmp_path, [home], names)
    assert sorted(decays.values())[-1] == pytest.approx(0.5)
    (resume,) = blocks("concepts/resume.md", "python")
    names["optimizer"].param_groups[0]["weight_decay"] = 7.0  # as another's load may leave it
    assert examples(tmp_path, [resume], names) == decays
    (settings,) = blocks("settings.md", "python")
    assert set(examples(tmp_path, [settings], of_a_script()).values()) == {0.1}
    one, watching = blocks("methods.md", "python")
    names = of_a_script()
    examples(tmp_path, [settings, one], names)
    assert names["decay"].settings.policy == "adadecay"
    examples(tmp_path, [watching], names | {"log_refresh": log_refresh})
    (line,) = (tmp_path / "runs" / "mine" / "decay.jsonl").read_text().splitlines()
    assert "stable_rank" in line
    (spectrum,) = blocks("concepts/spectrum.md", "python")
    exec(spectrum, {})
    light, heavy = map(float, capsys.readouterr().out.split())
    assert heavy == pytest.approx(1 + 1 / 1.6, abs=0.03)
    assert light > heavy + 0.4


PAGES = [page.relative_to(DOCS).as_posix() for page in sorted(DOCS.rglob("*.md"))]
ALPHADECAY = re.compile(r"(?:.*--no.python )?alphadecay ((?!train)\w+ .*?)(?: *#.*| *\| .*)?$")
CALLS = [
    (page, found[1])
    for page in [*PAGES, "../README.md"]
    for line in lines(page)
    if (found := ALPHADECAY.match(line))
]


@pytest.mark.parametrize(("page", "call"), CALLS)
def test_a_command_has_the_options_that_a_page_gives_it(page, call):
    words = cli.normalized([word.replace("PATH", "runs/x") for word in shlex.split(call)])
    args, rest = cli._parser(words).parse_known_args(words)
    args.left_over(rest)


HERE = "tests/site/test_tutorials.py"
RUN_BY = {  # what runs the examples of each page
    "concepts/resume.md": HERE,
    "concepts/spectrum.md": HERE,
    "engines.md": "tests/test_engines_doc.py",
    "export.md": "tests/commands/test_export_universal.py",
    "hosts.md": "tests/integrations/test_docs.py",
    "index.md": HERE,
    "methods.md": HERE,
    "muon.md": "tests/optimizers/test_docs.py",
    "settings.md": HERE,
    "spectral_condition.md": "tests/condition/test_docs.py",
    "tutorial/first_run.md": HERE,
    "tutorial/own_trainer.md": HERE,
}


def test_every_example_has_a_test():
    assert {page for page in PAGES if blocks(page, "python")} == set(RUN_BY)
    for page, test in RUN_BY.items():
        assert page.rpartition("/")[2] in (DOCS.parent / test).read_text(encoding="utf-8"), page


def test_calls_were_found():
    assert "../README.md" in dict(CALLS)
    assert {call.split()[0] for _, call in CALLS} >= {"plan", "spectrum", "report", "data", "doctor", "table"}


def test_the_picture_is_drawn_from_a_run(tmp_path):
    model = torch.nn.Module()
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    model.layers = torch.nn.ModuleList(
        [torch.nn.ModuleDict({name: torch.nn.Linear(64, 64) for name in names})]
    )
    model.base = torch.nn.ModuleDict({"model": torch.nn.ModuleDict({"layers": model.layers})})
    model = model.base
    optimizer = torch.optim.AdamW(param_groups(model, weight_decay=0.1))
    decay = AlphaDecay(model, optimizer, weight_decay=0.1, interval=5, histograms=True)
    log_refresh(tmp_path, decay.refresh())
    script = DOCS / "pictures" / "spectrum.py"
    subprocess.run([sys.executable, script, tmp_path, tmp_path / "picture"], check=True, timeout=120)
    for scheme in ("light", "dark"):
        text = (tmp_path / f"picture_{scheme}.svg").read_text()
        assert "<svg" in text
        assert (DOCS / "pictures" / f"spectrum_{scheme}.svg").exists()
