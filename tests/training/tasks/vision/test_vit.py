"""timm's vision transformers as they are built here: initial values, drop path, sizes, flops."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.layers import DropPath

from alphadecay_dist.errors import UserError
from alphadecay_dist.training.config import load_config
from alphadecay_dist.training.optimizer import learning_rate
from alphadecay_dist.training.tasks.vision.drop_path import GivenDropPath, drop_paths, give_draws
from alphadecay_dist.training.tasks.vision.options import VisionOptions
from alphadecay_dist.training.tasks.vision.task import VisionModel
from alphadecay_dist.training.tasks.vision.vit import build, build_on_meta, random_values

SMALL = VisionOptions(image_size=32, classes=10, width=64, depth=3, heads=2, drop_path=0.2)
NAME = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def published():
    return VisionModel(load_config("vit_tiny"))


def test_the_published_model_has_the_published_sizes(published):
    sizes = {name: parameter.numel() for name, parameter in published.shapes.named_parameters()}
    assert sum(sizes.values()) == 5_717_416
    assert sizes.keys() == dict(timm.create_model("deit_tiny_patch16_224").named_parameters()).keys()
    assert published.drop_paths == 22  # the first block drops nothing
    forward = published.flops() / 3 / 384 / 2
    assert forward == pytest.approx(1.25e9, rel=0.02)  # multiplications of an image, as DeiT's authors count


def test_initial_values_are_timms_and_follow_from_seed_and_name(published):
    value = random_values(published.shapes, 0, cls_std=0.02)
    found = {name: value(name) for name, _ in published.shapes.named_parameters()}
    torch.manual_seed(0)
    theirs = timm.create_model("deit_tiny_patch16_224").state_dict()
    for name, tensor in found.items():
        assert tensor.shape == theirs[name].shape
        if name != "cls_token":
            assert tensor.std() == pytest.approx(float(theirs[name].std()), rel=0.1, abs=1e-8)
            assert tensor.mean() == pytest.approx(float(theirs[name].mean()), abs=2e-3)
    assert float(found["cls_token"].std()) == pytest.approx(0.02, rel=0.2)
    assert float(random_values(published.shapes, 0, None)("cls_token").std()) < 1e-5
    before = torch.get_rng_state()
    again = random_values(build_on_meta("deit_tiny_patch16_224", SMALL_DEPTH), 0, cls_std=0.02)
    for name in ("blocks.1.mlp.fc1.weight", "blocks.0.norm1.bias", "pos_embed", "patch_embed.proj.weight"):
        assert torch.equal(again(name), found[name])  # in a model of other depth, asked in another order
    assert not torch.equal(random_values(published.shapes, 1, None)("pos_embed"), found["pos_embed"])
    assert torch.equal(torch.get_rng_state(), before)


SMALL_DEPTH = VisionOptions(depth=2)


def test_drop_path_is_timms_but_for_the_draws():
    x = torch.randn(4000, 3, 2)
    theirs = DropPath(0.3).train()(x)
    ours = GivenDropPath(0.3).train()
    ours.draws = torch.rand(4000)
    for kept in (theirs, ours(x)):
        rows = kept.flatten(1).abs().sum(1) > 0
        assert float(rows.float().mean()) == pytest.approx(0.7, abs=0.04)
        torch.testing.assert_close(kept[rows], x[rows] / 0.7)
    assert torch.equal(ours.eval()(x), x)


def test_each_block_drops_the_samples_that_its_column_says():
    model = build(NAME, SMALL).train()
    reference = timm.create_model(NAME, img_size=32, num_classes=10, embed_dim=64, depth=3, num_heads=2)
    reference.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 32, 32)
    paths = drop_paths(model)
    assert [path.drop_prob for path in paths] == pytest.approx([0.1, 0.1, 0.2, 0.2])
    draws = torch.full((2, 4), 0.15)
    draws[1] = torch.tensor([0.0, 0.1, 0.0, 0.2])  # drops the first and the third branch
    give_draws(model, draws)
    found = model(images)
    scales = torch.tensor([[1 / 0.9, 1 / 0.9, 0, 0], [0, 1 / 0.9, 0, 1 / 0.8]])
    for column, (block, place) in enumerate([(1, "attn"), (1, "mlp"), (2, "attn"), (2, "mlp")]):
        branch = getattr(reference.blocks[block], place)
        scale = scales[:, column].view(2, 1, 1)
        branch.register_forward_hook(lambda _m, _i, out, scale=scale: out * scale)
    torch.testing.assert_close(found, reference.train()(images))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("deit_tiny_patch16_22", SMALL, "did you mean 'deit_tiny_patch16_224'?"),
        ("hf-hub:timm/vit_tiny_patch16_224", SMALL, "expected a vision transformer of timm"),
        ("resnet18", VisionOptions(), "timm cannot build it with these sizes"),
        (NAME, VisionOptions(width=64, heads=3), "with these sizes: dim should be divisible"),
        (
            NAME,
            VisionOptions(image_size=20),
            "task.image_size: found 20, expected a multiple of the patches' 16",
        ),
    ],
)
def test_models_that_cannot_be(name, options, words):
    with pytest.raises(UserError, match=r"^(model\.name|task)") as caught:
        build_on_meta(name, options)
    assert words in str(caught.value)


def test_the_published_schedule():
    optimizer = load_config("vit_tiny").optimizer
    steps = load_config("vit_tiny").train.steps
    assert steps == 120 * (1_281_167 // 384) == 400_320
    assert learning_rate(1, steps, optimizer) == 0  # by the number of updates before it
    assert learning_rate(66_721, steps, optimizer) == optimizer.lr == 4e-3
    assert learning_rate(33_361, steps, optimizer) == pytest.approx(2e-3)
    assert learning_rate(steps + 1, steps, optimizer) == pytest.approx(4e-9)
    assert 4e-9 < learning_rate(steps, steps, optimizer) < 4.3e-9


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("mix_batch", 3, "mix_batch: found 3, expected an even number"),
        ("ema", 1.0, r"ema: found 1.0, expected a number in \[0, 1\)"),
        ("scale", (1.0, 0.5), r"scale: found \[1.0, 0.5\], expected two positive numbers"),
        ("channels", 4, "channels: found 4, expected 1 or 3"),
        ("interpolation", "cubic", "interpolation: found 'cubic', expected one of bicubic"),
        ("workers", 0, "workers: found 0, expected 1 or more"),
    ],
)
def test_options_that_cannot_be(field, value, words):
    with pytest.raises(UserError, match=words):
        VisionOptions(**{field: value})
