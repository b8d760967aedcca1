"""A model has the same names, cuts and decays whatever wraps it, on one rank or on several."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DataParallel, DistributedDataParallel

from alphadecay_dist import AlphaDecay, param_groups
from alphadecay_dist.params.inventory import tuned_weights
from tests.models import small
from tests.multirank import run_ranks

MODELS = ("phi3", "gpt_neox", "gpt_oss")


class Own(nn.Module):
    """A user's own module around a model; its settings are no model's config."""

    def __init__(self, net):
        super().__init__()
        self.module = net
        self.config = {"dropout": 0.1}


def layers_checkpointed(model):
    layers = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
    for number, layer in enumerate(layers):
        layers[number] = checkpoint_wrapper(layer)
    return model


def fully_sharded(model):
    options = {"use_orig_params": True, "device_id": torch.device("cpu")}
    layers = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
    for number, layer in enumerate(layers):
        layers[number] = checkpoint_wrapper(FullyShardedDataParallel(layer, **options))
    return FullyShardedDataParallel(Own(torch.compile(model)), **options)


LOCAL = {
    "bare": lambda model: model,
    "own": Own,
    "data parallel": lambda model: DataParallel(Own(model)),
    "compiled": lambda model: torch.compile(Own(torch.compile(layers_checkpointed(model)))),
}
ON_RANKS = {
    "bare": lambda model: model,
    "compiled DDP": lambda model: torch.compile(DistributedDataParallel(model)),
    "DDP, compiled": lambda model: DistributedDataParallel(torch.compile(model)),
    "own, of a DDP": lambda model: Own(torch.compile(DistributedDataParallel(layers_checkpointed(model)))),
    "fsdp1": fully_sharded,
}


def cuts(weights):
    """Names without the user's own module, shapes and cuts."""
    return [(weight.name.removeprefix("module."), weight.shape, weight.cut) for weight in weights]


@pytest.mark.parametrize("name", MODELS)
def test_names_and_cuts_are_those_of_the_bare_model(name):
    expected = cuts(tuned_weights(small(name)))
    assert any(cut is not None for *_, cut in expected)
    for wrap in LOCAL.values():
        assert cuts(tuned_weights(wrap(small(name)))) == expected


def test_a_users_own_module_called_module_keeps_its_name():
    weights = tuned_weights(DataParallel(Own(small("phi3"))))
    assert all(weight.name.startswith("module.model.layers.") for weight in weights)


@pytest.mark.parametrize("name", ["_orig_mod", "_checkpoint_wrapped_module"])
def test_a_wrappers_attribute_of_a_users_module_is_a_name_like_any(name):
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({name: nn.Linear(64, 64)})])})
    assert [weight.name for weight in tuned_weights(model)] == [f"layers.0.{name}"]


def test_each_part_of_a_model_is_cut_by_its_own_config():
    both = nn.ModuleDict({"text": small("gpt_neox"), "vision": small("phi3")})
    both.config = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64}
    found = {weight.name: weight.cut for weight in tuned_weights(both) if weight.cut is not None}
    for part, name in (("text", "gpt_neox"), ("vision", "phi3")):
        for weight in tuned_weights(small(name)):
            if weight.cut is not None:
                assert found.pop(f"{part}.{weight.name}") == weight.cut
    assert not found


def decays_on_ranks(name):
    found = {}
    for form, wrap in ON_RANKS.items():
        model = wrap(small(name))
        optimizer = torch.optim.AdamW(param_groups(model, weight_decay=0.1), lr=0.0)
        decay = AlphaDecay(model, optimizer, weight_decay=0.1, interval=5)
        decay.step()
        cut = cuts(tuned_weights(model))
        decays = {own.removeprefix("module."): m.weight_decay for own, m in decay.modules.items()}
        found[form] = (cut, decays)
        torch.compiler.reset()
    return found


@pytest.mark.ranks
@pytest.mark.filterwarnings("ignore:.*FSDP.*")
@pytest.mark.parametrize("name", MODELS)
def test_decays_on_two_ranks_are_those_of_the_bare_model(name):
    for found in run_ranks(decays_on_ranks, 2, name):
        expected_cuts, expected = found.pop("bare")
        assert len(set(expected.values())) > 3
        for form, (cut, decays) in found.items():
            assert (form, cut) == (form, expected_cuts)
            assert decays == pytest.approx(expected, rel=1e-12)
