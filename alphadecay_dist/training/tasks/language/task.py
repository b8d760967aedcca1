"""Language modelling: a causal language model learns the next token of text."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alphadecay_dist.checkpoint.reader import Checkpoint
from alphadecay_dist.errors import UserError, warn
from alphadecay_dist.training.changes import Change
from alphadecay_dist.training.data.batches import Batch
from alphadecay_dist.training.data.prepared import check_tokenizer, read_manifest
from alphadecay_dist.training.data.sources import find_files
from alphadecay_dist.training.data.tokenizer_files import KEPT, TRAIN, local_fingerprint, tokenizer_in
from alphadecay_dist.training.inputs import Inputs
from alphadecay_dist.training.recipe import AUTO, NFKC, Config, DataConfig, TokenizerConfig
from alphadecay_dist.training.state import SavedState
from alphadecay_dist.training.tasks.card import TaskCard
from alphadecay_dist.training.tasks.data import Data
from alphadecay_dist.training.tasks.language import card, changes, export
from alphadecay_dist.training.tasks.language.data import Text
from alphadecay_dist.training.tasks.language.flops import flops_per_token
from alphadecay_dist.training.tasks.language.initial_values import random_values
from alphadecay_dist.training.tasks.language.model import (
    build_model,
    build_on_meta,
    fill_tables,
    read_model_config,
    values_of,
)
from alphadecay_dist.training.tasks.language.pretrained import values_from
from alphadecay_dist.training.tasks.task import Model, Task


class LanguageModel(Model):
    """A causal language model.

    Args:
        config: the recipe.
        hf: the model's config, as transformers has it.
    """

    def __init__(self, config: Config, hf: Any) -> None:
        self._config = config
        self.hf = hf
        self._shapes = build_on_meta(hf)
        if config.train.activation_checkpointing and not self._shapes.supports_gradient_checkpointing:
            raise UserError(
                f"train.activation_checkpointing: {type(self._shapes).__name__} of transformers has none; "
                "leave it out"
            )

    @property
    def shapes(self) -> nn.Module:
        """The model without storage."""
        return self._shapes

    def values(self) -> dict[str, Any]:
        """The values of a config JSON that gives the model back."""
        return values_of(self.hf)

    def build(self) -> nn.Module:
        """The model, with what saves memory or time as the recipe says."""
        return build_model(self.hf, self._config.train)

    def initial_values(self, init_from: str | None) -> Callable[[str], Tensor]:
        """Random values, or those of a HF checkpoint."""
        if init_from is None:
            return random_values(self._shapes, self._config.train.seed)
        return values_from(init_from, self._shapes, self._config.checkpoint.trust)

    def set_buffers(self, model: nn.Module) -> None:
        """The tables of rotary embeddings, and the like."""
        fill_tables(model)

    def flops(self) -> float:
        """Of one update, over all ranks."""
        train = self._config.train
        tokens = train.global_batch * train.seq_len
        return tokens * flops_per_token(self._shapes, self.hf, train.seq_len)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Sum of the fp32 next-token losses, a scalar."""
        return model(batch.input_ids, batch.labels)

    def measure(self, model: nn.Module, batch: Batch) -> Tensor:
        """The summed loss; its share of the mean loss of the batch that it is cut from; its share of that.

        Over all ranks the second sums to the sum of the batches' mean losses, the third to their number.
        """
        loss = self.loss(model, batch)
        whole = max(batch.of_whole or batch.targets, 1)
        return torch.stack([loss, loss / whole, loss.new_full((), batch.targets / whole)])

    def numbers(self, sums: Sequence[float], targets: float) -> dict[str, float]:
        """Mean loss over all tokens, its exponential, and that of the loss as the released code takes it.

        The released code divides the sum of the batches' mean losses by their number and one. There a batch
        is what a rank trains on at once; the published runs had no other, so that all ranks' together are
        ``train.global_batch`` sequences, which are a batch here.
        """
        total, of_batches, shares = sums
        loss, batches = total / max(targets, 1), round(shares)
        return {
            "loss": loss,
            "perplexity": _perplexity(loss),
            "perplexity_as_published": _perplexity(of_batches / (batches + 1)),
            "batches": batches,
            "tokens": int(targets),
        }


