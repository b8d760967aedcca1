"""The rule alone: names, shapes and kinds, whoever has found them."""

from __future__ import annotations

import pytest

from alphadecay_dist.params.fused import Cut, Heads
from alphadecay_dist.params.tuned_rule import (
    CONV1D,
    CONV2D,
    CONVOLUTION,
    EMBEDDING,
    LINEAR,
    NOT_REAL,
    Described,
    Tuned,
    cut_of,
    large_enough,
    not_by_default,
    released_ends,
    unfit,
)

OTHER = "neither Linear, Conv2d nor Conv1D, but Bilinear"


@pytest.mark.parametrize(
    ("name", "shape", "kind", "experts", "never", "default"),
    [
        ("layers.0.up", (64, 64), LINEAR, 0, None, None),
        ("layers.0.up", (64, 64), CONV1D, 0, None, None),
        ("layers.0.conv", (64, 64, 3, 3), CONV2D, 0, None, None),
        ("layers.0.conv.weight_v", (64, 64, 3, 3), CONVOLUTION, 0, CONVOLUTION, CONVOLUTION),
        ("layers.0.wte", (64, 64), EMBEDDING, 0, EMBEDDING, EMBEDDING),
        ("layers.0.up", (64, 64), NOT_REAL, 0, NOT_REAL, NOT_REAL),
        ("layers.0.norm", (64,), OTHER, 0, "a vector", OTHER),
        ("layers.0.mix", (64, 64), OTHER, 0, None, OTHER),
        ("layers.0.mix", (64, 64), OTHER, 4, None, None),
        ("layers.0.experts.w", (4, 64, 64), OTHER, 0, None, None),
        ("layers.0.mix", (4, 64, 64), OTHER, 0, None, OTHER),
        ("layers.0.mix", (2, 4, 64, 64), LINEAR, 0, "4 dimensions", None),
        ("layers.0.lora_A", (64, 64), LINEAR, 0, None, "LoRA factor"),
        ("lm_head", (64, 64), LINEAR, 0, None, "output head"),
        ("proj", (64, 64), LINEAR, 0, None, "not in a numbered block"),
        ("layers.0.bias_k", (64, 64), LINEAR, 0, None, "bias"),
    ],
)
def test_what_is_tuned_never_if_named_or_by_default(name, shape, kind, experts, never, default):
    own = Described(name, shape, kind, experts)
    assert (unfit(own), not_by_default(own)) == (never, default)


def test_explicit_sizes_come_before_experts_and_these_before_names():
    fused = Described("layers.0.experts.qkv_proj", (192, 64), LINEAR, 2)
    assert cut_of(fused, None, {}, (96,) * 2) == Cut(("0", "1"), (96, 96))
    assert cut_of(fused, None, {}) == Cut(("0", "1"), (96, 96))
    assert cut_of(Described(fused.name, fused.shape, LINEAR, 0), None, {}) == Cut(tuple("qkv"), (64,) * 3)
    grouped = Cut(tuple("qkv"), (96, 48, 48))
    assert cut_of(Described(fused.name, fused.shape, LINEAR, 0), Heads(2, 1), {}) == grouped
    transposed = Described("h.0.c_attn", (64, 192), CONV1D, 0)
    assert cut_of(transposed, None, {}) == Cut(tuple("qkv"), (64,) * 3, axis=1)


def test_the_stack_of_down_projections_shows_the_output_axis_of_a_stack():
    own = Described("layers.0.experts.gate_up_proj", (3, 64, 128), OTHER, 0)
    for down, axis in (((3, 64, 64), 1), ((3, 64, 32), 0)):
        cut = cut_of(own, None, {"layers.0.experts.down_proj": down})
        assert cut is not None
        assert cut.axis == axis


def test_parts_decide_whether_a_weight_is_large_enough():
    assert not large_enough(Tuned("fc", (98, 98), Cut(("gate", "up"), (49, 49))))
    assert large_enough(Tuned("fc", (98, 98), None))
    assert large_enough(Tuned("conv", (8, 8, 3, 3), None))
    assert Tuned("fc", (98, 98), Cut(("gate", "up"), (49, 49))).whole() == Tuned("fc", (98, 98), None)


def test_the_released_code_leaves_out_the_ends():
    assert released_ends(["patch", "layers.0.q", "lm_head"]) == {"patch", "lm_head"}
    assert released_ends(["only"]) == {"only"}
    assert released_ends([]) == set()
