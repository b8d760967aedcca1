"""What samples say together: medians by type, shares that pass, an order, a suggestion."""

from __future__ import annotations

import shlex

import pytest
import torch
from torch import nn

from alphadecay_dist.condition.numbers import medians_by_type
from alphadecay_dist.condition.summary import suggestion, summary
from alphadecay_dist.optimizers.division import chosen
from alphadecay_dist.params.inventory import tuned_weights
from alphadecay_dist.training.config import load_config


def own(kind, weight, ratio):
    nr = None if ratio is None else 4.0 * ratio
    numbers = {"nr": nr, "st": 4.0, "spectral_norm": 2.0}
    return {"type": kind, "weight": weight, "shape": [64, 64], "ratio": ratio, **numbers}


def line(step, **ratios):
    """Two layers; of the ratios one is each layer's own."""
    matrices = {"embed": own("embed", "embed", 9.0)}
    for kind, pair in ratios.items():
        for layer, ratio in enumerate(pair):
            name = f"layers.{layer}.{'mlp' if kind in ('up', 'down') else 'self_attn'}.{kind}_proj"
            matrices[name] = own(kind, name, ratio)
    return {"step": step, "n_tokens": 100 + step, "inv_p_max": 20.0, "matrices": matrices}


LINES = [
    line(0, q=(0.5, 0.7), v=(0.9, 3.0), down=(6.0, 8.0)),
    line(10, q=(0.6, None), v=(0.7, 1.5), down=(6.0, 0.5)),
]


def test_medians_by_type():
    found = medians_by_type(LINES[0])
    assert found["condition/ratio/v"] == pytest.approx(1.95)
    assert found["condition/nr/down"] == 28.0
    assert found["condition/spectral_norm/q"] == 2.0
    assert found["condition/inv_p_max"] == 20.0
    assert "condition/ratio/q" not in medians_by_type(line(0, q=(None, None)))


def test_the_table_and_the_order():
    text = summary(LINES)
    assert text.startswith("spectral condition nr / st: 2 samples, updates 0 to 10, up to 110 tokens\n")
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in text.splitlines() if "|" in row]
    found = {row[0]: row[1:] for row in rows}
    assert found["q"] == ["2", "2.4", "4", "0.6", "0%", "0%"]
    assert found["v"] == ["2", "4.8", "4", "1.2", "50%", "25%"]
    assert found["down"] == ["2", "24", "4", "6", "75%", "75%"]
    assert "the same here: q, k 0.6, v, o 1.2, MLP 6" in text
    assert "not so here" in summary([line(0, q=(5.0, 5.0), v=(1.0, 1.0), down=(2.0, 2.0))])
    assert "not all of them were sampled" in summary([line(0, q=(5.0, 5.0))])


def test_a_suggestion_names_layers_where_not_all_pass():
    text = suggestion(LINES)
    assert "A suggestion, no more" in text
    assert "no momentum and no Adam" in text
    code = text[text.index("from fnmatch") :]
    assert '"layers.*.mlp.down_proj"' in code
    assert '"layers.1.self_attn.v_proj"' in code
    assert "layers.0.self_attn.v_proj" not in code
    assert "q_proj" not in code
    assert "embed" not in code


def test_a_suggestion_for_a_higher_ratio_is_a_shorter_one():
    text = suggestion(LINES, 2.5)
    assert "nr / st is 2.5 or more at the median" in text
    assert '"layers.*.mlp.down_proj"' in text
    assert "v_proj" not in text


def test_embeddings_of_positions_are_no_matrices_of_a_block():
    """Nor does a pattern take more than what passes."""
    wpe = own("wpe", "wpe", 50.0) | {"st_method": "counts"}
    deep = own("q", "layers.0.cross.attn.q_proj", 0.5), own("q", "layers.0.attn.q_proj", 2.0)
    matrices = {"wpe": wpe, **{row["weight"]: row for row in deep}}
    text = suggestion([{"step": 0, "n_tokens": 9, "inv_p_max": None, "matrices": matrices}])
    assert "wpe" not in text
    assert '"layers.0.attn.q_proj"' in text
    assert "layers.*.attn.q_proj" not in text
    mlp = summary(
        [line(0, q=(1.0, 1.0), v=(2.0, 2.0), down=(3.0, 3.0)), {**LINES[0], "matrices": {"wpe": wpe}}]
    )
    assert "MLP 3" in mlp


def test_a_suggestion_is_an_option_of_the_trainer():
    (option,) = [row for row in suggestion(LINES).splitlines() if row.startswith("train.py: ")]
    given = [word.removeprefix("--") for word in shlex.split(option)[1:]]
    modules = load_config("demo", given).optimizer.muon_modules
    model = nn.ModuleDict({"layers": nn.ModuleList(a_layer(64) for _ in range(2))})
    assert [weight.name for weight in chosen(tuned_weights(model), modules)] == [
        "layers.0.mlp.down_proj",
        "layers.1.self_attn.v_proj",
        "layers.1.mlp.down_proj",
    ]


def a_layer(width=8):
    attention = {"q_proj": nn.Linear(width, width), "v_proj": nn.Linear(width, width, bias=False)}
    mlp = {"down_proj": nn.Linear(width, width, bias=False)}
    return nn.ModuleDict({"self_attn": nn.ModuleDict(attention), "mlp": nn.ModuleDict(mlp)})


def test_a_suggestion_is_code_that_divides_a_model():
    text = suggestion(LINES)
    model = nn.ModuleDict({"layers": nn.ModuleList(a_layer() for _ in range(2)), "embed": nn.Embedding(9, 8)})
    names = {"model": model, "torch": torch}
    exec(text[text.index("from fnmatch") :], names)
    chosen = [name for name, weight in model.named_parameters() if weight.use_muon]
    assert chosen == [
        "layers.0.mlp.down_proj.weight",
        "layers.1.self_attn.v_proj.weight",
        "layers.1.mlp.down_proj.weight",
    ]
    muon, rest = names["optimizers"]
    assert sum(weight.numel() for group in muon.param_groups for weight in group["params"]) == 3 * 64
    assert len(rest.param_groups[0]["params"]) == len(list(model.parameters())) - 3
    assert [group["algorithm"] for group in names["groups"]] == ["muon", "adamw"]


def test_nothing_is_suggested_where_nothing_passes():
    assert suggestion([line(0, q=(0.5, 0.7))]).startswith("Suggestion: no matrix of the blocks passes")
