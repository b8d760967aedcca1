"""What is tuned of a vision transformer: timm's DeiT-tiny/16 by the released rule and by ours."""

from __future__ import annotations

import dataclasses
import statistics

import pytest
import torch
from torch import nn

from alphadecay_dist import AlphaDecay, UserError, param_groups
from alphadecay_dist.decay.settings import Settings
from alphadecay_dist.params.coverage import coverage
from alphadecay_dist.params.groups import followers_in
from alphadecay_dist.params.inventory import tuned_weights
from alphadecay_dist.training.config import load_config
from alphadecay_dist.training.dry_run import line_of_groups
from alphadecay_dist.training.optimizer import build_optimizer, pick_apply
from tests.control.test_reference import alpha_of, released, spectrum_of

BASE = 0.1
KINDS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
TUNED = [f"blocks.{block}.{kind}" for block in range(12) for kind in KINDS]
TOTAL, TUNED_SIZE, BIASES, UNTUNED_SIZE = 5_717_416, 5_329_152, 20_736, 388_264
EPOCH = 1_281_167 // 384  # updates


@pytest.fixture(scope="module")
def create():
    """timm's DeiT-tiny/16 at its initial weights."""
    timm = pytest.importorskip("timm", reason="the extra vision is not installed (docs/vision.md)")

    def create(**options):
        torch.manual_seed(0)
        return timm.create_model("deit_tiny_patch16_224", **options)

    return create


@pytest.fixture(scope="module")
def deit(create):
    """The whole model; nothing here changes it."""
    return create()


def refreshed(model, *, follow=("bias",), modules=None, **settings):
    groups = param_groups(model, weight_decay=BASE, follow=follow, modules=modules)
    optimizer = torch.optim.SGD(groups, lr=0.1)
    refresh = AlphaDecay(model, optimizer, weight_decay=BASE, **settings).refresh()
    return refresh.modules, optimizer.param_groups


def size_of(groups):
    return sum(parameter.numel() for group in groups for parameter in group["params"])


def names_by_group(model, groups):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {group["module"]: [names[id(p)] for p in group["params"]] for group in groups}


