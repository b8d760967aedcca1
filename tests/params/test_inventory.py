from __future__ import annotations

import re
from collections import Counter

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from transformers import LlamaConfig, LlamaForCausalLM

from alphadecay_dist import UserError, param_groups
from alphadecay_dist.params.inventory import tuned_weights
from alphadecay_dist.training.tasks.language.model import model_names
from tests.sharding.shapes import on_meta

PROJECTIONS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
PROJECTIONS += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]


def llama(tied=False):
    sizes = {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(vocab_size=128, tie_word_embeddings=tied, **sizes))
    model.tie_weights()
    return model


def blocks(*modules):
    with torch.device("meta"):
        return nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict(m) for m in modules])})


def names(matrices):
    return [matrix.name for matrix in matrices]


@pytest.mark.parametrize("name", model_names())
def test_a_llama_has_seven_matrices_a_layer_and_neither_head_nor_embeddings(name):
    model = on_meta(name)
    layers = range(model.config.num_hidden_layers)
    found = tuned_weights(model)
    assert names(found) == [f"model.layers.{layer}.{part}" for layer in layers for part in PROJECTIONS]
    hidden, wide = model.config.hidden_size, model.config.intermediate_size
    assert [m.shape for m in found[:7]] == [(hidden, hidden)] * 4 + [(wide, hidden)] * 2 + [(hidden, wide)]
    assert all(matrix.parameter.shape == matrix.shape for matrix in found)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("untuned", ["base", "zero"])
def test_every_trained_parameter_is_in_one_group(tied, untuned):
    model = llama(tied)
    frozen = model.model.layers[0].mlp.up_proj.weight
    frozen.requires_grad_(False)
    model.model.norm.weight.requires_grad_(False)
    groups = param_groups(model, weight_decay=0.1, untuned=untuned)
    taken = Counter(id(parameter) for group in groups for parameter in group["params"])
    assert taken == Counter(id(parameter) for parameter in model.parameters() if parameter.requires_grad)
    assert "model.layers.0.mlp.up_proj" not in [group["module"] for group in groups]
    assert [set(group) for group in groups] == [{"params", "weight_decay", "module"}] * 14
    *tuned, rest = groups
    assert all(len(group["params"]) == 1 and group["weight_decay"] == 0.1 for group in tuned)
    assert rest["module"] == "untuned"
    assert rest["weight_decay"] == (0.1 if untuned == "base" else 0.0)
    torch.optim.AdamW(groups, lr=1e-3)


def test_a_head_is_tuned_when_named_but_not_when_it_is_the_embedding():
    assert names(tuned_weights(llama(), ["lm_head"])) == ["lm_head"]
    with pytest.raises(UserError, match="'lm_head' matches no trained"):
        tuned_weights(llama(tied=True), ["lm_head"])


def test_lora_factors_are_tuned_only_when_named():
    factors = {"lora_A": nn.Linear(128, 64, bias=False), "lora_B": nn.Linear(64, 128, bias=False)}
    model = blocks({"q_proj": nn.Linear(128, 128), **factors})
    assert names(tuned_weights(model)) == ["layers.0.q_proj"]
    assert names(tuned_weights(model, ["*.lora_?"])) == ["layers.0.lora_A", "layers.0.lora_B"]
    assert len(param_groups(model, weight_decay=0.1)[-1]["params"]) == 3  # both factors and the bias


def test_a_weight_that_two_modules_share_is_one_matrix():
    first, second = nn.Linear(64, 80), nn.Linear(64, 80)
    second.weight = first.weight
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"a": first, "b": second})])})
    assert names(tuned_weights(model)) == ["layers.0.a"]
    assert [len(group["params"]) for group in param_groups(model, weight_decay=0.1)] == [1, 2]


def test_small_matrices_and_those_outside_blocks_are_left():
    model = blocks({"small": nn.Linear(64, 49), "fits": nn.Linear(50, 64)})
    model["classifier"] = nn.Linear(64, 64, device="meta")
    assert names(tuned_weights(model)) == ["layers.0.fits"]
    assert names(tuned_weights(model, ["*"])) == ["layers.0.fits", "classifier"]


