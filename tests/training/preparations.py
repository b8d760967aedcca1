"""Prepared data of a few small texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alphadecay_dist.training.recipe import Config, DataConfig, TokenizerConfig
from tests.training.corpora import number_tokenizer

VOCABULARY = 64


def recipe(folder: Path, **options: Any) -> Config:
    """A recipe on the files of a folder, with a tokenizer beside it."""
    model = folder.parent / "numbers.model"
    model.write_bytes(number_tokenizer().proto)
    data = DataConfig(**{"source": str(folder), "holdout": 4, "shuffle": 5, **options})
    return Config(data=data, tokenizer=TokenizerConfig(str(model)))
