"""How the files that a resume finds differ from those that the run was begun with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alphadecay_dist.errors import UserError, shown
from alphadecay_dist.training.config import flat
from alphadecay_dist.training.data.tokenizer import TRAIN, normalization_of
from alphadecay_dist.training.fingerprint import Marks
from alphadecay_dist.training.inputs import Inputs
from alphadecay_dist.training.options import DATA, DEEPSPEED, MODEL, TOKENIZER
from alphadecay_dist.training.recipe import AUTO, Config
from alphadecay_dist.training.tasks.language.hf_config import function_of

SHOWN_NAMES = 5
UNUSED = ("initializer_range", "pad_token_id")  # of a model's config, once there are weights
# What a DeepSpeed JSON may change during a run: how the same numbers are computed, stored and reported, and
# what the recipe fills in. The updates depend on the rest, such as communication_data_type.
FREE = {
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "zero_force_ds_cpu_optimizer",
    "zero_allow_untested_optimizer",
    "steps_per_print",
    "wall_clock_breakdown",
    "memory_breakdown",
    "dump_state",
    "flops_profiler",
    "comms_logger",
    "monitor_config",
    "tensorboard",
    "wandb",
    "comet",
    "csv_monitor",
    "activation_checkpointing",
    "aio",
    "checkpoint",
    "autotuning",
    "compile",
}
QUANTIZED = ("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients")


@dataclass(frozen=True)
class Change:
    """A difference.

    Attributes:
        kind: of KINDS of the options, by which it is accepted.
        field: of the recipe, or the option, that names the file.
        text: file, value, found and expected.
    """

    kind: str
    field: str
    text: str


def refuse(changes: Iterable[Change], accepted: frozenset[str], folder: Path) -> None:
    """Refuse the changes that were not accepted.

    Raises:
        UserError: lists them, and says how to go on.
    """
    refused = [change for change in changes if change.kind not in accepted]
    if refused:
        kinds = ",".join(sorted(accepted | {change.kind for change in refused}))
        raise UserError(
            f"{'; '.join(change.text for change in refused)}; to go on from {folder} give what the run was "
            f"begun with, or accept what is there now by --accept_changes={kinds}"
        )


def changes_of(now: Inputs, kept: Inputs, config: Config, before: Config) -> list[Change]:
    """All differences but the tokenizer's.

    Args:
        now: as found.
        kept: as the run was begun, or last accepted.
        config: the recipe to go on with.
        before: the recipe that the checkpoint was saved with.
    """
    return [*_of_model(now, kept, config), *_of_data(now, kept, config, before), *_of_deepspeed(now, kept)]


def tokenizer_change(sha256: str | None, kept: Inputs, config: Config, before: Config) -> Change | None:
    """How the tokenizer that the recipe names differs from the run's.

    Args:
        sha256: of the named model, if it is a local file or comes with prepared data; else None.
        kept: as the run was begun, or last accepted.
        config: the recipe to go on with.
        before: the recipe that the checkpoint was saved with.
    """
    name, old = config.tokenizer.model, before.tokenizer.model
    if sha256 is not None and sha256 != kept.tokenizer:
        text = f"tokenizer.model {name}: is not the model that the run was begun with (SHA-256)"
    elif sha256 is None and Path(name).name != Path(old).name:
        text = f"tokenizer.model: found {name!r}, the run was begun with {old!r}"
    elif name == TRAIN and config.tokenizer.normalization not in (AUTO, normalization_of(before)):
        found, begun = config.tokenizer.normalization, normalization_of(before)
        text = f"tokenizer.normalization: found {found!r}, the run was begun with {begun!r}"
    else:
        return None
    return Change(TOKENIZER, "tokenizer.model", text)


def _of_model(now: Inputs, kept: Inputs, config: Config) -> Iterator[Change]:
    for text in differing(function_of(now.model, UNUSED), function_of(kept.model, UNUSED)):
        yield Change(MODEL, "model.name", f"model.name {config.model.name}: {text}")


def differing(now: Mapping[str, Any], kept: Mapping[str, Any]) -> Iterator[str]:
    """Values that were changed, in words; keys that only one of the two has are passed over."""
    for key in now:
        if key in kept and now[key] != kept[key]:
            yield f"{key}: found {shown(now[key])}, the run was begun with {shown(kept[key])}"


def _of_data(now: Inputs, kept: Inputs, config: Config, before: Config) -> Iterator[Change]:
    names, old = dict(flat(config)), dict(flat(before))
    fields = sorted(now.data.keys() | kept.data.keys())
    if "data.prepared" in fields:  # the other fields are not in use, or text took the place of prepared data
        fields = ["data.prepared"]
    for field in fields:
        if field in now.data and field in kept.data:
            for text in _of_files(now.data[field], kept.data[field]):
                yield Change(DATA, field, f"{field}{text}")
        else:
            found, begun = _counted(now.data.get(field)), _counted(kept.data.get(field))
            text = f"found {names[field]!r}{found}, the run was begun with {old[field]!r}{begun}"
            yield Change(DATA, field, f"{field}: {text}")
    if not now.data and now.revision != kept.revision and kept.revision is not None:
        text = f"data.revision: found {now.revision!r}, the run was begun with {kept.revision!r}"
        yield Change(DATA, "data.source", text)


def _counted(marks: Marks | None) -> str:
    if not marks:
        return ""
    first, more = next(iter(marks)), len(marks) - 1
    return f" ({first} and {more} more)" if more else f" ({first})"


def _of_files(now: Marks, kept: Marks) -> Iterator[str]:
    new, missing = sorted(now.keys() - kept.keys()), sorted(kept.keys() - now.keys())
    for names, what in ((new, "new"), (missing, "missing")):
        if names:
            yield f": {len(names)} file{'s are' if len(names) > 1 else ' is'} {what}: {_some(names)}"
    other = [name for name in now if name in kept and now[name] != kept[name]]
    for name in other[:SHOWN_NAMES]:
        more = now[name].bytes - kept[name].bytes
        if more:
            yield f" {name}: {abs(more)} bytes {'longer' if more > 0 else 'shorter'}"
        else:
            yield f" {name}: has other content"
    if len(other) > SHOWN_NAMES:
        yield f": {len(other) - SHOWN_NAMES} more files have other content"


def _some(names: list[str]) -> str:
    rest = len(names) - SHOWN_NAMES
    return ", ".join(names[:SHOWN_NAMES]) + (f" and {rest} more" if rest > 0 else "")


def _of_deepspeed(now: Inputs, kept: Inputs) -> Iterator[Change]:
    if not now.engine["name"] == kept.engine["name"] == "deepspeed":
        return
    found, before = dict(_deciding(now.engine["settings"])), dict(_deciding(kept.engine["settings"]))
    for key in sorted(found.keys() | before.keys()):
        if found.get(key) != before.get(key):
            text = f"found {shown(found.get(key))}, the run was begun with {shown(before.get(key))}"
            yield Change(DEEPSPEED, "--deepspeed", f"--deepspeed: {key}: {text}")


def _deciding(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values on which the updates depend, without what is off or null."""
    for key, value in settings.items():
        if not prefix and key in FREE:
            continue
        if key == "zero_optimization" and isinstance(value, dict):
            yield from _deciding({name: value[name] for name in QUANTIZED if name in value}, f"{key}.")
        elif isinstance(value, dict):
            if value.get("enabled") is not False:
                yield from _deciding(value, f"{prefix}{key}.")
        elif value is not None and value is not False:
            yield f"{prefix}{key}", value
