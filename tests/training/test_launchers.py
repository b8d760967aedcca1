"""The trainer through the real launchers, and what a user sees."""

from __future__ import annotations

import json

import pytest
from transformers import LlamaForCausalLM

from alphadecay_dist.spectral import analyze
from alphadecay_dist.training.tasks.language import model as models
from tests.multirank import run_ranks
from tests.ports import free_port
from tests.training.errors import error_of_ranks, main_and_output
from tests.training.runs import argv_of, launch, left_behind, tiny_options, train_on


@pytest.mark.launcher
def test_deepspeed_on_two_ranks_with_wandb(tmp_path):
    output = tmp_path / "run"
    command = ["deepspeed", "--num_gpus", 2, "--master_port", free_port(), "train.py"]
    command += ["--deepspeed", "ds_configs/zero3.json", "--output_dir", output]
    command += [*tiny_options(tmp_path, train__steps=12, decay__interval=4), "--logging.wandb=auto"]
    code, first = launch(*command)
    assert code == 0, first
    assert first.count("training:") >= 2  # the progress bar, of one rank
    assert " tokens/s" in first
    assert "loss " in first
    assert "0/12 [00:00<?" in first  # updates, time gone and left
    assert "FutureWarning" not in first
    closing = next(line for line in first.splitlines() if line.startswith("finished:"))
    assert str(output) in closing
    (offline,) = (output / "wandb").glob("offline-run-*")
    assert any(offline.glob("*.wandb"))
    run = left_behind(output)
    assert [line["step"] for line in run["metrics"]] == list(range(1, 13))
    assert set(run["metrics"][0]) == {
        "step", "loss", "lr", "grad_norm", "tokens", "tokens_per_second", "step_seconds", "mfu",
    }  # fmt: skip
    assert [(line["step"], set(line)) for line in run["eval"]] == [
        (step, {"step", "loss", "perplexity", "perplexity_as_published", "batches", "tokens"})
        for step in (0, 12)
    ]
    assert run["eval"][1]["perplexity"] < run["eval"][0]["perplexity"]
    assert [line["step"] for line in run["decay"]] == [0, 4, 8]
    for name in ("config.yaml", "status.json", "tokenizer.model", "checkpoints/latest"):
        assert (output / name).is_file()

    code, again = launch(*command)
    assert code == 0, again
    assert f"{output} is finished (12 updates)" in again
    assert left_behind(output) == run


ZERO1 = ["--deepspeed", "ds_configs/zero1.json"]


TORCHRUN = ["torchrun", "--nproc_per_node", "2", "--master_port", "PORT", "train.py"]
PYTHON = ["python", "train.py"]


@pytest.mark.launcher
@pytest.mark.parametrize(
    ("launcher", "engine"),
    [
        (PYTHON, ZERO1),
        (TORCHRUN, []),
        pytest.param(PYTHON, [], marks=pytest.mark.long),
        pytest.param(TORCHRUN, ZERO1, marks=pytest.mark.long),
    ],
    ids=["python-zero1", "torchrun-fsdp2", "python-fsdp2", "torchrun-zero1"],
)
def test_other_launchers_give_the_same_run(tmp_path, launcher, engine):
    options = tiny_options(tmp_path, train__steps=6, decay__interval=4)
    launcher = [str(free_port()) if part == "PORT" else part for part in launcher]
    code, done = launch(*launcher, *engine, "--output_dir", tmp_path / "run", *options)
    assert code == 0, done
    assert "Warning" not in done
    expected = train_on(1, "1", tmp_path / "expected", options)
    losses = [line["loss"] for line in left_behind(tmp_path / "run")["metrics"]]
    assert losses == pytest.approx([line["loss"] for line in expected["metrics"]], abs=1e-5)


@pytest.mark.launcher
@pytest.mark.ranks
def test_dry_run_prints_config_plan_and_first_batch_and_writes_nothing(tmp_path):
    output = tmp_path / "run"
    argv = argv_of("2", output, [*tiny_options(tmp_path), "--dry_run"])
    ((code, shown),) = run_ranks(main_and_output, 1, argv)
    assert code == 0, shown
    sizes = ("weights: ", "param groups: 15; ")
    for words in ("global_batch: 12", "train_batch_size: 12", *sizes, "layers.1.mlp.down_proj 64 x 172"):
        assert words in shown
    assert "first sequence, 32 tokens" in shown
    assert not output.exists()


@pytest.mark.launcher
@pytest.mark.ranks
def test_init_from_starts_with_the_weights_of_a_hf_checkpoint(tmp_path):
    options = tiny_options(tmp_path, train__steps=2)
    config = models.read_model_config(str(tmp_path / "tiny.json"), 32)
    donor = LlamaForCausalLM(config)
    donor.save_pretrained(tmp_path / "donor")
    run = train_on(2, "3", tmp_path / "run", [*options, "--init_from", str(tmp_path / "donor")])
    for name, module in run["decay"][0]["modules"].items():
        assert module["alpha"] == pytest.approx(analyze(donor.get_submodule(name).weight).alpha, abs=1e-6)

    narrow = json.loads((tmp_path / "tiny.json").read_text()) | {"intermediate_size": 180}
    (tmp_path / "narrow.json").write_text(json.dumps(narrow))
    wrong = [f"--model.name={tmp_path / 'narrow.json'}", "--init_from", str(tmp_path / "donor")]
    refused = error_of_ranks(argv_of("2", tmp_path / "other", [*options, *wrong]), world_size=1)
    assert "config.json: intermediate_size is 172, that of model.name is 180" in refused
