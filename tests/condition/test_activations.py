"""What hooks keep of a forward: which rows of which inputs, once, within the budget, and then no hooks."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from alphadecay_dist.condition.activations import Kept, Recorder
from alphadecay_dist.condition.matrices import Matrices
from alphadecay_dist.condition.stable_ranks import stable_ranks, token_ranks
from alphadecay_dist.errors import UserError
from alphadecay_dist.sharding.collectives import Collectives
from alphadecay_dist.spectral.condition import activation_rank

ALONE = Collectives(None)
PAD = 0


class Model(nn.Module):
    """Two matrices of one input, one of its own that is computed again in the backward, and a head."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 64, padding_idx=PAD)
        self.layers = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(64, 64) for name in ("q_proj", "k_proj", "up")}) for _ in range(2)
        )
        self.head = nn.Linear(64, 60)

    def forward(self, tokens):
        x = self.embed(tokens)  # (b, s, 64)
        for layer in self.layers:
            x = layer["q_proj"](x) + layer["k_proj"](x)
            x = x + checkpoint(layer["up"], x.relu(), use_reentrant=False)
        return self.head(x[:, :-1].flatten(0, 1)).square().mean()


def recorder(model, most=None, budget=2**30):
    known = Matrices(model, None)
    return Recorder(model, known.inputs(), known.widths(), known.embeddings, known.tokens, most, budget)


def forward(model, tokens):
    model(tokens).backward()


TOKENS = torch.tensor([[3, 4, 5, 5, PAD, PAD], [5, 7, 8, 9, 5, PAD]])


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model()


def hooks(model):
    return sum(len(own._forward_pre_hooks) + len(own._forward_hooks) for own in model.modules())


def inputs_of(model, tokens):
    """The inputs of each Linear in one plain forward."""
    found = {}
    handles = [
        own.register_forward_pre_hook(lambda _, args, name=name: found.setdefault(name, args[0].detach()))
        for name, own in model.named_modules()
        if isinstance(own, nn.Linear)
    ]
    model(tokens)
    for handle in handles:
        handle.remove()
    return found


def test_each_input_is_kept_once_without_padding_and_hooks_are_gone(model):
    own = recorder(model)
    assert hooks(model) == 0
    own.arm()
    with torch.no_grad():
        model(TOKENS)  # not in training
    model.eval()
    model(TOKENS)
    assert (own.kept, own.counts) == ({}, {})
    model.train()
    forward(model, TOKENS)
    assert hooks(model) == 0
    forward(model, TOKENS)  # another micro-batch of the same update
    kept, counts = own.take()
    assert kept["layers.0.q_proj"] is kept["layers.0.k_proj"] is not kept["layers.1.q_proj"]
    assert len({id(one) for one in kept.values()}) == 5
    plain, real = inputs_of(model, TOKENS), TOKENS != PAD
    for name, found in stable_ranks(kept, ALONE).items():
        rows = plain[name]
        rows = rows[real[:, 1:].flatten()] if name == "head" else rows[real]
        assert found.tokens == len(rows) == (7 if name == "head" else 9)
        assert found.value == pytest.approx(activation_rank(rows), rel=1e-6)
        assert found.method == "rows"
    assert counts["embed"].sum() == 9
    table = token_ranks(counts, {"embed": 50}, ALONE)["embed"]
    assert (table.value, table.tokens) == (9 / 4, 9)  # one over the share of token 5


def test_rows_that_do_not_fit_are_kept_as_a_gram_matrix(model):
    """240 rows of five inputs in fp32 take 307,200 bytes, five fp64 Gram matrices 163,840."""
    own = recorder(model, budget=200_000)
    own.arm()
    tokens = torch.randint(1, 50, (20, 12), generator=torch.Generator().manual_seed(1))
    forward(model, tokens)
    kept, _ = own.take()
    assert {one.method for one in kept.values()} == {"gram"}
    assert all(one.nbytes == 64 * 64 * 8 for one in kept.values())
    plain = inputs_of(model, tokens)
    for name, found in stable_ranks(kept, ALONE).items():
        assert found.value == pytest.approx(activation_rank(plain[name].flatten(0, -2)), rel=1e-6)