def test_patterns_keep_the_order_of_the_model():
    found = tuned_weights(llama(), ["*.v_proj", "*.0.*.q_proj"])
    assert names(found) == [f"model.layers.{name}" for name in ("0.self_attn.q_proj", "0.self_attn.v_proj",
                                                                "1.self_attn.v_proj")]  # fmt: skip


@pytest.mark.parametrize("pattern", ["*.c_attn", "model.layers.0", "*.input_layernorm", ""])
def test_a_pattern_that_matches_nothing_is_an_error_that_names_it(pattern):
    with pytest.raises(UserError, match=re.escape(f"{pattern!r} matches no trained nn.Linear")):
        param_groups(llama(), weight_decay=0.1, modules=["*.q_proj", pattern])


def test_a_model_with_nothing_to_tune_is_an_error():
    frozen = llama().requires_grad_(False)
    narrow = blocks({"fc": nn.Linear(40, 400)})
    for model in (frozen, narrow, nn.Linear(64, 64)):
        with pytest.raises(UserError, match="no module to tune"):
            param_groups(model, weight_decay=0.1)


def test_untuned_is_base_or_zero():
    with pytest.raises(UserError, match="untuned: found 'none', expected 'base', 'zero' or 'zero_1d'"):
        param_groups(llama(), weight_decay=0.1, untuned="none")


def test_norms_and_biases_are_a_last_group_without_decay():
    model = blocks(
        {"fc": nn.Linear(64, 64), "norm": nn.LayerNorm(64), "small": nn.Linear(64, 20, bias=False)}
    )
    model["embed"] = nn.Embedding(100, 64)
    tuned, several, one = param_groups(model, weight_decay=0.1, untuned="zero_1d")
    assert (tuned["module"], tuned["weight_decay"]) == ("layers.0.fc", 0.1)
    assert [(group["module"], group["weight_decay"]) for group in (several, one)] == [
        ("untuned", 0.1),
        ("untuned", 0.0),
    ]
    assert [p.shape for p in several["params"]] == [(20, 64), (100, 64)]
    assert [p.shape for p in one["params"]] == [(64,)] * 3
    bare = blocks({"fc": nn.Linear(64, 64)})
    assert [g["weight_decay"] for g in param_groups(bare, weight_decay=0.1, untuned="zero_1d")] == [0.1, 0.0]


def test_without_anything_else_there_is_no_untuned_group():
    model = blocks({"fc": nn.Linear(64, 64, bias=False)})
    assert [group["module"] for group in param_groups(model, weight_decay=0.1)] == ["layers.0.fc"]


def test_neither_a_position_table_nor_a_complex_weight_is_a_matrix_to_tune():
    block = nn.Module()
    block.fc = nn.Linear(64, 64)
    block.pos_embed = nn.Parameter(torch.randn(1, 197, 64))
    block.complex = nn.Linear(64, 64, dtype=torch.complex64)
    model = nn.Module()
    model.layers = nn.ModuleList([block])
    assert [weight.name for weight in tuned_weights(model)] == ["layers.0.fc"]


def test_a_fused_weight_is_tuned_for_its_large_parts():
    model = blocks({"qkv_proj": nn.Linear(256, 320)})
    model.config = {"num_attention_heads": 8, "num_key_value_heads": 1, "hidden_size": 256}
    (weight,) = tuned_weights(model)
    assert weight.part_shapes() == [(256, 256), (32, 256), (32, 256)]


def test_a_module_has_one_name_whatever_wraps_it():
    model = blocks({"fc": nn.Linear(64, 64), "up": nn.Linear(64, 64)})
    expected = [weight.name for weight in tuned_weights(model)]
    model.layers[0]["up"] = checkpoint_wrapper(model.layers[0]["up"])
    assert [weight.name for weight in tuned_weights(torch.compile(model))] == expected


def test_a_grouped_convolution_has_the_columns_of_one_group():
    model = blocks({"conv": nn.Conv2d(128, 64, 3, groups=2)})
    (weight,) = tuned_weights(model)
    assert weight.shape == (64, 64, 3, 3)
