"""Activation checkpointing and compiled blocks change what a run costs, not what it computes."""

from __future__ import annotations

import shutil

import pytest
import torch

from alphadecay_dist.training.recipe import TrainConfig
from alphadecay_dist.training.tasks.language import model as models
from tests.training.runs import tiny_options, train_on

CONFIG = models.read_model_config("llama_demo", 32)
BATCH = torch.arange(64).reshape(2, 32)


def saved_bytes(train):
    """What autograd keeps of one forward."""
    model = models.build_model(CONFIG, train).train()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.nbytes), t)[1], lambda t: t):
        model(BATCH, BATCH)
    return sum(kept)


def test_activation_checkpointing_keeps_less():
    assert saved_bytes(TrainConfig(activation_checkpointing=True)) < 0.5 * saved_bytes(TrainConfig())


@pytest.mark.launcher
@pytest.mark.ranks
@pytest.mark.parametrize(
    ("engine", "saver"),
    [
        ("hsdp", "activation_checkpointing"),
        ("ddp", "activation_checkpointing"),
        ("3", "activation_checkpointing"),
        ("fsdp2", "compile"),
        pytest.param("3", "compile", marks=pytest.mark.long),
    ],
)
def test_losses_and_decays_stay(tmp_path, engine, saver):
    if saver == "compile" and not shutil.which("g++"):
        pytest.skip("torch.compile needs a C++ compiler")
    options = tiny_options(tmp_path, train__steps=4, decay__interval=2)
    plain = train_on(2, engine, tmp_path / "plain", options)
    run = train_on(2, engine, tmp_path / "run", [*options, f"--train.{saver}=true"])
    losses = [line["loss"] for line in plain["metrics"]]
    assert [line["loss"] for line in run["metrics"]] == pytest.approx(losses, abs=1e-5)
    for line, expected in zip(run["decay"], plain["decay"], strict=True):
        decays = {name: module["weight_decay"] for name, module in expected["modules"].items()}
        found = {name: module["weight_decay"] for name, module in line["modules"].items()}
        assert found == pytest.approx(decays, abs=1e-4)
