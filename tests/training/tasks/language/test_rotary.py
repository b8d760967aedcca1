"""The rotary tables are the same fp32 numbers under every engine, whatever the type of compute."""

from __future__ import annotations

import json

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from alphadecay_dist.engines.training import training_for
from alphadecay_dist.engines.zero import config as zero_config
from alphadecay_dist.params.groups import param_groups
from alphadecay_dist.training.build import fill
from alphadecay_dist.training.recipe import TrainConfig
from alphadecay_dist.training.tasks.language import model as models
from alphadecay_dist.training.tasks.language.initial_values import random_values
from tests.multirank import run_ranks
from tests.training.runs import ROOT, SIZES

pytestmark = pytest.mark.ranks


def check_tables(path, stage):
    config = json.loads((ROOT / "ds_configs" / f"zero{stage}.json").read_text())
    sizes = {"global_batch": 2, "micro_batch": 1, "accumulation": 1, "clip": 0.0, "dtype": "bfloat16"}
    engine = training_for("deepspeed", zero_config.resolve(config, **sizes))
    engine.start()
    model_config = models.read_model_config(path, 64)
    model = engine.construct(lambda: models.build_model(model_config, TrainConfig()))
    values = random_values(models.build_on_meta(model_config), 0)
    fill(model, values, torch.bfloat16, engine.assign)
    models.fill_tables(model)
    engine.initialize(model, torch.optim.AdamW(param_groups(model, weight_decay=0.1)))
    expected = dict(LlamaRotaryEmbedding(model_config).named_buffers())
    found = dict(model.model.rotary_emb.named_buffers())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert {buffer.dtype for buffer in found.values()} == {torch.float32}


@pytest.mark.parametrize("stage", ["1", "3", "3_offload"])
def test_zero_computes_with_the_frequencies_of_fp32(tmp_path, stage):
    (tmp_path / "tiny.json").write_text(json.dumps(SIZES))
    run_ranks(check_tables, 2, str(tmp_path / "tiny.json"), stage)
