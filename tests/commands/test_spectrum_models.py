"""``alphadecay spectrum`` of a saved model has the rows and decays of a training run of that model."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import replace

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

from alphadecay_dist import AlphaDecay, cli, param_groups
from alphadecay_dist.commands.spectrum_rows import rows_of as rows_on_disk
from alphadecay_dist.commands.weight_files import open_weights
from alphadecay_dist.params.inventory import tuned_weights
from alphadecay_dist.sharding.planning import parts_of
from alphadecay_dist.spectral import analyze
from tests.models import MODELS, small

EXPERTS_JOINED = pytest.mark.skipif(
    int(transformers.__version__.split(".")[0]) < 5, reason="transformers 4 keeps Mixtral's experts apart"
)


def rows_of(folder):
    out = folder / "rows.json"
    assert cli.main(["spectrum", str(folder), "--json", str(out)]) == 0
    return {row["name"]: row for row in json.loads(out.read_text())}


def trained(model):
    """The decay of each module after its first refresh."""
    optimizer = torch.optim.AdamW(param_groups(model, weight_decay=0.1), lr=0.0)
    decay = AlphaDecay(model, optimizer, weight_decay=0.1, interval=5)
    decay.step()
    return {name: module.weight_decay for name, module in decay.modules.items()}


def matrices(model):
    """Alpha and the decay of its module, of each matrix that training analyses, sorted."""
    decays = trained(model)
    return sorted(
        (analyze(part).alpha, decays[weight.name])
        for weight in tuned_weights(model)
        for unit in (weight.parameter if len(weight.shape) == 3 else [weight.parameter])
        for _, part in weight.cut_up("", unit.detach())
    )


@pytest.mark.parametrize("name", list(MODELS))
def test_a_saved_model_has_a_row_for_every_matrix_that_training_tunes(tmp_path, name):
    model = small(name)
    model.save_pretrained(tmp_path)
    expected, rows = matrices(model), rows_of(tmp_path)
    assert len(rows) == len(expected) == sum(len(parts_of(weight)) for weight in tuned_weights(model))
    found = sorted((row["alpha"], row["weight_decay"]) for row in rows.values())
    assert [value for pair in found for value in pair] == pytest.approx(
        [value for pair in expected for value in pair], abs=2e-5
    )


@EXPERTS_JOINED
def test_experts_that_training_joins_share_a_decay_and_keep_their_names(tmp_path):
    model = small("mixtral")
    model.save_pretrained(tmp_path)
    shared = defaultdict(set)
    for name, row in rows_of(tmp_path).items():
        if ".experts." in name:
            kind = "down" if "w2" in name else "gate_up"
            shared[name.split(".")[2], kind].add(row["weight_decay"])
    assert set(shared) == {(layer, kind) for layer in "01" for kind in ("down", "gate_up")}
    decays = trained(model)
    for (layer, kind), found in shared.items():
        (value,) = found
        assert value == pytest.approx(decays[f"model.layers.{layer}.mlp.experts.{kind}_proj"])


def own_mixture():
    """An own mixture of experts, with lists that look like numbered blocks and are none."""
    torch.manual_seed(0)
    block = {
        "experts": nn.ModuleList([nn.ModuleDict({"w1": nn.Linear(64, 64), "w2": nn.Linear(64, 64)})] * 1),
        "router": nn.Linear(64, 52),
        "shared_expert": nn.Linear(64, 64),
        "mlp": nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)),
        "lora_A": nn.Linear(64, 64),
        "attn": nn.MultiheadAttention(64, 2),
        "conv": nn.Conv2d(8, 64, 3),
        "normed": nn.utils.spectral_norm(nn.Linear(64, 64)),
        "normed_conv": nn.utils.spectral_norm(nn.Conv2d(64, 64, 3)),
        "wte": nn.Embedding(80, 64),
    }
    block["experts"].append(nn.ModuleDict({"w1": nn.Linear(64, 64), "w2": nn.Linear(64, 49)}))
    return nn.ModuleDict(
        {
            "embed_tokens": nn.ModuleList([nn.Embedding(80, 64)]),
            "layers": nn.ModuleList([nn.ModuleDict(block)]),
            "mlp": nn.Sequential(nn.Linear(64, 64)),
            "lm_heads": nn.ModuleList([nn.Linear(64, 80)]),
            "heads": nn.ModuleList([nn.Linear(64, 80)]),
        }
    )


def test_without_a_config_names_and_shapes_give_what_training_tunes(tmp_path):
    model = own_mixture()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    rows = rows_of(tmp_path)
    expected = [part for weight in tuned_weights(model) for part in parts_of(weight)]
    names = {re.sub(r"\.weight(?=\.|$)", "", name): row for name, row in rows.items()}
    assert sorted(names) == sorted(expected)
    decays = trained(model)
    for weight in tuned_weights(model):
        for part in parts_of(weight):
            assert names[part]["weight_decay"] == pytest.approx(decays[weight.name], abs=1e-5)


class Blocks(nn.Module):
    """A patch embedding that is a convolution, blocks with a fused weight, and a head that is in a block."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.patch = nn.Conv2d(3, 64, 8)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"attn_qkv": nn.ModuleDict({"qkv": nn.Linear(64, 192)}), "fc": nn.Linear(64, 80)})
            for _ in range(2)
        )
        self.last = nn.ModuleList([nn.ModuleDict({"fc": nn.Linear(64, 70)})])


