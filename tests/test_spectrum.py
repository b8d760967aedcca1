from __future__ import annotations

import csv
import json

import pytest
import torch
from safetensors.torch import save_file

from alphadecay_dist import cli
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
