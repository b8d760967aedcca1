"""What --init_from and model.name are given is trained as it is meant, or refused by name before training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from alphadecay_dist import cli
from alphadecay_dist.errors import UserError
from alphadecay_dist.training.tasks.language.model import read_model_config
from tests.foreign import BLOCK, UP, accepted, init_error, llama, llama_weights, write
from tests.training.runs import SIZES, tiny_options, train_on

HEADS = {"num_key_value_heads": 2, "head_dim": 32}
# Small models of other architectures, whose shapes fit into a LLaMA.
FAMILIES = {
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": HEADS,
    "gemma": HEADS,
    "granite": {"embedding_multiplier": 12.0, "residual_multiplier": 0.2},
    "olmo2": {},
    "mixtral": {"num_local_experts": 4, "num_key_value_heads": 2},
    "gpt_neox": {},
}


def family(kind, folder):
    """A model of another architecture, saved by transformers."""
    config = transformers.AutoConfig.for_model(kind, **SIZES, **FAMILIES[kind])
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", FAMILIES)
def test_another_architecture_is_refused_by_name(tmp_path, kind):
    """By --init_from's own config, under a model.name of ours, and the other way round."""
    folder = family(kind, tmp_path / "w")
    line = init_error(folder)
    own = folder / "config.json"
    expected = f"model_type is '{kind}', that of model.name is 'llama'; give --model.name={own}"
    assert line.endswith(expected), line
    accepted(folder, model=own)
    llama().save_pretrained(tmp_path / "ours")
    line = init_error(tmp_path / "ours", model=folder / "config.json")
    assert all(word in line for word in ("model_type is 'llama'", f"model.name is '{kind}'")), line
    write(folder / "config.json", {k: v for k, v in read(folder).items() if k != "model_type"})
    architecture = read(folder)["architectures"][0]
    assert f"architectures has {architecture!r}" in init_error(folder)


