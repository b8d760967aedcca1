"""Which matrices have a row, of which type and with which input: fused weights, experts, images."""

from __future__ import annotations

import json

import pytest
import torch

from alphadecay_dist import SpectralCondition, UserError
from alphadecay_dist.condition.sample import log_condition
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
