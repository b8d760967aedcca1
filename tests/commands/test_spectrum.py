from __future__ import annotations

import csv
import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from alphadecay_dist import cli
from alphadecay_dist.decay import Bounds, assign
from alphadecay_dist.spectral import Estimator, Windows, analyze
from tests.spectral.truth import gaussian, heavy, true_alpha
from tests.training.runs import SIZES, tiny_options, train_on


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
    assert (zero["alpha"], zero["weight_decay"], zero["status"]) == (None, 0.1, "zero")
    with (folder / "rows.csv").open() as file:
        table = {row["name"].split(".", 2)[2]: row for row in csv.DictReader(file)}
    assert float(table["0.mlp.up_proj.weight"]["alpha"]) == rows["0.mlp.up_proj.weight"]["alpha"]
    assert table["1.mlp.up_proj.weight"]["alpha"] == ""
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == str(folder)
    assert len(printed) == 5
    assert "172 x 64" in printed[2] + printed[3]


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


@pytest.mark.parametrize(
    ("option", "name"), [("--json", "no/rows.json"), ("--csv", "no/rows.csv"), ("--plot", "rows.docx")]
)
def test_a_file_that_cannot_be_written_is_refused_first(weights, capsys, option, name):
    folder, _ = weights
    assert cli.main(["spectrum", str(folder), option, str(folder / name)]) == 2
    printed = capsys.readouterr()
    assert f"{option} {folder / name}: found " in printed.err
    assert printed.out == ""


def test_a_fused_weight_gets_the_mean_of_its_parts(tmp_path):
    block = "model.layers.{}.self_attn.{}_proj.weight".format
    fused = torch.cat([gaussian(64, 64), heavy(64, 64), torch.zeros(64, 64)])
    save_file({block(0, "qkv"): fused, block(10, "o"): heavy(64, 64, 3)}, tmp_path / "model1.safetensors")
    save_file({block(2, "o"): gaussian(64, 64, 4)}, tmp_path / "model2.safetensors")
    rows = rows_of(tmp_path)
    names = [f"{block(0, 'qkv')}.{part}" for part in "qkv"]
    assert list(rows) == [*names, block(2, "o"), block(10, "o")]
    values = {name: row["alpha"] for name, row in rows.items()}
    own = assign(values, Bounds(0.1, 2 / 3, 5.0), shape="linear", last=dict.fromkeys(values, 0.1))
    mean = sum(own[name].weight_decay for name in names) / 3
    assert [rows[name]["weight_decay"] for name in names] == pytest.approx([mean] * 3)
    assert rows[block(10, "o")]["weight_decay"] == pytest.approx(own[block(10, "o")].weight_decay)


def test_the_rule_is_the_one_given(weights):
    folder, _ = weights
    rows = rows_of(folder, "--metric", "stable_rank", "--normalize", "mean", "--weight_decay", "0.2")
    q, up, _ = (row for _, row in sorted(rows.items(), key=lambda item: item[1]["stable_rank"] or 1e9))
    assert up["weight_decay"] / q["weight_decay"] == pytest.approx(7.5)
    sizes = [row["rows"] * row["columns"] for row in (q, up)]
    total = sum(size * row["weight_decay"] for size, row in zip(sizes, (q, up), strict=True))
    assert total / sum(sizes) == pytest.approx(0.2)


SETTINGS = {"decay__normalize": "mean", "decay__assign": "sqrt", "decay__xmin_pos": 3.0}


@pytest.mark.launcher
@pytest.mark.ranks
@pytest.mark.parametrize(
    ("stage", "world_size", "interval", "options"),
    [
        ("1", 2, 4, {}),
        ("3", 2, 4, {"train__dtype": "bfloat16", **SETTINGS}),
        ("2", 1, 3, {"decay__preset": "reference"}),
    ],
)
def test_a_run_is_read_as_it_refreshed(tmp_path, stage, world_size, interval, options):
    folder = tmp_path / "run"
    sizes = {"train__steps": 10, "decay__interval": 4, "checkpoint__every": interval}
    options = tiny_options(tmp_path, **sizes, **options)
    lines = {line["step"]: line["modules"] for line in train_on(world_size, stage, folder, options)["decay"]}
    assert list(lines) == ([0, 3, 7] if interval == 3 else [0, 4, 8])
    for step in (3,) if interval == 3 else (4, 8):
        rows = rows_of(folder / "checkpoints" / f"step-{step:08d}")
        found = {name.removesuffix(".weight"): row for name, row in rows.items()}
        if interval == 3:
            first = found.pop("model.layers.0.self_attn.q_proj")
            assert (first["status"], first["weight_decay"]) == ("ok", 1.0)
        assert list(found) == list(lines[step])
        for name, module in lines[step].items():
            assert found[name]["alpha"] == pytest.approx(module["alpha"], abs=1e-5)
            assert found[name]["weight_decay"] == pytest.approx(module["weight_decay"], abs=1e-4)


@pytest.mark.launcher
@pytest.mark.ranks
def test_heads_of_a_run_are_read_as_it_refreshed(tmp_path):
    options = tiny_options(tmp_path, train__steps=2, decay__heads=True, checkpoint__every=2, eval__tokens=100)
    (tmp_path / "tiny.json").write_text(json.dumps(SIZES | {"hidden_size": 128, "num_key_value_heads": 1}))
    options = [*options, "--decay.interval=2", "--optimizer.lr=0"]  # the weights stay as they were analysed
    (line,) = train_on(1, "ddp", tmp_path / "run", options)["decay"]
    rows = rows_of(tmp_path / "run")
    own = [
        (part["alpha"], module["weight_decay"])
        for name, module in line["modules"].items()
        for part in module.get("parts", {name: module}).values()
    ]
    assert len(own) == len(rows) == len(line["modules"]) + 2 * 2, "q and o have two heads, k and v one"
    for row, (alpha, weight_decay) in zip(rows.values(), own, strict=True):
        assert row["alpha"] == pytest.approx(alpha, abs=1e-5)
        assert row["weight_decay"] == pytest.approx(weight_decay, abs=1e-4)


@pytest.mark.launcher
@pytest.mark.ranks
def test_of_a_run_the_newest_whole_checkpoint_is_read(tmp_path, capsys):
    folder = tmp_path / "run"
    train_on(1, "2", folder, tiny_options(tmp_path, train__steps=4, checkpoint__every=2))
    steps = [folder / "checkpoints" / f"step-{step:08d}" for step in (2, 4)]
    assert rows_of(folder) == rows_of(folder / "checkpoints") == rows_of(steps[1]) != rows_of(steps[0])
    shards = max((steps[1] / "shards").iterdir(), key=lambda file: file.stat().st_size)
    shards.write_bytes(shards.read_bytes()[:-100])
    assert rows_of(folder) == rows_of(steps[0])
    assert capsys.readouterr().out.splitlines()[-16].endswith("step-00000002")
    assert cli.main(["spectrum", str(steps[1])]) == 2
    assert "expected" in capsys.readouterr().err.splitlines()[-1]
    shutil.rmtree(steps[0])
    assert cli.main(["spectrum", str(folder)]) == 2
    assert "no whole checkpoint" in capsys.readouterr().err.splitlines()[-1]


def test_what_holds_no_matrix_is_one_line(tmp_path, capsys):
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    save_file({"bias": torch.zeros(3)}, tmp_path / "empty.safetensors")
    for name, words in (
        ("nowhere", "no such file"),
        ("broken.safetensors", "read"),
        ("empty.safetensors", "no weight"),
    ):
        assert cli.main(["spectrum", str(tmp_path / name)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("alphadecay: error: ")
        assert words in line