class Language(Task):
    """Language modelling."""

    samples = "sequences"
    targets = "tokens"
    shown = "perplexity"
    paths = ("model.name", "data.source", "data.validation", "data.prepared", "tokenizer.model")
    fixed = ("data.holdout", "data.text_field", "data.pack", "data.lanes", "data.shuffle", "train.seq_len")
    files = KEPT

    def targets_of_sample(self, config: Config) -> int:
        """The length of a sequence."""
        return config.train.seq_len

    def model(self, config: Config) -> LanguageModel:
        """The model that ``model.name`` names."""
        return LanguageModel(config, read_model_config(config.model.name, config.train.seq_len))

    def check_data(self, config: Config, model: Model) -> None:
        """That prepared data have this tokenizer, or that there are files."""
        if config.data.prepared is not None:
            _check_prepared(config, config.tokenizer, model)
            return
        for source in (config.data.source, config.data.validation):
            if source not in ("demo", "c4", None):
                find_files(source)

    def settle(
        self, config: Config, model: Model, init_from: str | None, before: SavedState | None
    ) -> dict[str, Any]:
        """Whose tokenizer, and which commit of C4.

        Raises:
            UserError: --init_from has a tokenizer that cannot be read here, or not that of the prepared data.
        """
        data, tokenizer = config.data, config.tokenizer
        if before is None:
            if init_from is not None and tokenizer.model == TRAIN:
                tokenizer = _of_weights(Path(init_from), tokenizer)
        else:
            data, tokenizer = _as_begun(data, tokenizer, before)
        if data.prepared is not None:
            _check_prepared(config, tokenizer, model)
        return {"data": data, "tokenizer": tokenizer}

    def open(self, config: Config, model: Model) -> Text:
        """The text, or prepared shards of it."""
        return Text(config, _vocabulary(model))

    def changes(self, now: Inputs, kept: Inputs, config: Config, before: Config, data: Data) -> list[Change]:
        """Differences of model, text and tokenizer."""
        assert isinstance(data, Text)
        prepared = data.own_tokenizer
        found = prepared.fingerprint if prepared else local_fingerprint(config.tokenizer.model)
        own = changes.tokenizer_change(found, kept, config, before)
        return [*changes.changes_of(now, kept, config, before), *([] if own is None else [own])]

    def loses_position(self, fields: Collection[str], config: Config, before: Config) -> bool:
        """Whether the position is one in other sequences."""
        return changes.loses_position(fields, config, before)

    def card(self, state: SavedState) -> TaskCard:
        """Sizes, text and perplexities."""
        return card.card_of(state)

    def export_hf(
        self, checkpoint: Checkpoint, state: SavedState, dtype: torch.dtype, model: str | None
    ) -> Callable[[Path], None]:
        """For ``AutoModelForCausalLM`` and ``AutoTokenizer``."""
        return export.hf_writer(checkpoint, state, dtype, model)


def _perplexity(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf


def _check_prepared(config: Config, tokenizer: TokenizerConfig, model: Model) -> None:
    """Refuse prepared data that were made with another tokenizer than is asked for."""
    folder = Path(str(config.data.prepared))
    check_tokenizer(read_manifest(folder), folder, tokenizer, _vocabulary(model))


def _vocabulary(model: Model) -> int:
    assert isinstance(model, LanguageModel)
    return model.hf.vocab_size


def _as_begun(
    data: DataConfig, tokenizer: TokenizerConfig, state: SavedState
) -> tuple[DataConfig, TokenizerConfig]:
    """With what the run decided when it began."""
    if state.inputs is None:
        if tokenizer.normalization == AUTO:  # the versions that did not keep inputs had no other
            tokenizer = dataclasses.replace(tokenizer, normalization=NFKC)
        return data, tokenizer
    if tokenizer.model == TRAIN and state.inputs.init_from is not None:
        tokenizer = dataclasses.replace(tokenizer, model=state.config.tokenizer.model)
    if data.revision is None:
        data = dataclasses.replace(data, revision=state.inputs.revision)
    return data, tokenizer


def _of_weights(folder: Path, tokenizer: TokenizerConfig) -> TokenizerConfig:
    """With the tokenizer that lies beside some weights: they were trained with its ids."""
    found = tokenizer_in(folder)
    if found is not None:
        return dataclasses.replace(tokenizer, model=found)
    warn(
        f"--init_from {folder}: has no tokenizer: one is trained, whose ids are not those that the "
        "weights were trained with; give theirs as --tokenizer.model=PATH"
    )
    return tokenizer
