from __future__ import annotations

import pytest
import torch

from alphadecay_dist import UserError
from alphadecay_dist.params.fused import Cut, Heads, cut_by_name, cut_by_sizes, output_axis


def parts_of(cut, matrix):
    return {name: part.tolist() for name, part in cut.parts(matrix)}


def test_blocks_of_rows_and_of_columns():
    rows = torch.arange(12).reshape(6, 2)
    assert parts_of(Cut(("q", "k", "v"), (4, 1, 1)), rows) == {
        "q": rows[:4].tolist(),
        "k": rows[4:5].tolist(),
        "v": rows[5:].tolist(),
    }
    columns = rows.T
    cut = Cut(("gate", "up"), (3, 3), axis=1)
    assert parts_of(cut, columns) == {"gate": columns[:, :3].tolist(), "up": columns[:, 3:].tolist()}
    assert cut.shapes((2, 6)) == [(2, 3), (2, 3)]


def test_sizes_below_the_axis_repeat():
    rows = torch.arange(12).reshape(12, 1)
    cut = Cut(("q", "k", "v"), (2, 1, 1))
    assert {name: part.flatten().tolist() for name, part in cut.parts(rows)} == {
        "q": [0, 1, 4, 5, 8, 9],
        "k": [2, 6, 10],
        "v": [3, 7, 11],
    }
    assert cut.shapes((12, 1)) == [(6, 1), (3, 1), (3, 1)]


@pytest.mark.parametrize(
    ("name", "shape", "heads", "axis", "sizes"),
    [
        ("layers.0.attn.qkv", (192, 64), None, 0, (64, 64, 64)),
        ("layers.0.attn.qkv.weight", (192, 64), None, 0, (64, 64, 64)),
        ("layers.0.attn.in_proj_weight", (192, 64), None, 0, (64, 64, 64)),
        ("h.0.attn.c_attn", (64, 192), None, 1, (64, 64, 64)),
        ("layers.0.self_attn.qkv_proj", (96, 64), Heads(4, 1), 0, (64, 16, 16)),
        ("layers.0.self_attn.qkv_proj", (192, 64), Heads(8, 8), 0, (64, 64, 64)),
        ("layers.0.attention.query_key_value", (192, 64), Heads(4, 4, "gpt_neox"), 0, (16, 16, 16)),
        ("transformer.h.0.attn.c_attn", (192, 64), Heads(4, 4, "gpt_bigcode", 16), 0, (16, 16, 16)),
        ("transformer.h.0.attn.c_attn", (96, 64), Heads(4, 1, "gpt_bigcode", 16), 0, (64, 16, 16)),
        ("layers.0.mlp.gate_up_proj", (200, 64), Heads(4, 1), 0, (100, 100)),
        ("layers.0.mlp.experts.gate_up_proj", (64, 200), Heads(4, 1), 1, (100, 100)),
        ("layers.0.mlp.experts.gate_up_proj", (64, 200), Heads(4, 1, "gpt_oss"), 1, (1, 1)),
    ],
)
def test_names_tell_how_a_fused_weight_is_cut(name, shape, heads, axis, sizes):
    cut = cut_by_name(name, shape, heads, axis)
    assert (cut.sizes, cut.axis) == (sizes, axis)
    assert cut.names == (("gate", "up") if "gate" in name else ("q", "k", "v"))


@pytest.mark.parametrize(
    ("name", "shape", "heads"),
    [
        ("h.0.attn.qkv_proj", (192, 64), Heads(4, 4, "codegen", 16)),
        ("layers.0.self_attn.qkv_proj", (192, 64), Heads(4, 2, "minimax", 16)),
        ("layers.0.attention.query_key_value", (192, 64), Heads(4, 4, "falcon", 16)),
        ("layers.0.attention.query_key_value", (192, 64), Heads(4, 2, "gpt_neox", 16)),
        ("layers.0.attention.query_key_value", (192, 64), None),
        ("layers.0.attn.qkv_proj", (200, 64), Heads(8, 2, "", 16)),
        ("layers.0.attn.c_attn", (64, 96), None),
    ],
)
def test_models_with_a_layout_of_their_own_stay_whole(name, shape, heads):
    assert cut_by_name(name, shape, heads, 1 if "c_attn" in name else 0) is None


def test_an_attention_unlike_the_configs_is_cut_in_thirds():
    """A vision tower with its own heads, beside a text config with grouped queries."""
    cut = cut_by_name("vision.blocks.0.attn.qkv", (384, 128), Heads(8, 2, "", 64))
    assert cut.sizes == (128, 128, 128)


def test_the_heads_of_a_config():
    config = {"num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 256, "model_type": "llama"}
    assert Heads.of(config) == Heads(8, 2, "llama", 32)
    assert Heads.of({**config, "head_dim": 64}).width == 64
    assert Heads.of({"n_head": 4, "n_embd": 64}) == Heads(4, 4, "", 16)
    assert Heads.of({"hidden_size": 256}) is None


def test_the_order_of_up_and_gate_is_that_of_the_name():
    assert cut_by_name("layers.0.w12", (8, 4), None).names == ("gate", "up")
    assert cut_by_name("layers.0.up_gate_proj", (8, 4), None).names == ("up", "gate")


@pytest.mark.parametrize(
    ("name", "shape", "heads"),
    [
        ("layers.0.q_proj", (64, 64), Heads(4, 4)),
        ("layers.0.attn.qkv", (100, 64), None),  # no thirds, and no heads to tell
        ("layers.0.attn.qkv_proj", (97, 64), Heads(4, 1)),
        ("layers.0.attn.query_key_value", (192, 64), Heads(4, 4, "chatglm")),
        ("layers.0.attn.query_key_value", (192, 64), None),
        ("layers.0.gate_up_proj", (201, 64), None),
    ],
)
def test_what_names_do_not_tell_stays_whole(name, shape, heads):
    assert cut_by_name(name, shape, heads) is None


def test_explicit_sizes():
    cut = cut_by_sizes("layers.0.attn.wqkv", (96, 64), (64, 16, 16))
    assert (cut.names, cut.sizes) == (("0", "1", "2"), (64, 16, 16))
    assert cut_by_sizes("layers.0.attn.qkv_proj", (96, 64), (4, 1, 1)).names == ("q", "k", "v")
    assert cut_by_sizes("layers.0.attn.qkv_proj", (96, 64), (96,)) is None
    for wrong in ((), (0, 96), (60, 20), (100,)):
        with pytest.raises(UserError, match=r"parts of layers\.0.*qkv_proj: found sizes.*96 rows"):
            cut_by_sizes("layers.0.attn.qkv_proj", (96, 64), wrong)


def test_heads_come_from_a_config_or_from_its_json():
    json = {"num_attention_heads": 8, "num_key_value_heads": 2, "model_type": "phi3"}
    assert Heads.of(json) == Heads(8, 2, "phi3")
    assert Heads.of({"n_head": 12}) == Heads(12, 12, "")
    assert Heads.of({"hidden_size": 12}) is None
    assert Heads.of(None) is None


@pytest.mark.parametrize(
    ("shape", "down", "axis"), [((120, 70), (70, 60), 0), ((70, 120), (60, 70), 1), ((120, 70), None, 0)]
)
def test_the_down_projection_tells_where_the_outputs_of_gate_and_up_lie(shape, down, axis):
    assert output_axis(shape, down) == axis
