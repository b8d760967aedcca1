"""Activation checkpointing and compiled blocks change what a run costs, not what it computes."""

from __future__ import annotations

import shutil

import pytest
import torch

from alphadecay_dist.training.recipe import TrainConfig
from alphadecay_dist.training.tasks.language import model as models
from alphadecay_dist.training.tasks.language.conversion import CONVERTS
from alphadecay_dist.training.tasks.language.initial_values import random_values
from tests.training.runs import tiny_options, train_on
from tests.training.tasks.language.test_architectures import ARCHITECTURES

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


def learned(values, train):
    """Loss and gradients of another architecture's first update, by name."""
    config = models.config_of("own", values, 32)
    model, drawn = models.build_model(config, train).train(), random_values(models.build_on_meta(config), 0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(drawn(name))
    torch.manual_seed(1)  # of dropout
    loss = model(BATCH, BATCH)
    loss.backward()
    return {"loss": loss.detach()} | {name: own.grad for name, own in model.named_parameters()}


OTHERS = {
    "gpt2": {},  # with its dropout
    "gemma3_text": {},
    "mixtral": {"output_router_logits": True, "router_aux_loss_coef": 1.0},  # which leave the blocks too
}
NO_DROPOUT = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)  # compiled, it draws otherwise


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize(
    "saver", ["activation_checkpointing", pytest.param("compile", marks=pytest.mark.long)]
)
def test_other_architectures_learn_the_same(kind, saver):
    if kind == "mixtral" and not CONVERTS:
        pytest.skip("stacks of experts need transformers 5")
    if saver == "compile" and not shutil.which("g++"):
        pytest.skip("torch.compile needs a C++ compiler")
    values = {"model_type": kind, **ARCHITECTURES[kind], **OTHERS[kind]}
    if (kind, saver) == ("gpt2", "compile"):
        values |= NO_DROPOUT
    expected = learned(values, TrainConfig())
    found = learned(values, TrainConfig(**{saver: True}))
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-5 * float(value.norm())), name


@pytest.mark.parametrize("kind", ["gpt2", "gemma3_text"])
def test_checkpointing_and_compiling_take_other_architectures_blocks(kind):
    config = models.config_of("own", {"model_type": kind, **ARCHITECTURES[kind]}, 32)
    model = models.build_model(config, TrainConfig(activation_checkpointing=True, compile=True))
    blocks = {
        name
        for name, module in model.named_modules()
        if module._compiled_call_impl is not None and module.gradient_checkpointing
    }
    layers = "transformer.h" if kind == "gpt2" else "model.layers"
    assert blocks == {f"{layers}.0", f"{layers}.1"}


LLAMA = {
    "model_type": "llama",
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "vocab_size": 512,
    "max_position_embeddings": 256,
}


@pytest.mark.long
@pytest.mark.parametrize("compiled", [False, True])
def test_bf16_learns_what_float32_does_and_sees_no_later_token(compiled):
    """On this CPU: each kind of CPU has kernels of its own, and the compiler writes others for each."""
    if compiled and not shutil.which("g++"):
        pytest.skip("torch.compile needs a C++ compiler")
    config = models.config_of("own", LLAMA, 256)
    tokens = torch.randint(512, (4, 256), generator=torch.Generator().manual_seed(0))

    def gradients(dtype, train):
        model, drawn = models.build_model(config, train), random_values(models.build_on_meta(config), 0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                sharp = name.endswith(("q_proj.weight", "k_proj.weight"))  # so that attention chooses
                parameter.copy_((3 if sharp else 1) * drawn(name))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = model(tokens, tokens)
            loss.backward()
            later = torch.where(torch.arange(256) < 128, tokens, 7)
            before = [model.model(ids).last_hidden_state[:, :128] for ids in (tokens, later)]
        assert torch.equal(*before)
        return {"loss": loss.detach()} | {name: own.grad for name, own in model.named_parameters()}

    expected = gradients(torch.float32, TrainConfig())
    for name, found in gradients(torch.bfloat16, TrainConfig(compile=compiled)).items():
        torch.testing.assert_close(found.norm(), expected[name].norm(), rtol=2e-2, atol=0)
        assert torch.cosine_similarity(found.flatten(), expected[name].flatten(), 0) > 0.999, name


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
