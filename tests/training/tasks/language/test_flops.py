from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from alphadecay_dist.training.recipe import TrainConfig
from alphadecay_dist.training.tasks.language import model as models
from alphadecay_dist.training.tasks.language.flops import flops_per_token


def test_flops_are_those_that_torch_counts():
    config = models.read_model_config("llama_demo", 128)
    config._attn_implementation = "eager"  # its products are seen one by one
    model = models.build_model(config, TrainConfig())
    tokens = torch.zeros(2, 128, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(tokens, tokens).backward()
    assert counter.get_total_flops() == pytest.approx(flops_per_token(model, config, 128) * 256, rel=0.02)


def test_a_tied_embedding_multiplies_in_the_head():
    config = models.read_model_config("llama_demo", 128)
    free = flops_per_token(models.build_on_meta(config), config, 128)
    config.tie_word_embeddings = True
    assert flops_per_token(models.build_on_meta(config), config, 128) == free
