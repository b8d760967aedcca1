"""A task of somebody else's, added as CONTRIBUTING.md says: registered, trained, evaluated, gone on with."""

from __future__ import annotations

import contextlib
import io

import pytest
import torch
import yaml

import train
from alphadecay_dist.checkpoint.reader import newest
from alphadecay_dist.checkpoint.restore import stored_tensors
from alphadecay_dist.commands import formats
from alphadecay_dist.errors import UserError
from alphadecay_dist.training.arguments import normalized
from alphadecay_dist.training.config import config_from_dict, load_config, to_yaml
from alphadecay_dist.training.field_help import listing
from alphadecay_dist.training.tasks.registry import DEFAULT, TASKS, Entry, task_named
from tests.multirank import run_ranks
from tests.training.runs import argv_of, left_behind, without_times
from tests.training.tasks.regression.options import RegressionOptions

HERE = "tests.training.tasks.regression"
ENTRY = Entry(f"{HERE}.task:Regression", f"{HERE}.options:RegressionOptions")
OPTIONS = [
    "--model.task=regression",
    "--model.name=64x2",
    "--train.steps=8",
    "--train.global_batch=24",
    "--train.micro_batch=6",
    "--train.dtype=float32",
    "--optimizer.lr=0.01",
    "--decay.interval=3",
    "--decay.weight_decay=0.5",
    "--checkpoint.keep=0",
    "--eval.every=4",
    "--logging.wandb=off",
    "--logging.sequences",
    "--task.noise=0.1",
]


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(TASKS, "regression", ENTRY)


def trained(argv):
    """The trainer with the task, on one rank: its exit code and what it says."""
    TASKS["regression"] = ENTRY
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = train.main(normalized(argv))
    return code, said.getvalue()


def run(world_size, engine, output, *more):
    """A run to its end; what it left behind, and what rank 0 said."""
    outcomes = run_ranks(trained, world_size, argv_of(engine, output, [*OPTIONS, *more]))
    assert [code for code, _ in outcomes] == [0] * world_size, outcomes[0][1]
    return left_behind(output), outcomes[0][1]


def tensors_of(output):
    checkpoint = newest(output / "checkpoints")
    return {
        (name, kind): tensor.read()
        for name, kinds in stored_tensors(checkpoint).items()
        for kind, tensor in kinds.items()
    }


def without_speed(run):
    metrics = ({k: v for k, v in line.items() if k != "pairs_per_second"} for line in run["metrics"])
    return without_times({**run, "metrics": list(metrics)})


def same_tensors(left, right):
    left, right = tensors_of(left), tensors_of(right)
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.launcher
@pytest.mark.ranks
@pytest.mark.parametrize(("engine", "world_size"), [("ddp", 1), ("fsdp2", 2), ("3", 2)])
def test_a_run_in_two_parts_is_the_unbroken_one(tmp_path, registered, engine, world_size):
    whole, said = run(world_size, engine, tmp_path / "whole")
    assert set(whole["metrics"][0]) == {
        "step", "loss", "lr", "grad_norm", "pairs", "pairs_per_second", "step_seconds", "mfu",
    }  # fmt: skip
    assert [line["pairs"] for line in whole["metrics"]] == [24 * step for step in range(1, 9)]
    assert [(line["step"], list(line)) for line in whole["eval"]] == [
        (step, ["step", "loss", "error", "close", "pairs"]) for step in (0, 4, 8)
    ]
    errors = [line["error"] for line in whole["eval"]]
    assert errors == sorted(errors, reverse=True)
    assert f"8 updates, validation error {' -> '.join(f'{error:.2f}' for error in errors)};" in said
    assert [line["step"] for line in whole["decay"]] == [0, 3, 6]
    decays = [module["weight_decay"] for module in whole["decay"][-1]["modules"].values()]
    assert len(decays) == len(set(decays)) == 2
    assert len({digest for line in whole["sequences"] for digest in line["sequences"]}) == 8 * 24
    assert {kind for _, kind in tensors_of(tmp_path / "whole")} == {
        "weight",
        "exp_avg",
        "exp_avg_sq",
        "average",
    }
    assert (tmp_path / "whole" / "width.txt").read_text() == "64"
    assert not (tmp_path / "whole" / "tokenizer.model").exists()
    formats.export_universal(formats.trained(tmp_path / "whole"), tmp_path / "exported")
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "192 pairs in all" in card
    assert f"| error | {errors[-1]:.6g} |" in card
    assert not any(word in card for word in ("library_name", "perplexity", "LLaMA"))

    broken = tmp_path / "broken"
    _, first = run(world_size, engine, broken, "--train.stop_after=5")
    assert "stopped, to be continued" in first
    resumed, second = run(world_size, engine, broken)
    assert "resumed from" in second
    assert without_speed(resumed) == without_speed(whole)
    assert same_tensors(broken, tmp_path / "whole")