def test_a_budget_is_kept_by_fewer_tokens_of_every_input(model):
    budget = 5 * 64 * 4 * 64 + 1000  # 64 rows of five inputs in fp32
    own = recorder(model, budget=budget)
    own.arm()
    forward(model, torch.randint(1, 50, (10, 12), generator=torch.Generator().manual_seed(1)))
    kept, _ = own.take()
    assert {one.count for one in kept.values()} == {64}
    assert sum(one.nbytes for one in {id(one): one for one in kept.values()}.values()) <= budget
    with pytest.raises(UserError, match=r"memory_budget: found 50000 bytes, expected 81920 or more"):
        recorder(model, budget=50_000)


def test_a_number_of_tokens_is_evenly_spaced(model):
    own = recorder(model, most=3)
    own.arm()
    forward(model, TOKENS)
    kept, _ = own.take()
    rows = inputs_of(model, TOKENS)["layers.1.up"][TOKENS != PAD][[0, 3, 6]]
    found = stable_ranks({"up": kept["layers.1.up"]}, ALONE)["up"]
    assert found.tokens == 3
    assert found.value == pytest.approx(activation_rank(rows), rel=1e-6)


def test_a_module_that_is_called_twice_has_both_inputs():
    first, second = torch.randn(5, 8), torch.randn(7, 8)
    shared = nn.Linear(8, 8)
    model = nn.Sequential(shared, nn.Tanh(), shared)
    own = Recorder(model, {"shared": shared}, [8], {}, None, None, 2**20)
    own.arm()
    model(first)
    both = torch.cat([first, model[1](model[0](first)).detach()])
    found = stable_ranks(own.take()[0], ALONE)["shared"]
    assert found.tokens == 10
    assert found.value == pytest.approx(activation_rank(both), rel=1e-6)
    own.arm()
    model(second)
    assert own.take()[0]["shared"].count == 14  # nothing of before is left


def test_a_first_input_of_few_rows_limits_no_other_one():
    """Such as the embedding of a time, of which there is a row a sequence."""
    few, many = nn.Linear(64, 64), nn.Linear(64, 64)
    model = nn.ModuleList([few, many])
    model.forward = lambda values: many(values + few(values[:2]).sum())
    own = Recorder(model, {"few": few, "many": many}, [64, 64], {}, None, None, 2**20)
    own.arm()
    model(torch.randn(30, 64))
    assert {name: kept.count for name, kept in own.take()[0].items()} == {"few": 2, "many": 30}


class Lost(Kept):
    """An input whose product fails, as where a device has no memory left."""

    def times(self, vectors):
        raise torch.OutOfMemoryError("out of memory")


def test_a_product_that_fails_is_a_status_and_no_rank_waits_for_it():
    lost, fine = Lost(5), Kept(5)
    for own in (lost, fine):
        own.add(torch.ones(3, 5))
    with pytest.warns(UserWarning, match="an input of width 5 failed: out of memory"):
        found = stable_ranks({"lost": lost, "fine": fine}, ALONE)
    assert (found["lost"].value, found["lost"].status) == (None, "failed")
    assert found["fine"].value == pytest.approx(1)


@pytest.mark.parametrize(("value", "status"), [(float("nan"), "non_finite"), (0.0, "zero")])
def test_inputs_without_a_rank_are_named(value, status):
    own, fine = Kept(5), Kept(5)
    own.add(torch.full((3, 5), value))
    fine.add(torch.ones(3, 5))
    found = stable_ranks({"own": own, "fine": fine}, ALONE)
    assert (found["own"].value, found["own"].status) == (None, status)
    assert found["fine"].value == pytest.approx(1)
    assert stable_ranks({}, ALONE) == {}


def test_a_compiled_model_is_refused(model):
    model.layers[1]["up"].compile()
    with pytest.raises(UserError, match="found a compiled model, whose inputs cannot be seen"):
        recorder(model).arm()
