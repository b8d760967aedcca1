"""Directories with weights that others wrote, and what the doors that take them say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from alphadecay_dist import cli
from alphadecay_dist.errors import UserError
from alphadecay_dist.training.options import Options
from alphadecay_dist.training.preflight import resolve
from tests.training.runs import SIZES

BLOCK = "model.layers.0."
UP = f"{BLOCK}mlp.up_proj.weight"


def llama(**sizes: Any) -> LlamaForCausalLM:
    """A small model with weights that depend on nothing but its sizes; norms and biases count as well."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**SIZES, **sizes}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("norm.weight", ".bias")):
                parameter.add_(torch.randn(parameter.shape) / 10)
    return model


def llama_weights(**sizes: Any) -> dict[str, Tensor]:
    """Its weights, each with storage of its own."""
    return {name: value.clone() for name, value in llama(**sizes).named_parameters()}


def write(path: Path, content: object) -> Path:
    """A JSON file, or one of this text."""
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def init_error(folder: Path, *overrides: str, model: object = None) -> str:
    """What --init_from says of a path, before any rank meets another.

    Args:
        folder: the path.
        overrides: options of the recipe.
        model: the content of model.name's JSON, or its path; the small LLaMA's sizes without one.
    """
    own = model if isinstance(model, Path) else write(folder.parent / "own.json", model or SIZES)
    options = (f"model.name={own}", "train.seq_len=32", *overrides)
    with pytest.raises(UserError) as caught:
        resolve(Options("demo", options, None, None, str(folder.parent / "run"), init_from=str(folder)))
    return str(caught.value)


def accepted(folder: Path, *overrides: str, model: object = None) -> None:
    """Let --init_from look at a path; it has nothing to say."""
    own = model if isinstance(model, Path) else write(folder.parent / "own.json", model or SIZES)
    options = (f"model.name={own}", "train.seq_len=32", *overrides)
    resolve(Options("demo", options, None, None, str(folder.parent / "run"), init_from=str(folder)))


def spectrum_error(capsys: pytest.CaptureFixture[str], path: Path, *options: str) -> str:
    """The one line of alphadecay spectrum, which refuses a path."""
    capsys.readouterr()
    assert cli.main(["spectrum", str(path), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def rows_of(folder: Path, *options: str) -> dict[str, dict[str, Any]]:
    """The rows of alphadecay spectrum by name."""
    out = folder.parent / "rows.json"
    assert cli.main(["spectrum", str(folder), "--json", str(out), *options]) == 0
    return {row["name"]: row for row in json.loads(out.read_text())}
