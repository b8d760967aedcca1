"""A config of transformers is served as it is meant, or refused by name in one line."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, configuration_utils, modeling_utils
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from alphadecay_dist.errors import UserError
from alphadecay_dist.training.recipe import TrainConfig
from alphadecay_dist.training.tasks.language.architecture import architecture_of
from alphadecay_dist.training.tasks.language.causal import causal_values
from alphadecay_dist.training.tasks.language.conversion import CONVERTS
from alphadecay_dist.training.tasks.language.flops import flops_per_token
from alphadecay_dist.training.tasks.language.initial_values import drawn
from alphadecay_dist.training.tasks.language.llama import initial_value
from alphadecay_dist.training.tasks.language.loss import balance_loss
from alphadecay_dist.training.tasks.language.model import (
    build_model,
    build_on_meta,
    config_of,
    read_model_config,
    values_of,
)
from tests.training.tasks.language.test_architectures import ARCHITECTURES, GPT2, SERVED, SIZES

FOUR = {key: SIZES[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")}
# What a JSON says, and what the one line about it has to name.
REFUSED = {
    "unknown": ({**SIZES, "model_type": "gpt5"}, ("'gpt5'", "does not know")),
    "no text": ({**SIZES, "model_type": 3}, ("model_type is 3",)),
    "encoder-decoder": ({"model_type": "t5", **FOUR}, ("t5 is an encoder-decoder",)),
    "vision": ({"model_type": "gemma3", **FOUR}, ("text_config, vision_config", "text alone")),
    "no decoder": ({"model_type": "vit", **FOUR}, ("no causal language model for vit",)),
    "remote code": (
        {**SIZES, "model_type": "qwen3", "auto_map": {"AutoModel": "m.M"}},
        ("auto_map", "never run"),
    ),
    "quantised": (
        {**SIZES, "model_type": "qwen3", "quantization_config": {"quant_method": "fp8"}},
        ("quantization_config", "fp8"),
    ),
    "state space": ({"model_type": "mamba", **FOUR}, ("mamba has no num_attention_heads", "state-space")),
    "linear": (
        {**SIZES, "model_type": "qwen3_next", "layer_types": ["linear_attention", "full_attention"]},
        ("linear_attention",),
    ),
    "bidirectional": ({"model_type": "bert", **FOUR}, ("BertLMHeadModel", "causal")),
    "unsaid": ({"model_type": "bloom", **FOUR, "n_layer": 2, "n_head": 4}, ("BloomForCausalLM", "causal")),
    "another head": (
        {**FOUR, "model_type": "minicpm3", "dim_model_base": 16, "pad_token_id": None},
        ("the head of MiniCPM3ForCausalLM",),
    ),
    "saved buffer": (
        {**SIZES, "model_type": "glm4_moe", "first_k_dense_replace": 0, "n_routed_experts": 4},
        ("e_score_correction_bias", "buffer"),
    ),
    "router bias": (
        {**SIZES, "model_type": "ernie4_5_moe", "moe_num_experts": 4, "moe_k": 2, "pad_token_id": 3},
        ("'ernie4_5_moe' is not trained",),
    ),
    "cross attention": (
        {**GPT2, "model_type": "gpt2", "add_cross_attention": True},
        ("add_cross_attention",),
    ),
    "another task": (
        {**GPT2, "model_type": "gpt2", "architectures": ["GPT2ForSequenceClassification"]},
        ("GPT2ForSequenceClassification", "GPT2LMHeadModel"),
    ),
    "a size is missing": (
        {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "vocab_size": 9},
        ("has no n_head",),
    ),
    "a slip": ({**SIZES, "model_type": "qwen3", "rms_norm_ep": 1e-5}, ("rms_norm_ep", "'rms_norm_eps'")),
    "no effect here": ({**SIZES, "model_type": "qwen3", "logit_scale": 0.1}, ("logit_scale is 0.1",)),
    "no number": ({**SIZES, "model_type": "qwen3", "hidden_size": "64"}, ("hidden_size",)),
    "too long": ({**GPT2, "model_type": "gpt2", "n_positions": 16}, ("n_positions 16", "train.seq_len")),
    "too deep": ({**GPT2, "model_type": "gpt2", "n_layer": 10**6}, ("n", "10000 or less")),
}


if not CONVERTS:
    REFUSED["another head"] = ({**SIZES, "model_type": "mixtral"}, ("experts is a list of modules",))


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_served_is_refused_by_name(tmp_path, name):
    values, words = REFUSED[name]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    with pytest.raises(UserError) as caught:
        read_model_config(str(path), 32)
    line = str(caught.value)
    assert "\n" not in line
    assert all(word in line for word in (*words, "config.json")), line


def test_a_directory_is_as_good_as_the_config_in_it(tmp_path):
    with pytest.raises(UserError, match=r"a directory without config\.json"):
        read_model_config(str(tmp_path), 32)
    (tmp_path / "config.json").write_text(json.dumps({**GPT2, "model_type": "gpt2"}))
    assert read_model_config(str(tmp_path), 32).n_embd == 64


@pytest.mark.parametrize("kind", SERVED)
def test_what_a_run_keeps_gives_the_config_back(kind):
    config = config_of("own", {"model_type": kind, **ARCHITECTURES[kind]}, 32)
    kept = json.loads(json.dumps(values_of(config)))
    assert values_of(config_of("kept", kept, 32)) == values_of(config)
    assert ("model_type" in kept) == (kind != "llama")


# As files of the hub have them: names that transformers reads and its configs have no field for.
OLDER = {
    "gemma3_text": {"num_hidden_layers": 5, "sliding_window_pattern": 2, "rope_local_base_freq": 9999},
    "phi": {"partial_rotary_factor": 0.25},
    "stablelm": {"partial_rotary_factor": 0.5, "rope_theta": 9999},
    "gpt_neox": {"rotary_pct": 0.5, "rotary_emb_base": 10000},  # the second is its default
    "opt": {"_remove_final_layer_norm": True},
}


@pytest.mark.skipif(not CONVERTS, reason="transformers 4 has the older names itself")
@pytest.mark.parametrize("kind", OLDER)
def test_older_names_of_values_are_taken_as_transformers_takes_them(tmp_path, kind):
    values = {**SIZES, "num_key_value_heads": 4, "pad_token_id": 3, "model_type": kind, **OLDER[kind]}
    (tmp_path / "config.json").write_text(json.dumps(values))
    expected = causal_values(AutoConfig.from_pretrained(tmp_path))
    plain = causal_values(
        AutoConfig.for_model(**{key: values[key] for key in values.keys() - OLDER[kind].keys()})
    )
    assert values_of(read_model_config(str(tmp_path), 32)) == expected
    assert values_of(config_of("kept", json.loads(json.dumps(expected)), 32)) == expected
    assert expected != plain


@pytest.mark.filterwarnings("error::FutureWarning")
def test_a_small_vocabulary_of_ones_own_is_no_warning(monkeypatch):
    """GPT-2's special tokens are number 50256 by default, and phi3's padding 32000."""
    said = []
    for module in (configuration_utils, modeling_utils):
        for level in ("warning", "warning_once"):
            monkeypatch.setattr(module.logger, level, said.append)
    for kind, own in (("gpt2", GPT2), ("phi3", {**FOUR, "intermediate_size": 96})):
        values = {"model_type": kind, **own, "vocab_size": 509}  # looked at here alone
        config = config_of("own", values, 32)
        assert all(own is None or own < 509 for own in (config.eos_token_id, config.pad_token_id))
        build_model(config, TrainConfig(activation_checkpointing=True))
    assert not said


def test_code_that_a_config_names_is_left_out():
    more = {
        "attn_implementation": "somebody/kernel",
        "_attn_implementation": "flash",
        "experts_implementation": "x",
    }
    config = config_of("own", {**ARCHITECTURES["qwen3"], "model_type": "qwen3", **more}, 32)
    assert not more.keys() & values_of(config).keys()
    with torch.device("meta"):
        model = build_model(config, TrainConfig())
    assert model.config._attn_implementation == "sdpa"


SHAPED = {
    "gemma2": ({**SIZES, "pad_token_id": 3, "final_logit_softcapping": 0.5}, (1.0, 0.5)),
    "cohere": ({**SIZES, "pad_token_id": 3, "logit_scale": 0.25}, (0.25, None)),
    "granite": ({**SIZES, "logits_scaling": 8.0}, (0.125, None)),
    "phi": (SIZES, (1.0, None)),  # its head has a bias
    "opt": (
        {**FOUR, "ffn_dim": 96, "max_position_embeddings": 64, "word_embed_proj_dim": 64, "dropout": 0.0},
        (1.0, None),
    ),
}


@pytest.mark.parametrize("kind", SHAPED)
def test_loss_and_gradients_are_those_of_transformers(kind):
    """Whatever it does to its logits; with padding."""
    values, shape = SHAPED[kind]
    config = config_of("own", {"model_type": kind, **values}, 32)
    found = architecture_of(config)
    assert (found.scale, found.cap) == shape
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **values))
    ours = build_model(config, TrainConfig())
    own = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.copy_(own[name].normal_(0, 0.2))
    ids = torch.randint(5, 512, (3, 32))
    labels = ids.clone()
    labels[1, 20:] = -100
    expected = theirs(input_ids=ids, labels=labels).loss * int((labels[:, 1:] != -100).sum())
    loss = ours(ids, labels)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    loss.backward()
    expected.backward()
    largest = max(parameter.grad.norm() for parameter in own.values())
    for name, parameter in ours.named_parameters():
        assert (parameter.grad - own[name].grad).norm() < 1e-5 * largest, name


def test_the_balance_loss_of_each_sequence_is_that_of_transformers():
    torch.manual_seed(0)
    router = tuple(torch.randn(4 * 8, 6) for _ in range(3))
    labels = torch.randint(5, 512, (4, 8))
    labels[1, 5:] = -100
    whole = balance_loss(router, labels, 2)
    total = 0.0
    for row in range(4):
        part = tuple(own.view(4, 8, 6)[row] for own in router)
        mask = (labels[row : row + 1] != -100).long()
        total += float(load_balancing_loss_func(part, 6, 2, mask)) * int((labels[row, 1:] != -100).sum())
    assert float(whole) == pytest.approx(total, rel=1e-6)


@pytest.mark.skipif(not CONVERTS, reason="stacks of experts need transformers 5")
@pytest.mark.parametrize("width", [48, 52])
def test_experts_of_any_width_compute_in_bf16(width):
    """torch's grouped product refuses some."""
    values = {**ARCHITECTURES["qwen3_moe"], "model_type": "qwen3_moe", "moe_intermediate_size": width}
    config = config_of("own", values, 32)
    shapes, model = build_on_meta(config), build_model(config, TrainConfig()).bfloat16()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(drawn(shapes, name, 0))
    ids = torch.arange(64).view(2, 32)
    loss = model(ids, ids)
    loss.backward()
    assert 4 < float(loss.detach()) / 62 < 10
    assert (config._experts_implementation == "eager") == (width == 52)


