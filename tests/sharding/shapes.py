"""Tuned matrices of the model configs that come with the package."""

from __future__ import annotations

from functools import cache

from transformers import LlamaForCausalLM

from alphadecay_dist.params.inventory import tuned_weights
from alphadecay_dist.training.tasks.language.model import build_on_meta, model_names, read_model_config

PUBLISHED = [name for name in model_names() if name != "llama_demo"]


@cache
def on_meta(name: str) -> LlamaForCausalLM:
    """The model of a package config, without storage."""
    return build_on_meta(read_model_config(name, 64))


@cache
def shapes_of(name: str) -> dict[str, tuple[int, int]]:
    """Shapes of a model's tuned matrices by module name."""
    return {weight.name: weight.shape for weight in tuned_weights(on_meta(name))}
