"""The causal language model to train: its config, its structure, its buffers."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig

try:
    from transformers.initialization import no_init_weights
except ImportError:  # before version 5
    from transformers.modeling_utils import no_init_weights

from alphadecay_dist.engines.versions import require
from alphadecay_dist.errors import UserError, shown
from alphadecay_dist.training.config import named_text, names_in
from alphadecay_dist.training.recipe import TrainConfig
from alphadecay_dist.training.tasks.language.architecture import Architecture, UnservedError, architecture_of
from alphadecay_dist.training.tasks.language.causal import TYPE, causal_config, causal_values
from alphadecay_dist.training.tasks.language.hf_config import require_llama
from alphadecay_dist.training.tasks.language.llama import TAKEN, llama_config, llama_values
from alphadecay_dist.training.tasks.language.loss import LossHead, balance_loss

require("transformers")

CONFIG = "config.json"
MODELS = resources.files("alphadecay_dist.recipes") / "models"


def model_names() -> list[str]:
    """Names of the model configs that come with the package."""
    return names_in(MODELS, ".json")


def read_model_config(name: str, seq_len: int) -> Any:
    """A config of transformers by name, or by the path of its JSON or of the directory that holds it.

    Raises:
        UserError: unknown or unreadable; see :func:`config_of`.
    """
    path = Path(name) / CONFIG
    if name not in model_names() and os.path.isdir(name):
        if not os.path.isfile(path):
            raise UserError(f"model.name {name}: a directory without {CONFIG}")
        name = str(path)
    text = named_text("model.name", name, MODELS, (".json",), "; or give a path to a JSON")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"model.name {name}: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"model.name {name}: found {shown(values)}, expected a JSON object")
    if is_llama(values):
        require_llama(f"model.name {name}", values, TAKEN)
    return config_of(name, values, seq_len)


def is_llama(values: Mapping[str, Any]) -> bool:
    """Whether the values of a JSON are a LLaMA's: they name no other architecture."""
    return values.get(TYPE) in (None, "llama")


def config_of(name: str, values: Mapping[str, Any], seq_len: int) -> Any:
    """A config of transformers from the values of a JSON.

    Args:
        name: what errors call it.
        values: of the JSON; without ``model_type`` they are a LLaMA's.
        seq_len: the tokens of a sequence.

    Raises:
        UserError: an architecture that is not served, a size that is missing or out of its range, fewer
            positions than ``seq_len``, or whatever transformers has against it.
    """
    make = llama_config if is_llama(values) else causal_config
    what = "a LLaMA" if is_llama(values) else shown(values[TYPE])
    try:
        config = make(name, values, seq_len)
        if is_llama(values):  # checks the padding token
            nn.Embedding(config.vocab_size, 1, config.pad_token_id, device="meta")
        build_on_meta(config)
    except UserError:
        raise
    except UnservedError as error:
        raise UserError(f"model {name}: {what} is not trained: {error}") from None
    except Exception as error:  # transformers and torch raise a dozen unrelated types
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"model {name}: transformers cannot build {what} of it: {type(error).__name__}: {reason}; "
            "correct that value"
        ) from None
    return config


def values_of(config: Any) -> dict[str, Any]:
    """The values of a JSON that gives the config back."""
    return llama_values(config) if type(config) is LlamaConfig else causal_values(config)


class SummedLoss:
    """A causal language model of transformers, whose output is the loss: see :func:`class_of`."""

    architecture: Architecture

    def __init__(self, config: Any) -> None:
        # transformers would set the padding token's row to 0, which zero.Init has taken away by then.
        padding = getattr(config, "pad_token_id", None)
        config.pad_token_id = None
        if self.architecture.one_by_one:
            config._experts_implementation = "eager"
        with no_init_weights():  # drawn weights would be overwritten
            super().__init__(config)  # type: ignore[call-arg]
        config.pad_token_id = padding
        model: Any = self
        model.tie_weights()
        for name in self.architecture.padded:
            model.get_submodule(name).padding_idx = padding
        # Its parameter may be sharded, or the embedding's, already.
        model.get_submodule(self.architecture.head).__class__ = LossHead

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """Sum of the fp32 next-token losses over the non-pad tokens of a micro-batch, a scalar.

        Args:
            input_ids: (b, s).
            labels: (b, s), IGNORE for padding.
        """
        own = self.architecture
        model: Any = self
        router = {"output_router_logits": True} if own.balance and model.training else {}
        found = model.get_submodule(own.decoder)(input_ids=input_ids, **router)
        hidden = found.last_hidden_state  # (b, s, h)
        loss = model.get_submodule(own.head)(
            hidden[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), own.scale, own.cap
        )
        if router:
            loss = loss + own.balance * balance_loss(found.router_logits, labels, model.num_experts_per_tok)
        return loss


@functools.cache
def class_of(architecture: Architecture) -> Any:
    """The class of an architecture whose output is the loss: logits of a whole batch are never held."""
    kind = architecture.kind
    own = {"architecture": architecture, "__module__": kind.__module__}  # to transformers it is its own
    return type(kind.__name__, (SummedLoss, kind), own)


def build_model(config: Any, train: TrainConfig) -> Any:
    """A model without meaningful weights; they are given to it by name."""
    model = class_of(architecture_of(config))(config)
    if train.activation_checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None)  # its name in new versions
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    if train.compile:
        for block in _blocks(model):
            block.compile()
    return model


def _blocks(model: Any) -> Iterator[nn.Module]:
    """The decoder's layers."""
    for child in model.get_submodule(model.architecture.decoder).children():
        if isinstance(child, nn.ModuleList):
            yield from child


def build_on_meta(config: Any) -> Any:
    """The model's names and shapes without any storage."""
    with torch.device("meta"):
        model = class_of(architecture_of(config))(config)
    model.tie_weights()  # transformers 5.0 leaves it out of a model without storage
    return model


def fill_tables(model: Any) -> None:
    """Give the model's buffers their values, as of rotary embeddings, which late storage lacks.

    zero.Init makes them in the type of compute. Frequencies in bf16 turn far positions by radians too much
    or too little: the model would be another than the one that other engines, or transformers, compute.
    """
    with _parameters_on_meta():
        tables = class_of(model.architecture)(model.config)
    for name, table in tables.named_buffers(remove_duplicate=False):
        holder, _, key = name.rpartition(".")
        module = model.get_submodule(holder)
        module.register_buffer(key, table.to(module.get_buffer(key).device), persistent=False)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Build modules whose buffers alone have storage, one parameter at a time."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            parameter = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore
