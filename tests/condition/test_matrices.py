"""Which matrices have a row, of which type and with which input: fused weights, experts, images."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from alphadecay_dist import AlphaDecay, SpectralCondition, UserError, param_groups
from alphadecay_dist.condition.matrices import Matrices
from alphadecay_dist.condition.sample import log_condition
from alphadecay_dist.spectral import Estimator
from tests.models import small

IDS = torch.randint(3, 96, (3, 12), generator=torch.Generator().manual_seed(1))


def sampled(name, **options):
    model = small(name)
    condition = SpectralCondition(model, every=2, decay=0.1, **options)
    model(input_ids=IDS, labels=IDS).loss.backward()
    return condition.step()


def statuses(sample, of):
    return {own.status for name, own in sample.matrices.items() if of in name}


def test_a_llama_has_the_rows_of_the_published_table():
    sample = sampled("llama", heads=2)
    own = sample.matrices
    assert [row.type for row in own.values()] == ["q", "k", "v", "o", "gate", "up", "down"] * 2 + [
        "head",
        "embed",
    ]
    assert all(row.status == "ok" and row.decay == 0.1 for row in own.values())
    place = "model.layers.0.self_attn"
    q, k, o = (own[f"{place}.{kind}_proj"] for kind in "qko")
    assert q.st == k.st == q.st_in == o.st_norm == o.st != o.st_in
    assert q.st_norm is None
    assert own["model.embed_tokens"].st == sample.inv_p_max > 1
    assert own["model.layers.0.mlp.gate_proj"].st_in == own["model.layers.0.mlp.up_proj"].st_in
    assert len(q.heads) == len(o.heads) == 2
    assert own["lm_head"].heads == ()
    assert q.nr_over_rank == q.nr / 64
    assert (q.passes_1, q.passes_2) == (q.ratio >= 1, q.ratio >= 2)
    assert q.alpha > 1
    assert 1 < q.stable_rank < 64 * q.spectral_norm


def test_keys_have_fewer_heads_than_queries():
    """Two of 32 rows, not eight of 8."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 256, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 96}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2}
    told = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads))
    linear = {"q_proj": (256, 256), "k_proj": (256, 64), "v_proj": (256, 64), "o_proj": (256, 256)}
    own = nn.ModuleDict({name: nn.Linear(*shape) for name, shape in linear.items()})
    for model in (told, nn.ModuleDict({"attn": own})):  # by its config, by the width of a head
        blocks = Matrices(model, "attn").blocks(8)
        found = {name.rpartition(".")[2]: counted for name, counted in blocks.items()}
        assert found == {"q_proj": (8, 0), "k_proj": (2, 0), "v_proj": (2, 0), "o_proj": (8, 1)}


def test_fused_weights_have_a_row_a_part_and_tied_ones_no_ratio():
    own = sampled("gpt2", heads=2).matrices
    place = "transformer.h.0.attn"
    assert [own[f"{place}.c_attn.{kind}"].type for kind in "qkv"] == ["q", "k", "v"]
    assert {own[f"{place}.c_attn.{kind}"].shape for kind in "qkv"} == {(64, 64)}
    assert own[f"{place}.c_attn.v"].weight == f"{place}.c_attn"
    assert own[f"{place}.c_proj"].st == own[f"{place}.c_attn.q"].st_in
    assert all(len(own[f"{place}.{name}"].heads) == 2 for name in ("c_attn.k", "c_proj"))
    tied = own["transformer.wte"]
    assert (tied.type, tied.status, tied.ratio) == ("embed", "tied", None)
    assert tied.nr > 1


