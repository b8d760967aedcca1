"""Refreshes by heads: the mean of the heads' decays is the module's, of whole and of sharded weights."""

from __future__ import annotations

import json
import math
from pathlib import Path

import deepspeed
import pytest
import torch
import torch.distributed as dist
import transformers as hf
from torch import nn
from torch.distributed.fsdp import fully_shard

from alphadecay_dist import AlphaDecay, UserError, log_refresh, param_groups
from tests.controllers import SETTINGS, decays_in, mapped
from tests.models import causal
from tests.multirank import run_ranks
from tests.spectral.truth import true_alpha

WIDTH = 52
SIZES = {"hidden_size": 104, "intermediate_size": 120, "num_attention_heads": 2, "num_key_value_heads": 1}


def llama():
    """Grouped queries; the weights of its heads have spectra of their own."""
    torch.manual_seed(0)
    return uneven(causal("Llama", **SIZES, head_dim=WIDTH, num_hidden_layers=2, vocab_size=96))


def gpt2():
    """Fused q, k and v, stored as (in, out)."""
    torch.manual_seed(0)
    return uneven(hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=104, n_head=2, n_layer=2, vocab_size=96)))


def uneven(model):
    with torch.no_grad():
        for parameter in model.parameters():
            rows = torch.rand(len(parameter), *[1] * (parameter.ndim - 1))
            parameter.mul_(torch.rand(parameter.shape) ** (4 * rows))
    return model


def matrices(model):
    """Every matrix that is analysed, cut here by hand."""
    found = {}
    for parameter, weight in model.state_dict().items():
        name = parameter.removesuffix(".weight")
        last = name.rsplit(".", 1)[-1]
        if ("layers." not in name and ".h." not in name) or weight.ndim != 2:
            continue
        if last in ("q_proj", "k_proj", "v_proj"):
            pieces = {str(head): rows for head, rows in enumerate(weight.split(WIDTH))}
        elif last == "o_proj":
            pieces = {str(head): columns for head, columns in enumerate(weight.split(WIDTH, dim=1))}
        elif last == "c_attn":
            names = [f"{letter}.{head}" for letter in "qkv" for head in range(2)]
            pieces = dict(zip(names, weight.split(WIDTH, dim=1), strict=True))
        elif name.endswith("attn.c_proj"):
            pieces = {str(head): rows for head, rows in enumerate(weight.split(WIDTH))}
        else:
            pieces = {"": weight}
        pieces = pieces if len(pieces) > 1 else {"": weight}
        found[name] = {f"{name}.{own}".rstrip("."): piece.clone() for own, piece in pieces.items()}
    return found


def check(refresh, truth):
    """Alphas of all heads are those of their own matrices, and decays the map's over all of them."""
    alphas = {part: true_alpha(matrix) for own in truth.values() for part, matrix in own.items()}
    decays = mapped(alphas)
    assert refresh.modules.keys() == truth.keys()
    for name, own in truth.items():
        module = refresh.modules[name]
        parts = module.parts or {name: module}
        assert {part: found.alpha for part, found in parts.items()} == pytest.approx(
            {part: alphas[part] for part in own}, abs=1e-5
        )
        assert {part: found.weight_decay for part, found in parts.items()} == pytest.approx(
            {part: decays[part] for part in own}, abs=1e-5
        )
        mean = math.fsum(found.weight_decay for found in parts.values()) / len(parts)
        assert module.weight_decay == pytest.approx(mean, abs=1e-12)
        assert {found.status for found in parts.values()} == {"assigned"}


@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_modules_decay_is_the_mean_of_its_heads_and_each_is_logged(make, tmp_path):
    model = make()
    truth = matrices(model)
    optimizer = torch.optim.AdamW(param_groups(model, weight_decay=0.1), lr=1e-3)
    decay = AlphaDecay(model, optimizer, heads=True, **SETTINGS)
    refresh = decay.refresh()
    check(refresh, truth)
    written = decays_in(optimizer)
    assert {name: written[name] for name in truth} == {
        name: module.weight_decay for name, module in refresh.modules.items()
    }
    log_refresh(tmp_path, refresh)
    logged = json.loads((tmp_path / "decay.jsonl").read_text())["modules"]
    for name, own in truth.items():
        if len(own) > 1:
            assert list(logged[name]["parts"]) == list(own)
            kept = {part: refresh.modules[name].parts[part].alpha for part in own}
            assert {part: found["alpha"] for part, found in logged[name]["parts"].items()} == kept


def test_a_state_of_heads_is_taken_up_and_one_of_whole_matrices_is_not():
    def run(heads):
        model = llama()
        optimizer = torch.optim.AdamW(param_groups(model, weight_decay=0.1), lr=1e-3)
        return optimizer, AlphaDecay(model, optimizer, heads=heads, **SETTINGS)

    optimizer, decay = run(True)
    decay.refresh()
    again, other = run(True)
    other.load_state_dict(decay.state_dict())
    assert decays_in(again) == decays_in(optimizer)
    _, whole = run(False)
    with pytest.raises(UserError, match=r"o_proj' is in one alone.*heads and parts cut alike"):
        whole.load_state_dict(decay.state_dict())


def under_fsdp2(model):
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    optimizer = torch.optim.AdamW(param_groups(model, weight_decay=0.1), lr=1e-3)
    return AlphaDecay(model, optimizer, heads=True, **SETTINGS)


def under_zero3(model):
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled
    config = json.loads((Path(__file__).parents[2] / "ds_configs" / "zero3.json").read_text())
    config |= {"train_batch_size": 2, "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
    config |= {"bf16": {"enabled": False}, "gradient_clipping": 0.0}
    optimizer = torch.optim.AdamW(param_groups(model, weight_decay=0.1), lr=1e-3)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    return AlphaDecay(model, optimizer, engine=engine, heads=True, **SETTINGS)


def sharded(build):
    model = llama()
    truth = matrices(model)
    refresh = build(model).refresh()
    check(refresh, truth)
    dist.barrier()
    return {name: (module.owner, module.weight_decay) for name, module in refresh.modules.items()}


@pytest.mark.ranks
@pytest.mark.parametrize("build", [under_fsdp2, under_zero3])
def test_heads_of_sharded_weights_are_those_of_whole_matrices(build):
    first, second = run_ranks(sharded, 2, build)
    assert first == second
    assert {owner for owner, _ in first.values()} == {0, 1}


class Lone(nn.Module):
    """Attention that tells its heads, and another part that is named like one."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"self_attn": nn.MultiheadAttention(104, 2)})])
        self.layers[0]["self_attn"].gate_proj = nn.Linear(104, 104)


def left_whole():
    said = []
    from alphadecay_dist.sharding import planning

    planning.notice = said.append
    model = Lone()
    AlphaDecay(model, torch.optim.SGD(param_groups(model, weight_decay=0.1), lr=0.1), heads=True, **SETTINGS)
    return said


@pytest.mark.ranks
def test_what_stays_whole_is_said_by_rank_0():
    (line,), others = run_ranks(left_whole, 2)
    assert line == (
        "AlphaDecay: not cut by heads: layers.*.self_attn.gate_proj: its name is none of q, k, v or o"
    )
    assert others == []
