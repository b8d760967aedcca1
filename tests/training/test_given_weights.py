"""Weights that others wrote are the model's, whole and plain, or refused in one line that says why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from alphadecay_dist import UserError, cli
from alphadecay_dist.training.given_weights import values_from
from alphadecay_dist.training.model import build_on_meta, read_model_config
from tests.training.runs import SIZES

HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
SMALL = {**SIZES, **HEADS, "head_dim": 16}
FAMILIES = {
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
    "gemma": transformers.GemmaConfig,
    "granite": transformers.GraniteConfig,
    "mixtral": transformers.MixtralConfig,
}


def saved(folder, config, **options):
    """A tiny model as transformers saves it; returns its directory."""
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder, **options)
    return folder


def llama(folder, **changes):
    return saved(folder, transformers.LlamaConfig(**{**SMALL, **changes}))


def ours(folder, **changes):
    """The model that the trainer builds from a JSON of its own."""
    path = folder / "own.json"
    path.write_text(json.dumps({**SMALL, **changes}))
    return build_on_meta(read_model_config(str(path), 32))


def refusal(place, shapes, trust=False):
    with pytest.raises(UserError) as error:
        values_from(str(place), shapes, trust)
    line = str(error.value)
    assert line.startswith("--init_from ")
    assert "\n" not in line
    return line


@pytest.mark.parametrize("family", FAMILIES)
def test_another_architecture_is_refused_by_name(tmp_path, family):
    sizes = {**SMALL, "max_position_embeddings": 64}
    place = tmp_path / family
    FAMILIES[family](**sizes).save_pretrained(place)
    with pytest.raises(UserError, match=f"model.name .*'{family}'.*expected 'llama'"):
        read_model_config(str(place / "config.json"), 32)
    if family != "mixtral":
        saved(place, FAMILIES[family](**sizes))
        assert f"'{family}'" in refusal(place, ours(tmp_path))
    if family.startswith("qwen"):  # the tensors alone tell it as well
        (place / "config.json").unlink()
        assert "have no place in the model" in refusal(place, ours(tmp_path))


def test_what_a_llama_does_not_have_is_refused(tmp_path):
    for key, value in {
        "sliding_window": 16,
        "residual_multiplier": 0.22,
        "num_local_experts": 8,
        "layer_types": ["full_attention", "sliding_attention"],
        "quantization_config": {"quant_method": "fp8"},
    }.items():
        with pytest.raises(UserError, match=rf"own.json.*({key}|fp8)"):
            ours(tmp_path, **{key: value})
    ours(tmp_path, sliding_window=None, residual_multiplier=1.0, layer_types=["full_attention"] * 2)


def test_a_llama_is_taken_with_its_values(tmp_path):
    place = llama(tmp_path / "hf")
    shapes = ours(tmp_path, **json.loads((place / "config.json").read_text()))
    value_of = values_from(str(place), shapes, trust=False)
    stored = load_file(place / "model.safetensors")
    assert all(torch.equal(value_of(name), stored[name]) for name, _ in shapes.named_parameters())


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "gelu"},
        {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32},
        {"rms_norm_eps": 1e-3},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    ],
)
def test_a_checkpoint_of_another_function_is_refused_with_both_values(tmp_path, changes):
    place = llama(tmp_path / "hf", **changes)
    line = refusal(place, ours(tmp_path))
    assert "config.json" in line
    assert any(key in line for key in changes)


def test_tensors_without_a_place_are_refused_but_for_tables_and_a_tied_head(tmp_path):
    place = llama(tmp_path / "hf")
    tensors = load_file(place / "model.safetensors")
    name = "model.layers.0.self_attn.q_norm.weight"
    save_file({**tensors, name: torch.ones(16)}, place / "model.safetensors")
    assert f"1 tensors have no place in the model, the first is '{name}'" in refusal(place, ours(tmp_path))
    tables = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    save_file({**tensors, **tables}, place / "model.safetensors")
    values_from(str(place), ours(tmp_path), trust=False)
    (place / "config.json").unlink()
    tied = ours(tmp_path, tie_word_embeddings=True)
    assert "lm_head.weight" in refusal(place, tied)
    same = {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    save_file(same, place / "model.safetensors")
    values_from(str(place), tied, trust=False)


def halves(place):
    """The tensors of a checkpoint in two files, without the one of both."""
    tensors = load_file(place / "model.safetensors")
    (place / "model.safetensors").unlink()
    names = sorted(tensors)
    return {name: tensors[name] for name in names[::2]}, {name: tensors[name] for name in names[1::2]}


def test_a_shard_that_is_missing_is_named(tmp_path, capsys):
    place = saved(tmp_path / "hf", transformers.LlamaConfig(**SMALL), max_shard_size="60KB")
    shard = sorted(place.glob("model-*.safetensors"))[1]
    shard.unlink()
    assert f"{shard}: is missing: model.safetensors.index.json says that" in refusal(place, ours(tmp_path))
    assert cli.main(["spectrum", str(place)]) == 2
    assert f"{shard}: is missing" in capsys.readouterr().err
    (place / "model.safetensors.index.json").unlink()
    assert f"{shard}: is missing: beside it are" in refusal(place, ours(tmp_path))


def test_one_set_of_weights_is_read(tmp_path):
    place = llama(tmp_path / "hf")
    tensors = load_file(place / "model.safetensors")
    other = {name: value + 1 for name, value in tensors.items()}
    for name in ("model_old.safetensors", "consolidated.safetensors"):
        save_file(other, place / name)
    value_of = values_from(str(place), ours(tmp_path), trust=False)
    assert torch.equal(value_of("lm_head.weight"), tensors["lm_head.weight"])
    (place / "model.safetensors").rename(place / "weights.safetensors")
    assert "several sets of weights" in refusal(place, ours(tmp_path))


def test_a_name_in_two_files_is_refused(tmp_path):
    place = llama(tmp_path / "hf")
    first, second = halves(place)
    save_file(first, place / "model-00001-of-00002.safetensors")
    save_file({**second, "lm_head.weight": torch.zeros(1)}, place / "model-00002-of-00002.safetensors")
    assert "and so has model-00001-of-00002.safetensors" in refusal(place, ours(tmp_path))


def test_names_with_a_prefix_and_adapters_are_called_what_they_are(tmp_path):
    place = llama(tmp_path / "hf")
    tensors = load_file(place / "model.safetensors")
    for prefix in ("_orig_mod.", "module."):
        save_file({prefix + name: value for name, value in tensors.items()}, place / "model.safetensors")
        assert f"its names begin with '{prefix}'" in refusal(place, ours(tmp_path))
    factors = {f"base.q_proj.lora_{side}.weight": torch.zeros(4, 4) for side in "AB"}
    save_file(factors, place / "model.safetensors")
    assert "an adapter" in refusal(place, ours(tmp_path))
    (place / "model.safetensors").rename(place / "adapter_model.safetensors")
    (place / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    assert "is an adapter of 'some/base'" in refusal(place, ours(tmp_path))


NAME = "model.layers.0.mlp.up_proj"
WEIGHT = torch.randn(172, 64)
QUANTISED = {
    "FP8 with block scales": {
        f"{NAME}.weight": WEIGHT.to(torch.float8_e4m3fn),
        f"{NAME}.weight_scale_inv": torch.ones(2, 1),
    },
    "int8 of bitsandbytes": {f"{NAME}.weight": WEIGHT.to(torch.int8), f"{NAME}.SCB": torch.ones(172)},
    "GPTQ": {
        f"{NAME}.qweight": torch.zeros(8, 172, dtype=torch.int32),
        f"{NAME}.qzeros": torch.zeros(1, 22, dtype=torch.int32),
        f"{NAME}.scales": torch.ones(1, 172),
        f"{NAME}.g_idx": torch.zeros(64, dtype=torch.int32),
    },
    "MXFP4": {
        f"{NAME}_blocks": torch.zeros(172, 4, 16, dtype=torch.uint8),
        f"{NAME}_scales": torch.zeros(172, 4, dtype=torch.uint8),
    },
}


@pytest.mark.parametrize("scheme", QUANTISED)
def test_quantised_weights_are_refused_though_others_are_plain(tmp_path, scheme, capsys):
    place = llama(tmp_path / "hf")
    tensors = load_file(place / "model.safetensors")
    del tensors[f"{NAME}.weight"]
    save_file({**tensors, **QUANTISED[scheme]}, place / "model.safetensors")
    line = refusal(place, ours(tmp_path))
    assert f"quantised ({scheme}" in line
    assert "model.safetensors" in line
    assert NAME in line
    assert cli.main(["spectrum", str(place)]) == 2
    assert f"quantised ({scheme}" in capsys.readouterr().err.splitlines()[-1]


OTHERS = {
    "zero_to_fp32": "global_step3/zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "is a DeepSpeed checkpoint": "global_step3/mp_rank_00_model_states.pt",
    "dcp_to_torch": "__0_0.distcp",
    "GGUF": "model.gguf",
}


@pytest.mark.parametrize("words", OTHERS)
def test_other_formats_are_called_what_they_are_with_the_way_to_convert(tmp_path, words, capsys):
    file = tmp_path / "other" / OTHERS[words]
    file.parent.mkdir(parents=True)
    file.write_bytes(b"")
    if "global_step3" in OTHERS[words]:
        (tmp_path / "other" / "latest").write_text("global_step3")
    assert words in refusal(tmp_path / "other", ours(tmp_path))
    assert cli.main(["spectrum", str(tmp_path / "other")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_a_path_that_is_not_there_is_said_so(tmp_path, capsys):
    assert "no such file or directory" in refusal(tmp_path / "nowhere", ours(tmp_path))
    assert cli.main(["export", str(Path("no/where")), "--to", "hf", "--output", str(tmp_path / "out")]) == 2
    assert "no such file or directory" in capsys.readouterr().err