def test_what_the_policy_has_just_found_is_not_measured_again():
    model = small("llama")
    optimizer = torch.optim.AdamW(param_groups(model, weight_decay=0.1))
    decay = AlphaDecay(model, optimizer, weight_decay=0.1, interval=2)
    beside, alone = (SpectralCondition(model, every=1, decay=own) for own in (decay, None))
    weight = model.model.layers[0].mlp.up_proj.weight
    for update in range(3):
        optimizer.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        decay.step()
        its, before = alone.step(), weight.detach().clone()
        torch.nn.init.zeros_(weight)  # of which a measurement would show
        mine = beside.step().matrices
        with torch.no_grad():
            weight.copy_(before)
        other = mine.pop("model.layers.0.mlp.up_proj")
        expected = {
            name: replace(own, decay=mine[name].decay) for name, own in its.matrices.items() if name in mine
        }
        assert mine == expected
        measured = its.matrices["model.layers.0.mlp.up_proj"]
        assert other.alpha == (None if update == 1 else measured.alpha)
        assert (other.spectral_norm == measured.spectral_norm) is (update != 1)
        optimizer.step()


def test_another_measurement_stands_for_none():
    model = small("llama")
    optimizer = torch.optim.AdamW(param_groups(model, weight_decay=0.1))
    decay = AlphaDecay(model, optimizer, weight_decay=0.1, interval=2)
    decay.step()
    mine = Estimator()
    assert decay.spectra_at(0, mine, None).keys() == decay.modules.keys()
    assert not decay.spectra_at(1, mine, None)  # of other weights
    assert not decay.spectra_at(0, mine, torch.bfloat16)
    assert not decay.spectra_at(0, replace(mine, xmin_pos=3.0), None)
    decay.load_state_dict(decay.state_dict())
    assert not decay.spectra_at(0, mine, None)


def test_experts_have_gradients_and_no_input_that_is_known():
    sample = sampled("mixtral")
    assert statuses(sample, "experts") == {"no_input"}
    assert statuses(sample, "self_attn") == {"ok"}
    expert = sample.matrices["model.layers.0.mlp.experts.gate_up_proj.1.up"]
    assert (expert.type, expert.st, expert.ratio) == ("up", None, None)
    assert expert.nr > 1


def test_undefined_is_named_and_no_nan_in_a_file(tmp_path):
    model = small("llama")
    condition = SpectralCondition(model, which=r"layers\.0\.mlp|embed")
    model(input_ids=IDS, labels=IDS).loss.backward()
    mlp = model.model.layers[0].mlp
    mlp.gate_proj.weight.grad = None
    mlp.up_proj.weight.grad.zero_()
    mlp.down_proj.weight.grad[0, 0] = float("nan")
    sample = condition.step()
    found = {name.rpartition(".")[2]: own for name, own in sample.matrices.items()}
    assert {name: own.status for name, own in found.items()} == {
        "gate_proj": "zero_gradient",
        "up_proj": "zero_gradient",
        "down_proj": "non_finite_gradient",
        "embed_tokens": "ok",
    }
    assert {own.ratio for name, own in found.items() if name != "embed_tokens"} == {None}
    log_condition(tmp_path, sample)
    log_condition(tmp_path, condition.step())  # none: the next one is due in 499 updates
    (line,) = (tmp_path / "condition.jsonl").read_text().splitlines()
    assert "NaN" not in line
    assert json.loads(line)["matrices"]["model.layers.0.mlp.down_proj"]["nr"] is None


def test_images_have_no_tokens_to_count():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 64, "depth": 1, "num_heads": 2, "num_classes": 60}
    model = timm.create_model("vit_tiny_patch16_224", **sizes)
    condition = SpectralCondition(model)
    model(torch.randn(4, 3, 16, 16)).square().mean().backward()
    sample = condition.step()
    assert sample.inv_p_max is None
    assert [own.type for own in sample.matrices.values()] == ["q", "k", "v", "proj", "fc1", "fc2", "head"]
    assert {own.status for own in sample.matrices.values()} == {"ok"}
    assert sample.n_tokens == 4 * 5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"every": 0}, "every: found 0, expected a whole number, 1 or more"),
        ({"tokens": 2.5}, "tokens: found 2.5, expected a whole number"),
        ({"which": "("}, r"which: found '\(', which is no regular expression"),
        ({"which": "conv"}, "which: 'conv' finds none of the 16 matrices of the model"),
        ({"decay": "strong"}, "decay: found 'strong', expected an AlphaDecay or a number"),
    ],
)
def test_what_cannot_be_is_refused(options, said):
    with pytest.raises(UserError, match=said):
        SpectralCondition(small("llama"), **options)