@pytest.mark.launcher
@pytest.mark.ranks
def test_the_ranks_do_not_change_the_run_nor_its_evaluation(tmp_path):
    alone, _ = run(1, "ddp", tmp_path / "alone")
    shared, _ = run(2, "fsdp2", tmp_path / "shared", "--task.whole=false", "--train.steps=1")
    assert shared["metrics"][0]["loss"] == pytest.approx(alone["metrics"][0]["loss"], rel=1e-5)
    assert [line["pairs"] for line in shared["eval"]] == [12, 12]
    assert shared["sequences"] == alone["sequences"][:1]
    run(1, "ddp", tmp_path / "two", "--train.stop_after=4")
    run(2, "fsdp2", tmp_path / "two")  # on with other ranks and another engine
    found, expected = tensors_of(tmp_path / "two"), tensors_of(tmp_path / "alone")
    assert all(torch.allclose(found[key], expected[key], atol=1e-5) for key in expected)


@pytest.mark.launcher
@pytest.mark.ranks
def test_what_the_task_fixes_cannot_change_and_a_dry_run_shows_its_data(tmp_path):
    run(1, "ddp", tmp_path / "run", "--train.stop_after=2")
    argv = argv_of("ddp", tmp_path / "run", OPTIONS)
    for change, words in (
        ("--task.noise=0.2", "task.noise: found 0.2, the run in "),
        ("--model.name=64x3", "depth: found 3, the run was begun with 2"),
        ("--model.task=language", "model.task: found 'language', the run in "),
    ):
        others = [option for option in argv if not change.startswith(f"{option.partition('=')[0]}=")]
        if change == "--model.task=language":
            others = [option for option in others if not option.startswith(("--task.", "--model."))]
        ((code, said),) = run_ranks(trained, 1, [*others, change])
        assert code == 2, said
        assert words in said
    ((code, said),) = run_ranks(trained, 1, [*argv, "--dry_run"])
    assert code == 0, said
    for words in ("first answer: ", "task: regression", "noise: 0.1", "layers.1.linear 64 x 64: rank 0"):
        assert words in said


def test_its_fields_are_read_written_and_shown(registered):
    overrides = ["model.task=regression", "task.noise=1e-3", "task.whole"]
    config = load_config("demo", overrides)
    assert config.task == RegressionOptions(noise=1e-3)
    assert config_from_dict(yaml.safe_load(to_yaml(config))) == config
    assert "--task.average=0.5" in listing()
    assert normalized(["--task.whole", "--dry-run"]) == ["--task.whole", "--dry_run"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["task.nose=1"], "unknown key task.nose; did you mean 'noise'?"),
        (["task.average=1"], "task.average: found 1.0, expected a number in"),
        (["task.noise=much"], "task.noise: found 'much', expected float"),
        (["model.task=language", "task.noise=1"], "the task that model.task names has no fields of its own"),
        (
            ["model.task=regresion"],
            "model.task: found 'regresion', expected one of language, vision, regression",
        ),
    ],
)
def test_mistakes_in_them_are_one_line(registered, overrides, words):
    with pytest.raises(UserError) as caught:
        load_config("demo", ["model.task=regression", *overrides])
    assert words in str(caught.value)


def test_a_task_whose_packages_are_missing_names_its_extra(monkeypatch):
    monkeypatch.setitem(TASKS, "sound", Entry("no_such_package.task:Sound", extra="sound"))
    with pytest.raises(UserError, match=r"model.task sound: .*no_such_package.*alphadecay-dist\[sound\]"):
        task_named("sound")
    monkeypatch.setitem(TASKS, "sound", Entry("no_such_package.task:Sound"))
    with pytest.raises(ModuleNotFoundError):
        task_named("sound")


def test_a_torchvision_of_another_torch_is_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "misfit.py").write_text(
        "try:\n"
        "    raise RuntimeError('operator torchvision::nms does not exist')\n"
        "except RuntimeError as error:\n"
        "    raise ImportError('a module cannot be imported') from error\n"
    )
    monkeypatch.setitem(TASKS, "seen", Entry("misfit:Seen"))
    with pytest.raises(UserError, match=r"model\.task seen: .*torchvision is not made for this torch"):
        task_named("seen")


def test_a_recipe_without_a_task_is_language_and_has_no_section_of_it():
    config = load_config("demo")
    assert config.model.task == DEFAULT == "language"
    assert "task" not in yaml.safe_load(to_yaml(config))
    assert config_from_dict({"model": {"name": "llama_60m"}}).model.task == "language"
