"""The model card of an export, its README.md: what was trained on what, how, and what came of it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from alphadecay_dist import __version__
from alphadecay_dist.checkpoint.reader import Checkpoint
from alphadecay_dist.checkpoint.writer import CHECKPOINTS
from alphadecay_dist.engines.state import WEIGHT
from alphadecay_dist.engines.versions import installed
from alphadecay_dist.errors import UserError, warn
from alphadecay_dist.training.config import as_dict
from alphadecay_dist.training.outputs.run_files import EVAL, read_lines
from alphadecay_dist.training.state import SavedState
from alphadecay_dist.training.tasks.card import TaskCard
from alphadecay_dist.training.tasks.registry import task_named

CARD = "README.md"
PAPER = "https://arxiv.org/abs/2506.14562"
Numbers = Mapping[str, float]


def model_card(checkpoint: Checkpoint, state: SavedState, library: str | None) -> str:
    """The text of a card; what is not known of a checkpoint is left out, or said to be unknown.

    Args:
        checkpoint: what is exported.
        state: the trainer's, in it.
        library: that loads the export, by the hub's name; None where the hub has none.
    """
    card = task_named(state.config.model.task).card(state)
    numbers = evaluation_of(checkpoint)
    parts = [
        f"---\n{_head(state, card, numbers, library)}---\n\n# {_name(state)}",
        _summary(checkpoint, state, card),
        _usage(card) if library else "",
        _evaluation(checkpoint, card, numbers),
        _decay(state),
        _training(checkpoint, state),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def evaluation_of(checkpoint: Checkpoint) -> Numbers:
    """The evaluation's numbers at the checkpoint's update; none where it is in no run, or there was none."""
    folder = checkpoint.folder.resolve().parent
    if folder.name != CHECKPOINTS:
        return {}
    try:
        lines = read_lines(folder.parent / EVAL)
    except OSError:
        return {}
    except UserError as error:  # the weights are whole all the same
        warn(f"the card has no evaluation: {error}")
        return {}
    found = [line for line in lines if line["step"] == checkpoint.manifest.step]
    numbers = found[-1] if found else {}
    return {
        name: value
        for name, value in numbers.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name != "step"
    }


def _head(state: SavedState, card: TaskCard, numbers: Numbers, library: str | None) -> str:
    """The YAML head, by the hub's own rules."""
    from huggingface_hub import EvalResult, ModelCardData

    of = card.evaluated_on
    results = [
        EvalResult(
            task_type=card.head.get("pipeline_tag", "other"),
            dataset_type=of.type,
            dataset_name=of.name,
            dataset_config=of.config,
            dataset_split=of.split,
            dataset_revision=of.revision,
            metric_type=kind,
            metric_name=name,
            metric_value=numbers[name],
        )
        for name, kind in card.metrics.items()
        if of is not None and name in numbers
    ]
    head = dict(card.head)
    if library is None:
        head.pop("pipeline_tag", None)
    metrics = sorted({kind for name, kind in card.metrics.items() if name in numbers})
    data = ModelCardData(
        library_name=library,
        tags=["alphadecay", "weight-decay", *card.tags],
        metrics=metrics or None,
        model_name=_name(state) if results else None,
        eval_results=results or None,
        **head,
    )
    return f"{data.to_yaml()}\n"


def _name(state: SavedState) -> str:
    return f"{Path(state.config.model.name).stem}-{state.config.decay.policy}"


def _summary(checkpoint: Checkpoint, state: SavedState, card: TaskCard) -> str:
    """What was trained on what, and for how long."""
    config, step = state.config, checkpoint.manifest.step
    weights = sum(math.prod(tensor.shape) for tensor in checkpoint.manifest.tensors if tensor.kind == WEIGHT)
    begun = "random weights"
    if state.inputs is None:
        begun = "weights that the checkpoint does not tell"
    elif state.inputs.init_from is not None:
        begun = "the weights of its `--init_from`"
    task = task_named(config.model.task)
    of = f" of {config.train.steps:,}" if step < config.train.steps else ""
    text = f"{card.model[:1].upper()}{card.model[1:]} of {weights:,} weights, trained"
    text += f" on {card.data}," if card.data else ""
    return (
        f"{text} from {begun}: {step:,}{of} updates of {config.train.global_batch:,} {task.samples}, "
        f"{state.tokens:,} {task.targets} in all. Its weight decay was set by the policy "
        f"`{config.decay.policy}` of alphadecay_dist ([AlphaDecay, arXiv 2506.14562]({PAPER}))."
    )


def _usage(card: TaskCard) -> str:
    return f"```python\n{card.usage.format(folder='.')}```" if card.usage else ""


def _evaluation(checkpoint: Checkpoint, card: TaskCard, numbers: Numbers) -> str:
    """A table of the last evaluation's numbers."""
    step = checkpoint.manifest.step
    if not numbers:
        return f"## Evaluation\n\nNo evaluation after update {step:,} is known."
    names = [name for name in card.measured if name in numbers] or list(numbers)
    rows = "".join(f"| {name} | {numbers[name]:.6g} | {card.measured.get(name, '')} |\n" for name in names)
    return (
        f"## Evaluation\n\nOn held-out data after update {step:,}:\n\n| number | value | what it is |\n"
        f"|---|---|---|\n{rows}".rstrip()
    )


def _decay(state: SavedState) -> str:
    return f"## Weight decay\n\n{_block({'decay': as_dict(state.config)['decay']})}"


def _training(checkpoint: Checkpoint, state: SavedState) -> str:
    """Command, versions and all other settings."""
    inputs, manifest = state.inputs, checkpoint.manifest
    command = "The checkpoint does not keep its command; the settings make a recipe that repeats it."
    if inputs is not None and inputs.command:
        command = f"```bash\n{shlex.join(inputs.command)}\n```"
    trained = "Trained with versions that the checkpoint does not tell"
    if inputs is not None and inputs.versions:
        trained = f"Trained with {_listed(inputs.versions)}"
    others = {name: values for name, values in as_dict(state.config).items() if name != "decay"}
    ranks = f"{manifest.world_size} rank{'s' if manifest.world_size > 1 else ''}"
    return (
        f"## Training\n\n{command}\n\nOn {ranks}, engine {state.config.engine.name}. {trained}; exported by "
        f"alphadecay_dist {__version__} with {_listed(installed())}.\n\n{_block(others)}"
    )


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {found}" for name, found in versions.items())


def _block(tree: Mapping[str, Any]) -> str:
    """Settings as a recipe has them."""
    plain = {
        section: {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
        for section, values in tree.items()
    }
    return f"```yaml\n{yaml.safe_dump(plain, sort_keys=False)}```"
