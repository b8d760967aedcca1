"""Quantised weights are refused in one line by both doors: their numbers mean nothing without the scales."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from tests.foreign import BLOCK, UP, accepted, init_error, llama_weights, rows_of, spectrum_error, write

MATRIX = llama_weights()[UP]  # (172, 64)
STEM = UP.removesuffix(".weight")
EXPERTS = f"{BLOCK}mlp.experts.gate_up_proj"


def integers(*shape, dtype=torch.uint8):
    return torch.randint(0, 100, shape, dtype=dtype)


# What the tools of the field write in place of one matrix, and the scheme that a line names.
SCHEMES = {
    "FP8 with block scales": {UP: MATRIX.to(torch.float8_e4m3fn), f"{UP}_scale_inv": torch.ones(2, 1)},
    "FP8 alone": {UP: MATRIX.to(torch.float8_e5m2)},
    "scales beside what is no longer FP8": {UP: MATRIX, f"{UP}_scale": torch.ones(172, 1)},
    "int8 of bitsandbytes": {UP: integers(172, 64, dtype=torch.int8), f"{STEM}.SCB": torch.ones(172)},
    "4 bits of bitsandbytes": {
        UP: integers(5504, 1),
        f"{UP}.absmax": integers(172),
        f"{UP}.quant_map": torch.ones(16),
        f"{UP}.quant_state.bitsandbytes__nf4": integers(80),
    },
    "GPTQ": {
        f"{STEM}.qweight": integers(8, 172, dtype=torch.int32),
        f"{STEM}.qzeros": integers(1, 22, dtype=torch.int32),
        f"{STEM}.scales": torch.ones(1, 172, dtype=torch.float16),
        f"{STEM}.g_idx": integers(64, dtype=torch.int32),
    },
    "GPTQ or AWQ": {
        f"{STEM}.qweight": integers(64, 22, dtype=torch.int32),
        f"{STEM}.qzeros": integers(1, 22, dtype=torch.int32),
        f"{STEM}.scales": torch.ones(1, 172, dtype=torch.float16),
    },
    "MXFP4": {f"{EXPERTS}_blocks": integers(2, 128, 2, 16), f"{EXPERTS}_scales": integers(2, 128, 2)},
    "compressed-tensors": {
        f"{STEM}.weight_packed": integers(172, 8, dtype=torch.int32),
        f"{STEM}.weight_scale": torch.ones(172, 1),
        f"{STEM}.weight_shape": torch.tensor([172, 64]),
    },
    "integers alone": {UP: integers(172, 64, dtype=torch.int8)},
}
WORDS = {
    "FP8 alone": ("F8_E5M2", "8 bits or fewer"),
    "scales beside what is no longer FP8": ("a scale per row",),
    "integers alone": ("I8", "integers"),
}


def both(capsys, folder):
    return spectrum_error(capsys, folder), init_error(folder)


def saved(folder, tensors):
    """A model of which these are in place of one matrix: it is quantised in part."""
    folder.mkdir()
    others = {name: value for name, value in llama_weights().items() if name != UP}
    save_file({**others, **tensors}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_scheme_is_named_with_file_and_tensor(tmp_path, capsys, scheme):
    folder = saved(tmp_path / "w", SCHEMES[scheme])
    stem = EXPERTS if scheme == "MXFP4" else STEM
    for line in both(capsys, folder):
        words = (str(folder / "model.safetensors"), stem, "is quantised", *WORDS.get(scheme, (scheme,)))
        assert all(word in line for word in words), line
        assert "bfloat16" in line


def test_a_model_that_is_quantised_whole_says_how_much(tmp_path, capsys):
    folder = tmp_path / "w"
    folder.mkdir()
    tensors = {}
    for name, value in llama_weights().items():
        if value.ndim == 2 and "layers" in name:
            tensors |= {name: value.to(torch.float8_e4m3fn), f"{name}_scale_inv": torch.ones(2, 1)}
        else:
            tensors[name] = value
    save_file(tensors, folder / "model.safetensors")
    write(folder / "config.json", {"model_type": "llama", "quantization_config": {"quant_method": "fp8"}})
    for line in both(capsys, folder):
        assert "and so are 13 weights more" in line, line
        assert "quant_method in config.json: 'fp8'" in line


def test_a_config_alone_can_say_it(tmp_path, capsys):
    folder = saved(tmp_path / "w", {UP: MATRIX})
    write(folder / "config.json", {"quantization_config": {"quant_method": "torchao"}})
    for line in both(capsys, folder):
        assert all(word in line for word in ("config.json", "quantization_config", "torchao", "remove")), line


def test_quantised_tensors_of_torch(tmp_path, capsys):
    values = llama_weights()
    values[UP] = torch.quantize_per_tensor(values[UP].detach(), 0.01, 0, torch.qint8)
    torch.save(values, tmp_path / "weights.pt")
    line = spectrum_error(capsys, tmp_path / "weights.pt", "--trust")
    assert all(word in line for word in ("weights.pt", UP, "is quantised", "qint8")), line


def test_masks_and_tables_of_positions_are_not_weights(tmp_path):
    """As GPT-2, GPT-NeoX and Swin save them."""
    tensors = {
        UP: MATRIX,
        f"{BLOCK}attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8),
        f"{BLOCK}attn.causal_mask": torch.ones(8, 8, dtype=torch.bool),
        f"{BLOCK}attn.relative_position_index": torch.ones(8, 8, dtype=torch.int64),
        f"{BLOCK}attn.masked_bias": torch.tensor(-1e9),
        "model.embeddings.position_ids": torch.arange(8)[None],
    }
    folder = saved(tmp_path / "w", tensors)
    assert UP in rows_of(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floats_of_16_bits_and_more_are_weights(tmp_path, dtype):
    folder = tmp_path / "w"
    folder.mkdir()
    save_file({name: value.to(dtype) for name, value in llama_weights().items()}, folder / "w.safetensors")
    assert UP in rows_of(folder)
    accepted(folder)
