"""How model, text and tokenizer that a resume finds differ from those that the run was begun with."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from alphadecay_dist.training.changes import Change, data_changes, model_changes
from alphadecay_dist.training.data.sentencepiece_tokenizer import normalization_of
from alphadecay_dist.training.data.tokenizer_files import TRAIN
from alphadecay_dist.training.inputs import Inputs
from alphadecay_dist.training.options import TOKENIZER
from alphadecay_dist.training.recipe import AUTO, Config
from alphadecay_dist.training.tasks.language.causal import TYPE
from alphadecay_dist.training.tasks.language.hf_config import function_of, wide

# Of a model's config, once there are weights.
UNUSED = ("initializer_range", "pad_token_id", "bos_token_id", "eos_token_id")


def changes_of(now: Inputs, kept: Inputs, config: Config, before: Config) -> Iterator[Change]:
    """All differences of model and text.

    Args:
        now: as found.
        kept: as the run was begun, or last accepted.
        config: the recipe to go on with.
        before: the recipe that the checkpoint was saved with.
    """
    found, begun = (function_of(own, UNUSED) for own in _of_one_kind(now.model, kept.model))
    yield from model_changes(found, begun, config)
    if "data.prepared" in now.data.keys() | kept.data.keys():
        now, kept = _prepared_alone(now), _prepared_alone(kept)
    yield from data_changes(now, kept, config, before)


def _of_one_kind(
    now: Mapping[str, Any], kept: Mapping[str, Any]
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The values of two models, either with its architecture: LLaMA's do not name it.

    Before other architectures were trained, a Mistral whose window had no effect was taken as a LLaMA.
    """
    if TYPE not in kept and now.get(TYPE) == "mistral" and wide(now.get("sliding_window"), now):
        return {key: value for key, value in now.items() if key != TYPE}, kept
    if TYPE in now or TYPE in kept:
        return {TYPE: "llama", **now}, {TYPE: "llama", **kept}
    return now, kept


def _prepared_alone(inputs: Inputs) -> Inputs:
    """Without the other fields: they are not in use, or text took the place of prepared data."""
    marks = {field: marks for field, marks in inputs.data.items() if field == "data.prepared"}
    return dataclasses.replace(inputs, data=marks)


def tokenizer_change(found: str | None, kept: Inputs, config: Config, before: Config) -> Change | None:
    """How the tokenizer that the recipe names differs from the run's.

    Args:
        found: fingerprint of the named one, if it is local or comes with prepared data; else None.
        kept: as the run was begun, or last accepted.
        config: the recipe to go on with.
        before: the recipe that the checkpoint was saved with.
    """
    name, old = config.tokenizer.model, before.tokenizer.model
    if found is not None and found != kept.tokenizer:
        text = f"tokenizer.model {name}: is not the one that the run was begun with (SHA-256)"
    elif found is None and Path(name).name != Path(old).name:
        text = f"tokenizer.model: found {name!r}, the run was begun with {old!r}"
    elif name == TRAIN and config.tokenizer.normalization not in (AUTO, normalization_of(before)):
        asked, begun = config.tokenizer.normalization, normalization_of(before)
        text = f"tokenizer.normalization: found {asked!r}, the run was begun with {begun!r}"
    else:
        return None
    return Change(TOKENIZER, "tokenizer.model", text)


def loses_position(fields: Collection[str], config: Config, before: Config) -> bool:
    """Whether the saved position is one in other sequences: of other rows, or packed by another tokenizer.

    Args:
        fields: of accepted changes.
        config: the recipe to go on with.
        before: the recipe that the checkpoint was saved with.
    """
    holdout = (config.data.validation is None) != (before.data.validation is None)  # some rows change sides
    return (
        not {"data.source", "data.prepared"}.isdisjoint(fields)
        or ("data.validation" in fields and holdout)
        or ("tokenizer.model" in fields and config.data.pack)
    )