def test_the_reference_preset_tunes_the_same_of_a_file_as_of_the_model(tmp_path):
    model = Blocks()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    optimizer = torch.optim.AdamW(param_groups(model, weight_decay=0.1), lr=0.0)
    decay = AlphaDecay(model, optimizer, weight_decay=0.1, interval=5, preset="reference")
    decay.step()
    expected = {name: module.weight_decay for name, module in decay.modules.items()}
    in_order = {name: place for place, name in enumerate(model.state_dict())}
    weights = open_weights(tmp_path)
    weights = replace(weights, tensors=sorted(weights.tensors, key=lambda own: in_order[own.name]))
    rows = {row.name.removesuffix(".weight"): row for row in rows_on_disk(weights, decay.settings)}
    assert set(rows) == {weight.name for weight in tuned_weights(model)}
    assert set(rows) - set(expected) == {"last.0.fc"}, "the last Linear is at the base decay"
    assert rows["last.0.fc"].weight_decay == 0.1
    found = {name: rows[name].weight_decay for name in expected}
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        '{"model_type": "nonesuch"}',
        '{"model_type": "llama", "num_hidden_layers": 1000000000}',
        '{"model_type": "llama", "hidden_size": "wide"}',
        '{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}',
    ],
)
def test_a_config_that_is_not_of_these_weights_leaves_it_to_the_names(tmp_path, config, caplog):
    model = own_mixture()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    expected = set(rows_of(tmp_path))
    assert caplog.messages == []
    (tmp_path / "config.json").write_text(config)
    assert set(rows_of(tmp_path)) == expected
    (line,) = caplog.messages
    assert "names and shapes tell what is tuned" in line


@EXPERTS_JOINED
def test_one_shard_of_a_model_is_read_by_its_model_too(tmp_path):
    model = small("qwen3_moe")
    model.save_pretrained(tmp_path)
    kept = {n: p for n, p in model.state_dict().items() if n.startswith("model.layers.1.") and p.ndim < 3}
    save_file(kept, tmp_path / "model.safetensors")
    assert set(rows_of(tmp_path)) == {n for n in kept if "self_attn" in n and n.endswith("_proj.weight")}


@pytest.mark.parametrize("config", [True, False])
def test_heads_of_a_file_are_those_of_training(tmp_path, config):
    """GPT-2's, whose weights are (in, out); without transformers' model the config's heads and names do."""
    sizes = {"n_embd": 104, "n_head": 2, "n_layer": 2, "vocab_size": 96, "n_positions": 32}
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))
    model.save_pretrained(tmp_path)
    if not config:
        (tmp_path / "config.json").write_text(json.dumps({"n_head": 2, "n_embd": 104}))
    optimizer = torch.optim.AdamW(param_groups(model, weight_decay=0.1), lr=0.0)
    modules = AlphaDecay(model, optimizer, weight_decay=0.1, heads=True).refresh().modules
    expected = {}
    for name, module in modules.items():
        expected |= {
            part: (own.alpha, module.weight_decay) for part, own in (module.parts or {name: module}).items()
        }
    assert len(expected) == 2 * (6 + 2 + 2)
    assert cli.main(["spectrum", str(tmp_path), "--heads", "--json", str(tmp_path / "rows.json")]) == 0
    rows = {row["name"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    found = sorted((row["alpha"], row["weight_decay"]) for row in rows.values())
    assert [row for own in found for row in own] == pytest.approx(
        [row for own in sorted(expected.values()) for row in own], abs=1e-5
    )
    assert {"q.1", "v.0"} <= {name.split("c_attn.")[-1].removeprefix("weight.") for name in rows}
