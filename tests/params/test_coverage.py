from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.utils import parametrizations

from alphadecay_dist import UserError, param_groups
from alphadecay_dist.params.coverage import coverage
from alphadecay_dist.params.inventory import tuned_weights
from tests.models import small
from tests.multirank import run_ranks


class Stack(nn.Module):
    """A layer with matrices side by side in one parameter, under no name that tells."""

    def __init__(self):
        super().__init__()
        self.mixed = nn.Parameter(torch.ones(2, 64, 64))


class Model(nn.Module):
    """One of everything that can be left out."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(100, 64)
        block = {
            "up": nn.Linear(64, 64, bias=False),
            "k_proj": nn.Linear(64, 32, bias=False),
            "lora_A": nn.Linear(64, 4, bias=False),
            "normed": parametrizations.weight_norm(nn.Linear(64, 65, bias=False)),
            "spectral": parametrizations.spectral_norm(nn.Linear(64, 66, bias=False)),
            "stack": Stack(),
            "norm": nn.LayerNorm(64, bias=False),
        }
        self.layers = nn.ModuleList([nn.ModuleDict(block)])
        self.proj = nn.Linear(64, 67, bias=False)
        self.lm_head = nn.Linear(64, 99, bias=False)


REASONS = {
    "layers.0.stack.mixed": "matrices in one parameter that no name tells apart",
    "embed": "embedding",
    "lm_head": "output head",
    "proj": "not in a numbered block",
    "layers.0.spectral.parametrizations.weight.original": "parametrized by spectral_norm",
    "layers.0.normed.parametrizations.weight.original1": "parametrized by weight_norm",
    "layers.0.k_proj": "fewer than 50 eigenvalues",
    "layers.0.lora_A": "LoRA factor",
    "layers.0.normed.parametrizations.weight.original0": "parametrized by weight_norm",
    "layers.0.norm": "a vector",
}


def test_every_trained_parameter_is_tuned_or_left_out_with_its_reason_largest_first():
    model = Model()
    found = coverage(model, tuned_weights(model))
    assert found.tuned == 64 * 64
    assert found.total == sum(parameter.numel() for parameter in model.parameters())
    assert {own.name: own.reason for own in found.left_out} == REASONS
    sizes = [own.numel for own in found.left_out]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) == found.total - found.tuned


def test_the_line_tells_the_share_and_the_largest_kinds():
    model = small("llama")
    assert coverage(model, tuned_weights(model)).line() == (
        "tuned: 84.67 % of 82,240 trained weights; not tuned: model.embed_tokens 7.47 % (96 x 64; "
        "embedding), lm_head 7.47 % (96 x 64; output head), model.layers.*.input_layernorm 0.156 % (64; a "
        "vector) and 2 smaller kinds"
    )
    frozen = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(64, 64)])}).requires_grad_(False)
    assert coverage(frozen, []).line() == "tuned: 0 % of 0 trained weights"
    block = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"fc": nn.Linear(64, 64, bias=False)})])})
    assert coverage(block, tuned_weights(block)).line() == "tuned: 100 % of 4,096 trained weights"


def test_what_was_not_named_is_said_to_be_not_chosen():
    model = small("llama")
    found = coverage(model, tuned_weights(model, ["*.q_proj"]))
    reasons = {own.name: own.reason for own in found.left_out}
    assert reasons["model.layers.1.mlp.up_proj"] == "not chosen"
    assert reasons["lm_head"] == "output head"


@pytest.mark.parametrize("name", ["gpt2", "jetmoe", "dbrx", "vit_gpt2", "mixtral", "gpt_oss"])
def test_joined_experts_and_transposed_matrices_are_tuned(name):
    model = small(name)
    weights = tuned_weights(model)
    found = coverage(model, weights)
    in_blocks = [own for own in found.left_out if any(part.isdigit() for part in own.name.split("."))]
    assert max(own.numel for own in in_blocks) < 500  # vectors, and routers of a few experts
    for weight in weights:
        whole = torch.zeros(weight.unit_shape)
        pieces = [matrix.numel() for _, matrix in weight.cut_up(weight.name, whole)]
        assert sum(pieces) == whole.numel()
        assert min(map(min, weight.part_shapes())) >= 50


def test_experts_and_gates_are_cut_where_they_meet():
    cuts = {w.name: w.part_shapes() for name in ("jetmoe", "dbrx") for w in tuned_weights(small(name))}
    assert cuts["model.layers.0.mlp.input_linear"] == [(64, 64)] * 2
    assert cuts["model.layers.0.self_attention.experts.input_linear"] == [(64, 64)]
    assert cuts["transformer.blocks.0.ffn.experts.mlp.w2"] == [(64, 64)] * 3


def sharded_coverage(strategy):
    torch.manual_seed(0)
    model = Model()
    expected = coverage(model, tuned_weights(model))
    if strategy == "fsdp1":
        model = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
    else:
        torch.distributed.fsdp.fully_shard(model)
    return coverage(model, tuned_weights(model)) == expected


@pytest.mark.ranks
@pytest.mark.filterwarnings("ignore:.*FSDP.*")
@pytest.mark.parametrize("strategy", ["fsdp1", "fsdp2"])
def test_sharded_parameters_have_the_shapes_of_the_wholes(strategy):
    assert run_ranks(sharded_coverage, 2, strategy) == [True, True]


def dense_blocks():
    """Named as torchvision does: denselayer1 is no numbered block."""
    layers = {f"denselayer{n}": nn.ModuleDict({f"conv{n}": nn.Conv2d(16, 64, 3)}) for n in (1, 2)}
    return nn.ModuleDict({"features": nn.ModuleDict(layers)})


def lora():
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"q": nn.Linear(512, 512)})])})
    model.requires_grad_(False)
    model.layers[0]["lora_A"] = nn.Linear(512, 8, bias=False)
    return model


def weight_normed():
    linear = parametrizations.weight_norm(nn.Linear(128, 128))
    return nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"fc": linear})])})


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            dense_blocks,
            r"found features.denselayer\*.conv\* 99.3 % \(64 x 16 x 3 x 3; not in a numbered block\); give "
            r"modules=\['features.denselayer\*.conv\*'\]",
        ),
        (lora, r"found layers.\*.lora_A 100 % \(8 x 512; LoRA factor\); train matrices of 50 rows"),
        (weight_normed, r"128 x 128; parametrized by weight_norm\).*give modules=\['layers.*original\*'\]"),
        (lambda: small("llama").requires_grad_(False), "no parameter with requires_grad=True; unfreeze"),
        (lambda: nn.LayerNorm(64), "found no matrix; train matrices of 50"),
    ],
)
def test_where_nothing_is_tuned_the_error_says_what_is_there_and_how_to_name_it(model, words):
    with pytest.raises(UserError, match="no module to tune: .*" + words):
        param_groups(model(), weight_decay=0.1)


@pytest.mark.parametrize("model", [dense_blocks, weight_normed])
def test_the_pattern_that_the_error_gives_works(model):
    with pytest.raises(UserError) as error:
        param_groups(model(), weight_decay=0.1)
    patterns = str(error.value).split("give modules=['")[1].split("']")[0].split("', '")
    assert len(param_groups(model(), weight_decay=0.1, modules=patterns)) > 1