def test_llama_draws_as_its_own_initialisation_does():
    """So that one of another width of norms or biases goes on as it began, and is not drawn otherwise."""
    config = config_of("own", {**ARCHITECTURES["llama"], "attention_bias": True}, 32)
    shapes = build_on_meta(config)
    for name, parameter in shapes.named_parameters():
        assert torch.equal(drawn(shapes, name, 3), initial_value(name, tuple(parameter.shape), 0.1, 3))


def test_flops_count_what_multiplies():
    """12 times width times context for attention; experts that are taken; no tables."""
    width, gpt2 = 64, config_of("own", {**GPT2, "model_type": "gpt2"}, 32)
    blocks = 2 * (12 * width**2 + 13 * width) + 2 * width
    assert flops_per_token(build_on_meta(gpt2), gpt2, 32) == 6 * (blocks + 512 * width) + 12 * 2 * width * 32
    mistral = config_of("own", {**ARCHITECTURES["mistral"], "model_type": "mistral"}, 32)
    shapes = build_on_meta(mistral)
    weights = sum(parameter.numel() for parameter in shapes.parameters()) - 512 * width
    assert flops_per_token(shapes, mistral, 32) == 6 * weights + 12 * 2 * width * 16  # its window
    if "mixtral" not in SERVED:
        return
    mixtral = config_of("own", {**ARCHITECTURES["mixtral"], "model_type": "mixtral"}, 32)
    shapes = build_on_meta(mixtral)
    weights = sum(parameter.numel() for parameter in shapes.parameters()) - 512 * width
    unused = 2 * 2 * (3 * 64 * 104)  # layers, experts
    assert flops_per_token(shapes, mixtral, 32) == 6 * (weights - unused) + 12 * 2 * width * 32
