from __future__ import annotations

import csv
import json

import pytest
import torch
from safetensors.torch import save_file

from alphadecay_dist import cli
from alphadecay_dist.spectral import Estimator, Windows, analyze
from tests.spectral.truth import gaussian, heavy, true_alpha


@pytest.fixture
def weights(tmp_path):
    """Two files of one checkpoint, with a matrix whose alpha is undefined and some that are not tuned."""
    first = {
        "model.embed_tokens.weight": gaussian(200, 64),
        "model.layers.0.self_attn.q_proj.weight": heavy(64, 64),
        "model.layers.0.input_layernorm.weight": torch.ones(64),
        "model.layers.0.mlp.up_proj.weight": gaussian(172, 64).bfloat16(),
    }
    second = {
        "model.layers.1.mlp.up_proj.weight": torch.zeros(172, 64),
        "model.layers.1.mlp.small.weight": gaussian(20, 64),
        "lm_head.weight": gaussian(200, 64),
    }
    save_file(first, tmp_path / "model-00001.safetensors")
    save_file(second, tmp_path / "model-00002.safetensors")
    return tmp_path, first | second


def test_a_directory_gives_a_row_for_every_tuned_matrix(weights, capsys):
    folder, tensors = weights
    out = folder / "rows.json"
    assert cli.main(["spectrum", str(folder), "--json", str(out), "--csv", str(folder / "rows.csv")]) == 0
    rows = {row["name"].split(".", 2)[2]: row for row in json.loads(out.read_text())}
    assert set(rows) == {"0.self_attn.q_proj.weight", "0.mlp.up_proj.weight", "1.mlp.up_proj.weight"}
    for name in ("0.self_attn.q_proj.weight", "0.mlp.up_proj.weight"):
        assert rows[name]["alpha"] == pytest.approx(true_alpha(tensors[f"model.layers.{name}"]), abs=1e-5)
    assert rows["0.self_attn.q_proj.weight"]["weight_decay"] == pytest.approx(0.1 * 2 / 3)
    assert rows["0.mlp.up_proj.weight"]["weight_decay"] == pytest.approx(0.5)
    zero = rows["1.mlp.up_proj.weight"]
    assert (zero["alpha"], zero["weight_decay"], zero["status"]) == (None, None, "zero")
    with (folder / "rows.csv").open() as file:
        table = {row["name"].split(".", 2)[2]: row for row in csv.DictReader(file)}
    assert float(table["0.mlp.up_proj.weight"]["alpha"]) == rows["0.mlp.up_proj.weight"]["alpha"]
    assert table["1.mlp.up_proj.weight"]["alpha"] == ""
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 4
    assert "172 x 64" in printed[1] + printed[2]


@pytest.mark.parametrize("fit", ["hill", "goodness_of_fit", "fix_finger"])
def test_a_single_file_is_drawn_with_any_fit(weights, fit):
    folder, _ = weights
    picture = folder / "spectrum.png"
    command = ["spectrum", str(folder / "model-00001.safetensors"), "--fit", fit, "--plot", str(picture)]
    assert cli.main(command) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def rows_of(folder, *options):
    out = folder / "rows.json"
    assert cli.main(["spectrum", str(folder), "--json", str(out), *options]) == 0
    return {row["name"]: row for row in json.loads(out.read_text())}


def test_fused_weights_experts_and_convolutions_have_a_row_a_matrix(tmp_path):
    block = "model.layers.0."
    tensors = {
        f"{block}attn.qkv_proj.weight": heavy(192, 64),
        f"{block}attn.c_attn.weight": heavy(60, 180, 2),
        f"{block}mlp.experts.gate_up_proj": heavy(3 * 70, 120, 4).reshape(3, 70, 120),
        f"{block}mlp.experts.down_proj": heavy(3 * 60, 70, 6).reshape(3, 60, 70),
        f"{block}conv.weight": heavy(24, 180, 8).reshape(24, 20, 3, 3),
        f"{block}norm.weight": torch.ones(64),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"num_attention_heads": 2, "num_key_value_heads": 2}')
    qkv, columns, gate_up, down, conv, _ = tensors.values()
    expected = {
        f"{block}attn.qkv_proj.weight.{part}": qkv[64 * i : 64 * i + 64] for i, part in enumerate("qkv")
    }
    for i, part in enumerate("qkv"):
        expected[f"{block}attn.c_attn.weight.{part}"] = columns[:, 60 * i : 60 * i + 60]
    for expert in range(3):
        for i, part in enumerate(("gate", "up")):
            half = gate_up[expert, :, 60 * i : 60 * i + 60]
            expected[f"{block}mlp.experts.gate_up_proj.{expert}.{part}"] = half
        expected[f"{block}mlp.experts.down_proj.{expert}"] = down[expert]
    rows = rows_of(tmp_path)
    assert rows.pop(f"{block}conv.weight")["alpha"] == pytest.approx(analyze(conv).alpha, abs=1e-5)
    found = {name: row["alpha"] for name, row in rows.items()}
    assert found == pytest.approx({name: true_alpha(m) for name, m in expected.items()}, abs=1e-5)


def test_key_value_heads_come_from_the_config(tmp_path):
    name = "model.layers.0.self_attn.qkv_proj.weight"
    save_file({name: heavy(400, 256)}, tmp_path / "model.safetensors")
    assert set(rows_of(tmp_path)) == {name}
    (tmp_path / "config.json").write_text('{"num_attention_heads": 4, "num_key_value_heads": 1}')
    assert {n: row["rows"] for n, row in rows_of(tmp_path).items()} == {name: 400}  # 66 and 2/3 rows: whole
    save_file({name: heavy(384, 256)}, tmp_path / "model.safetensors")
    sizes = {n.rsplit(".", 1)[1]: row["rows"] for n, row in rows_of(tmp_path).items()}
    assert sizes == {"q": 256, "k": 64, "v": 64}


def test_windows_and_position_are_those_that_were_asked_for(weights, capsys):
    folder, tensors = weights
    name = "model.layers.0.mlp.up_proj.weight"
    farms = Estimator(windows=Windows(50, 1.0, (2, 1)))
    rows = rows_of(folder, "--farms_rows", "50", "--farms_grid", "2", "1")
    assert rows[name]["alpha"] == pytest.approx(analyze(tensors[name], farms).alpha, abs=1e-6)
    rows = rows_of(folder, "--xmin_pos", "4")
    assert rows[name]["alpha"] == pytest.approx(analyze(tensors[name], Estimator(xmin_pos=4)).alpha, abs=1e-6)
    for options, words in (
        (["--farms_rows", "100"], "larger than the matrix"),
        (["--xmin_pos", "1"], "xmin_pos"),
    ):
        assert cli.main(["spectrum", str(folder), *options]) == 2
        assert words in capsys.readouterr().err.splitlines()[-1]


def test_what_holds_no_matrix_is_one_line(tmp_path, capsys):
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    save_file({"bias": torch.zeros(3)}, tmp_path / "empty.safetensors")
    for name, words in (
        ("nowhere", "no safetensors"),
        ("broken.safetensors", "read"),
        ("empty.safetensors", "no weight"),
    ):
        assert cli.main(["spectrum", str(tmp_path / name)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("alphadecay: error: ")
        assert words in line