def read(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_without_its_config_the_tensors_that_would_be_dropped_are_named(tmp_path, kind):
    folder = family(kind, tmp_path / "w")
    (folder / "config.json").unlink()
    line = init_error(folder)
    more = {"qwen2": ("has 6 tensors", "q_proj.bias", "attention_bias"), "qwen3": ("has 4", "q_norm.weight")}
    assert all(word in line for word in (*more[kind], "does not have")), line


EFFECTS = {
    "embedding_multiplier": (12.0, 1.0),
    "attention_multiplier": (1.0, None),
    "logits_scaling": (8.0, 1),
    "logit_scale": (0.0625, 1),
    "use_qk_norm": (True, False),
    "qkv_bias": (True, False),
    "sliding_window": (16, 64),
    "layer_types": (["full_attention", "sliding_attention"], ["full_attention", "full_attention"]),
    "final_logit_softcapping": (30.0, None),
    "num_local_experts": (8, 0),
    "partial_rotary_factor": (0.5, 1.0),
    "no_rope_layers": ([1, 0], []),
    "quantization_config": ({"quant_method": "fp8"}, None),
    "norm_eps": (1e-3, 1e-6),
    "hidden_activation": ("gelu", None),
    "hidden_dropout": (0.1, 0.0),
}


@pytest.mark.parametrize("key", EFFECTS)
@pytest.mark.parametrize("kind", [{}, {"model_type": "llama"}], ids=["ours", "llama"])
def test_a_value_that_would_be_dropped_is_refused_where_it_has_an_effect(tmp_path, key, kind):
    sizes = {**SIZES, **kind, "rms_norm_eps": 1e-6}
    with_effect, without = EFFECTS[key]
    path = write(tmp_path / "model.json", {**sizes, key: with_effect})
    with pytest.raises(UserError, match=key) as caught:
        read_model_config(str(path), 32)
    assert "model.json" in str(caught.value)
    write(path, {**sizes, key: without})
    read_model_config(str(path), 32)


def test_what_the_configs_of_the_hub_have_besides_is_taken(tmp_path):
    """Keys of LLaMA 2 and 3, TinyLlama, SmolLM2, Yi, DeepSeek-Coder and their fine-tunes."""
    more = {
        "_name_or_path": "meta-llama/Llama-2-7b-hf",
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": [128001, 128008],
        "is_llama_config": True,
        "max_sequence_length": 2048,
        "model_type": "llama",
        "pad_token": 0,
        "pretraining_tp": 1,
        "rope_interleaved": False,
        "rope_scaling": {"factor": 4.0, "type": "linear"},
        "sliding_window": 32,
        "torch_dtype": "bfloat16",
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
        "transformers_version": "4.31.0",
        "unsloth_fixed": True,
        "use_cache": True,
        "use_sliding_window": False,
    }
    path = write(tmp_path / "config.json", {**SIZES, **more})
    config = read_model_config(str(path), 32).to_dict()
    # Its name from transformers 5 on, and before.
    assert config.get("rope_parameters", config.get("rope_scaling"))["factor"] == 4.0


DIFFERENCES = {
    "rope_theta": (500000.0, "10000.0"),
    "hidden_act": ("gelu", "'silu'"),
    "num_attention_heads": (4, "2"),
    "rms_norm_eps": (1e-3, "1e-06"),
    "tie_word_embeddings": (True, "False"),
    "rope_scaling": ({"rope_type": "linear", "factor": 2.0}, "None"),
    "vocab_size": (600, "512"),
}


@pytest.mark.parametrize("key", DIFFERENCES)
def test_a_config_beside_the_weights_that_makes_another_function_of_them_is_refused(tmp_path, key):
    theirs, ours = DIFFERENCES[key]
    model = llama(**{key: theirs})
    model.save_pretrained(tmp_path / "w")
    line = init_error(tmp_path / "w")
    shown = "'factor': 2.0" if key == "rope_scaling" else repr(theirs)
    assert all(word in line for word in (f"{key} is", shown, ours, "--model.name=")), line
    accepted(tmp_path / "w", model=tmp_path / "w" / "config.json")


def test_a_config_that_makes_the_same_function_is_taken(tmp_path):
    same = {"initializer_range": 0.02, "attention_dropout": 0.1, "max_position_embeddings": 128}
    llama(**same, hidden_act="swish").save_pretrained(tmp_path / "w")
    accepted(tmp_path / "w")


def saved(folder, tensors):
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    return folder


def renamed(rename):
    return {rename(name): value for name, value in llama_weights().items()}


WRAPPED = {
    "torch.compile": lambda name: f"_orig_mod.{name}",
    "DDP around it": lambda name: f"module._orig_mod.{name}",
    "a block compiled": lambda name: name.replace("layers.0.", "layers.0._orig_mod."),
    "FSDP1": lambda name: f"_fsdp_wrapped_module.{name}".replace(
        "layers.1.", "layers.1._fsdp_wrapped_module."
    ),
    "checkpointing": lambda name: name.replace("layers.0.", "layers.0._checkpoint_wrapped_module."),
    "Lightning": lambda name: f"model.{name}",
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_names_of_wrappers_are_taken_off(tmp_path, wrapper):
    accepted(saved(tmp_path / "w", renamed(WRAPPED[wrapper])))


def test_an_unknown_prefix_is_named(tmp_path):
    line = init_error(saved(tmp_path / "w", renamed(lambda name: f"student.{name}")))
    assert all(word in line for word in ("model.embed_tokens.weight", "begin with 'student.'")), line
    two = renamed(lambda name: f"student.{name}") | renamed(lambda name: f"ema.{name}")
    assert "begin with 'ema.' and 'student.'" in init_error(saved(tmp_path / "w", two))
    two = llama_weights() | renamed(lambda name: f"_orig_mod.{name}")
    assert "two values of one weight" in init_error(saved(tmp_path / "w", two))


def test_a_bare_model_has_no_head(tmp_path):
    llama().model.save_pretrained(tmp_path / "w")
    assert "architectures has 'LlamaModel'" in init_error(tmp_path / "w")
    (tmp_path / "w" / "config.json").unlink()
    line = init_error(tmp_path / "w")
    assert all(
        word in line for word in ("has no lm_head.weight", "1 of the model's 21 tensors", "a file of")
    ), line


def test_weights_of_which_some_are_not_there(tmp_path):
    weights = llama_weights()
    del weights[UP], weights[f"{BLOCK}mlp.down_proj.weight"]
    line = init_error(saved(tmp_path / "w", weights))
    assert all(word in line for word in (f"has no {UP}", "2 of the model's 21", "a file of the")), line
    assert "shape None" not in line


def adapter(folder, **more):
    lora = {
        f"base_model.model.{BLOCK}self_attn.q_proj.lora_{side}.weight": torch.randn(64, 64) for side in "AB"
    }
    save_file(lora | more, folder)


def test_an_adapter_is_called_one(tmp_path):
    folder = tmp_path / "w"
    folder.mkdir()
    adapter(folder / "adapter_model.safetensors")
    write(folder / "adapter_config.json", {"base_model_name_or_path": "someone/llama"})
    for path in (folder, folder / "adapter_model.safetensors"):
        line = init_error(path)
        assert all(word in line for word in ("adapter of 'someone/llama'", "merge_and_unload")), line
    adapter(folder / "model.safetensors")
    assert "it is an adapter" in init_error(folder)


def test_harmless_tensors_are_let_pass_and_others_named(tmp_path):
    weights = llama_weights()
    tables = {f"{BLOCK}self_attn.rotary_emb.inv_freq": torch.ones(16)}
    accepted(saved(tmp_path / "w", weights | tables))
    line = init_error(
        saved(tmp_path / "w", weights | {f"v_head.{i}.weight": torch.ones(3) for i in range(4)})
    )
    assert "has 4 tensors" in line
    assert "'v_head.0.weight', 'v_head.1.weight', 'v_head.2.weight';" in line


def test_a_tied_head_may_be_saved_as_well_if_it_is_the_embedding(tmp_path):
    weights = llama_weights(tie_word_embeddings=True)
    assert "lm_head.weight" not in weights
    tied = SIZES | {"tie_word_embeddings": True}
    head = weights["model.embed_tokens.weight"].clone()
    accepted(saved(tmp_path / "w", weights | {"lm_head.weight": head}), model=tied)
    line = init_error(saved(tmp_path / "w", weights | {"lm_head.weight": head + 1}), model=tied)
    assert all(word in line for word in ("lm_head.weight is not equal", "tie_word_embeddings")), line


MODELS = {
    "LLaMA": llama,
    "biases": lambda: llama(attention_bias=True, mlp_bias=True),
    "LLaMA 3": lambda: llama(
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ),
    "Mistral without a window": lambda: mistral(llama(num_key_value_heads=1), sliding_window=None),
}


def mistral(weights: LlamaForCausalLM, **config):
    """A Mistral with the weights of a LLaMA."""
    model = MistralForCausalLM(MistralConfig(**SIZES, num_key_value_heads=1, **config))
    model.load_state_dict(weights.state_dict())
    return model


@pytest.mark.launcher
@pytest.mark.ranks
@pytest.mark.parametrize("name", MODELS)
def test_what_is_taken_is_the_function_that_it_was(tmp_path, name):
    """Through a run whose only update changes nothing, and export."""
    model = MODELS[name]().eval()
    model.save_pretrained(tmp_path / "w")
    config = tmp_path / "w" / "config.json"
    still = {"train__steps": 1, "optimizer__lr": 0, "model__name": config}
    train_on(1, "ddp", tmp_path / "run", [*tiny_options(tmp_path, **still), f"--init_from={tmp_path / 'w'}"])
    argv = ["export", str(tmp_path / "run"), "--to", "hf", "--output", str(tmp_path / "hf")]
    assert cli.main(argv) == 0
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    ids = torch.arange(48)[None]
    with torch.no_grad():
        assert torch.equal(found(ids).logits, model(ids).logits)
    accepted(tmp_path / "hf", model=Path(tmp_path / "hf" / "config.json"))
    assert load_file(tmp_path / "hf" / "model.safetensors").keys() == dict(model.named_parameters()).keys()


def test_mistral_with_a_window_is_no_llama(tmp_path):
    """It is trained as what it is; a LLaMA does not take its weights, nor it those of another window."""
    mistral(llama(num_key_value_heads=1), sliding_window=16).save_pretrained(tmp_path / "w")
    config = tmp_path / "w" / "config.json"
    accepted(tmp_path / "w", model=config)
    assert "sliding_window is 16" in init_error(tmp_path / "w", model=SIZES | {"num_key_value_heads": 1})
    wider = write(tmp_path / "wider.json", read(tmp_path / "w") | {"sliding_window": 24})
    assert "sliding_window is 16, that of model.name is 24" in init_error(tmp_path / "w", model=wider)