def test_the_released_set_is_48_modules_with_their_biases_and_one_group_of_the_rest(deit):
    groups = param_groups(deit, weight_decay=BASE, follow=["bias"])
    found = names_by_group(deit, groups)
    assert list(found) == [*TUNED, "untuned"]
    assert all(found[name] == [f"{name}.weight", f"{name}.bias"] for name in TUNED)
    outside = {"cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    outside |= {f"{name}.{kind}" for name in ("norm", "head") for kind in ("weight", "bias")}
    norms = {f"blocks.{i}.norm{n}.{kind}" for i in range(12) for n in (1, 2) for kind in ("weight", "bias")}
    assert set(found["untuned"]) == outside | norms
    assert (size_of(groups), size_of(groups[:-1]), size_of(groups[-1:])) == (TOTAL, TUNED_SIZE, UNTUNED_SIZE)
    assert sum(parameter.numel() for group in groups[:-1] for parameter in group["params"][1:]) == BIASES


def test_decays_of_the_reference_preset_are_the_released_ones_and_biases_have_them(create):
    deit = create(depth=3)
    expected = released(deit)  # of all Linear and Conv2d but the first and the last, by numpy
    modules, groups = refreshed(deit, preset="reference")
    assert list(modules) == list(expected) == TUNED[:12]
    decays = {group["module"]: group["weight_decay"] for group in groups}
    assert decays.pop("untuned") == BASE
    assert decays == pytest.approx(expected, rel=1e-4)
    bias = deit.blocks[0].attn.qkv.bias
    (own,) = [group for group in groups if any(parameter is bias for parameter in group["params"])]
    assert own["weight_decay"] == pytest.approx(expected["blocks.0.attn.qkv"], rel=1e-4) != BASE


@pytest.mark.parametrize(("max_ratio", "mean", "weighted"), [(3, 2.23, 2.58), (5, 3.57, 4.25)])
def test_alphas_and_decays_of_a_new_model(deit, max_ratio, mean, weighted):
    """A normal matrix's alpha depends on its shape: square, 3 to 1, 4 to 1."""
    modules, _ = refreshed(deit, preset="reference", min_ratio=0.6666, max_ratio=max_ratio)
    for kind, alpha in zip(KINDS, (3.16, 2.13, 3.46, 3.47), strict=True):
        found = [modules[f"blocks.{block}.{kind}"].alpha for block in range(12)]
        assert statistics.fmean(found) == pytest.approx(alpha, abs=0.05)
        assert all(own == pytest.approx(alpha, abs=0.15) for own in found)
    ratios = {name: own.weight_decay / BASE for name, own in modules.items()}
    sizes = {name: deit.get_submodule(name).weight.numel() for name in ratios}
    assert statistics.fmean(ratios.values()) == pytest.approx(mean, rel=0.05)
    total = sum(ratio * sizes[name] for name, ratio in ratios.items())
    assert total / sum(sizes.values()) == pytest.approx(weighted, rel=0.05)


def test_by_default_qkv_is_cut_in_three_and_biases_stay_behind(deit):
    weights = tuned_weights(deit)
    assert [weight.name for weight in weights] == TUNED
    parts = [part for weight in weights for part in weight.parts(weight.name)]
    thirds = [part for part in parts if ".qkv." in part]
    assert (len(parts), len(thirds)) == (72, 36)
    assert {part.rpartition(".")[2] for part in thirds} == {"q", "k", "v"}
    modules, groups = refreshed(deit, follow=())
    assert all(len(group["params"]) == 1 for group in groups[:-1])
    first = modules["blocks.0.attn.qkv"].parts
    rows = deit.blocks[0].attn.qkv.weight.split(192)
    for part, own in zip("qkv", rows, strict=True):
        expected = alpha_of(spectrum_of(own), "hill")
        assert first[f"blocks.0.attn.qkv.{part}"].alpha == pytest.approx(expected, rel=1e-4)


def test_a_patch_embedding_that_is_named_has_the_alpha_of_its_pooled_positions(deit):
    chosen = ["patch_embed.proj", "blocks.*", "head"]
    modules, _ = refreshed(deit, modules=chosen)
    values = spectrum_of(deit.patch_embed.proj.weight)
    assert len(values) == 768  # 256 matrices of 192 x 3
    found = modules["patch_embed.proj"].alpha
    assert found == pytest.approx(alpha_of(values, "hill"), rel=1e-4) == pytest.approx(10.76, abs=0.3)
    assert modules["head"].alpha == pytest.approx(3.89, abs=0.1)
    modules, groups = refreshed(deit, modules=chosen, preset="reference")
    decays = {group["module"]: group["weight_decay"] for group in groups}
    assert list(modules) == TUNED
    assert decays["patch_embed.proj"] == decays["head"] == BASE


def test_layer_norms_follow_the_linear_before_them_only_where_asked(deit):
    found = names_by_group(deit, param_groups(deit, weight_decay=BASE, follow=["bias", "layernorm"]))
    for block in range(12):
        assert found[f"blocks.{block}.attn.proj"][2:] == [
            f"blocks.{block}.norm2.{k}" for k in ("weight", "bias")
        ]
        after = f"blocks.{block + 1}.norm1" if block < 11 else "norm"
        assert found[f"blocks.{block}.mlp.fc2"][2:] == [f"{after}.weight", f"{after}.bias"]
    assert {"blocks.0.norm1.weight", "blocks.0.norm1.bias"} <= set(found["untuned"])  # before every Linear


def released_calendar(epochs):
    """Updates finished before each refresh: one before training; then the first micro-batch of each epoch."""
    found, updates = [0], 0
    for _ in range(epochs):
        flag = True
        for _ in range(EPOCH):
            if flag:
                found.append(updates)
                flag = False
            updates += 1
    return found


def test_what_follows_is_not_said_to_be_left_out(deit):
    groups = param_groups(deit, weight_decay=BASE, follow=["bias"])
    assert groups[0]["followers"] == ("blocks.0.attn.qkv.bias",)
    assert "followers" not in groups[-1]
    found = coverage(deit, tuned_weights(deit), followers_in(groups))
    assert (found.tuned, found.following, found.total) == (TUNED_SIZE - BIASES, BIASES, TOTAL)
    assert sum(own.numel for own in found.left_out) == UNTUNED_SIZE
    assert found.line().startswith(
        "tuned: 92.85 % of 5,717,416 trained weights, 0.363 % follow them; not tuned: head 3.36 % ("
    )
    assert coverage(deit, tuned_weights(deit)).following == 0


def test_a_run_refreshes_once_an_epoch_and_once_at_the_start():
    own, early = (Settings(preset=preset, interval=EPOCH) for preset in ("reference_vit", "reference"))
    for epochs in (1, 3):
        released, updates = released_calendar(epochs), range(epochs * EPOCH)
        assert len(released) == epochs + 1
        # the first two are before the same update: one refresh
        assert [update for update in updates if own.due(update)] == sorted(set(released))
        ends = [epoch * EPOCH - 1 for epoch in range(1, epochs + 1)]
        assert [update for update in updates if early.due(update)] == [0, *ends]


def test_a_recipes_optimizer_has_these_groups(deit):
    config = load_config("demo", ["decay.preset=reference", "decay.follow=[bias]", "optimizer.name=adam"])
    groups = build_optimizer(deit, config.optimizer, config.decay, fused=False).param_groups
    assert (len(groups), size_of(groups[:-1]), size_of(groups[-1:])) == (49, TUNED_SIZE, UNTUNED_SIZE)
    assert line_of_groups(deit, config.decay) == (
        "param groups: 49; 5,329,152 weights of tuned matrices and bias, 388,264 others"
    )
    assert load_config("demo", ["decay.follow=bias"]).decay.follow == ("bias",)  # one needs no brackets


def test_followers_and_premultiply_exclude_each_other():
    both = ["decay.follow=[bias,batchnorm]", "decay.apply=premultiply", "optimizer.name=adamw"]
    with pytest.raises(
        UserError, match=r"decay.apply: found 'premultiply' with decay.follow \['bias', 'batchnorm'\]"
    ):
        load_config("demo", both)
    with pytest.raises(UserError, match=r"decay\.follow: unknown 'norm'; did you mean 'layernorm'"):
        load_config("demo", ["decay.follow=norm"])
    config = load_config("demo", ["decay.follow=bias", "decay.apply=auto", "optimizer.name=adamw"])
    decay, line = pick_apply(config, None)
    assert decay == dataclasses.replace(config.decay, apply="groups")
    assert line == "decay.apply=auto: groups, because decay.follow=['bias'] needs a group per matrix"


def test_a_module_without_a_bias_has_none_that_follows():
    block = nn.ModuleDict({"up": nn.Linear(60, 60, bias=False), "down": nn.Linear(60, 60)})
    model = nn.ModuleDict({"layers": nn.ModuleList([block])})
    found = param_groups(model, weight_decay=BASE, follow="bias")
    assert [len(group["params"]) for group in found] == [1, 2]
