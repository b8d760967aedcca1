"""Modules by type, and their means."""

from __future__ import annotations

import pytest

from alphadecay_dist.control.module_types import means_by_type, modules_by_type
from alphadecay_dist.control.refresh import ModuleRefresh, Refresh

REFRESH = Refresh(
    step=0,
    written_at=0,
    seconds=0.1,
    bytes_received=(0,),
    modules={
        "model.layers.0.self_attn.q_proj": ModuleRefresh(2.0, 0.1, 0, "assigned"),
        "model.layers.0.mlp.up_proj": ModuleRefresh(None, 0.1, 0, "undefined"),
        "model.layers.1.self_attn.q_proj": ModuleRefresh(3.0, 0.3, 0, "assigned"),
    },
)


def test_means_by_type_leave_out_an_undefined_alpha():
    assert list(modules_by_type(REFRESH.modules)) == ["q", "up"]
    gpt2 = [f"h.{block}.{own}" for block in (0, 1) for own in ("attn.c_attn", "attn.c_proj", "mlp.c_proj")]
    assert modules_by_type(dict.fromkeys(gpt2)) == {
        "c_attn": ["h.0.attn.c_attn", "h.1.attn.c_attn"],
        "attn.c": ["h.0.attn.c_proj", "h.1.attn.c_proj"],
        "mlp.c": ["h.0.mlp.c_proj", "h.1.mlp.c_proj"],
    }
    experts = [f"h.0.experts.{number}.w1" for number in (0, 1)]
    assert list(modules_by_type(dict.fromkeys(experts))) == ["w1"]
    assert means_by_type(REFRESH) == pytest.approx(
        {"alpha/q": 2.5, "weight_decay/q": 0.2, "weight_decay/up": 0.1}
    )
