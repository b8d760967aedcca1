"""What the card of an export says of a language model: its sizes, its text, and both perplexities."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alphadecay_dist.errors import UserError
from alphadecay_dist.training.data.hub import C4
from alphadecay_dist.training.data.prepared import read_manifest
from alphadecay_dist.training.recipe import Config
from alphadecay_dist.training.state import SavedState
from alphadecay_dist.training.tasks.card import HubDataset, TaskCard
from alphadecay_dist.training.tasks.language.causal import TYPE

MEASURED = {
    "loss": "mean over all validation tokens, in nats",
    "perplexity": "the exponential of that loss",
    "perplexity_as_published": "as the released code has it: the batches' summed loss over their number + 1",
}
METRICS = dict.fromkeys(("perplexity", "perplexity_as_published"), "perplexity")
# What configs call the sizes that are shown.
SIZES = (
    (("num_hidden_layers", "n_layer"), "layers"),
    (("hidden_size", "n_embd"), "wide"),
    (("num_attention_heads", "n_head"), "heads"),
)
ENGLISH = ("c4", "demo")
USAGE = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = AutoModelForCausalLM.from_pretrained("{folder}")
"""


def card_of(state: SavedState) -> TaskCard:
    """The card of a run's model."""
    config, inputs = state.config, state.inputs
    source = _source(config)
    head: dict[str, Any] = {"pipeline_tag": "text-generation"}
    if source in ENGLISH:
        head["language"] = ["en"]
    revision = None if inputs is None else inputs.revision
    if source == "c4":
        head["datasets"] = [C4[0]]
    return TaskCard(
        model=_model({} if inputs is None else inputs.model),
        data=_data(config, source, revision),
        head=head,
        tags=(_kind({} if inputs is None else inputs.model),),
        measured=MEASURED,
        evaluated_on=_evaluated_on(config, source, revision),
        metrics=METRICS,
        usage=USAGE,
        library="transformers",
    )


def _source(config: Config) -> str | None:
    """``data.source``, of prepared data that of their preparation; None where these are gone."""
    if config.data.prepared is None:
        return config.data.source
    try:
        source = read_manifest(Path(config.data.prepared)).source.get("source")
    except UserError:
        return None
    return source if isinstance(source, str) else None


def _kind(values: Mapping[str, Any]) -> str:
    """The architecture's name in transformers."""
    return str(values.get(TYPE, "llama"))


def _model(values: Mapping[str, Any]) -> str:
    """The kind of model, with the sizes that the run kept."""
    kind = _kind(values)
    found = [f"{values[key]} {name}" for keys, name in SIZES for key in keys if key in values]
    return f"a language model ({', '.join(['LLaMA' if kind == 'llama' else kind, *found])})"


def _data(config: Config, source: str | None, revision: str | None) -> str:
    """The text and how it was cut."""
    if source == "c4":
        text = f"C4 ({C4[1]}{f', commit {revision}' if revision else ''})"
    elif source == "demo":
        text = "Jane Austen's six novels"
    else:
        text = f"`{source or config.data.prepared}`"
    cut = "packed into" if config.data.pack else "each document cut or padded to"
    return f"{text}, {cut} sequences of {config.train.seq_len} tokens"


def _evaluated_on(config: Config, source: str | None, revision: str | None) -> HubDataset | None:
    """The validation text, where it is C4's own."""
    if source != "c4" or (config.data.prepared is None and config.data.validation is not None):
        return None
    return HubDataset(C4[0], "C4", C4[1], "validation", revision)
