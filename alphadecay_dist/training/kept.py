"""What a run decides at its start, and what a resume compares with it."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path

from alphadecay_dist import __version__
from alphadecay_dist.engines.versions import installed
from alphadecay_dist.errors import warn
from alphadecay_dist.training.changes import Change, deepspeed_changes, refuse
from alphadecay_dist.training.fingerprint import marks_in
from alphadecay_dist.training.inputs import Inputs
from alphadecay_dist.training.options import Options
from alphadecay_dist.training.preflight import ResolvedRun
from alphadecay_dist.training.process.ranks import Ranks
from alphadecay_dist.training.resume import RunStart
from alphadecay_dist.training.tasks.data import Data, Loaders, Previous


@dataclass(frozen=True)
class Kept:
    """What the run is made of from now on.

    Attributes:
        inputs: without what the task makes to read its data, until it is made.
        previous: the run that goes on; None at the beginning of one.
        accepted: changes since the run began, or since its last resume.
        restart_data: whether the saved position has no meaning in the data that are there now: they are read
            from their beginning.
    """

    inputs: Inputs
    previous: Previous | None = None
    accepted: tuple[Change, ...] = ()
    restart_data: bool = False

    def with_loaders(self, loaders: Loaders) -> Inputs:
        """All that the run is made of."""
        return dataclasses.replace(self.inputs, tokenizer=loaders.fingerprint)


def settled(checked: ResolvedRun, options: Options, start: RunStart, ranks: Ranks) -> ResolvedRun:
    """The recipe with what a run decides at its start, such as whose tokenizer it has; collective.

    Raises:
        UserError: what is found does not fit together.
    """
    before = None if start.saved is None else start.saved.state
    sections = ranks.from_main(
        lambda: checked.task.settle(checked.config, checked.model, options.init_from, before)
    )
    return dataclasses.replace(checked, config=dataclasses.replace(checked.config, **sections))


def keep(checked: ResolvedRun, options: Options, data: Data, start: RunStart, ranks: Ranks) -> Kept:
    """Find what the run is made of, on rank 0 for all, and compare it with what it was; collective.

    Raises:
        UserError: something was changed, and not accepted.
    """
    kept = ranks.from_main(lambda: _kept(checked, options, data, start))
    for change in kept.accepted:
        ranks.say(f"accepted: {change.text}")
    if kept.restart_data:
        ranks.say("the data are read from their beginning")
    return kept


def inputs_of(checked: ResolvedRun, data: Data, options: Options) -> Inputs:
    """What a run that starts now is made of, without what its task makes to read the data.

    Raises:
        UserError: a file cannot be read.
    """
    settings = copy.deepcopy(checked.engine_config)  # DeepSpeed writes into the original
    return Inputs(
        model=checked.model.values(),
        tokenizer="",
        data=data.marks(),
        revision=data.revision,
        engine={
            "name": checked.config.engine.name,
            "settings": settings if isinstance(settings, dict) else dataclasses.asdict(settings),
        },
        init_from=None if options.init_from is None else marks_in(Path(options.init_from)),
        command=options.command,
        versions={"alphadecay_dist": __version__, **installed()},
    )


def _kept(checked: ResolvedRun, options: Options, data: Data, start: RunStart) -> Kept:
    now = inputs_of(checked, data, options)
    if start.saved is None:
        return Kept(now)
    state, checkpoint = start.saved.state, start.saved.checkpoint.folder
    folder = checkpoint.resolve().parents[1]
    if state.inputs is None:  # a checkpoint of a version that did not keep them: nothing to compare with
        return Kept(dataclasses.replace(now, init_from=None), Previous(folder, None, frozenset()))
    task = checked.task
    changes = [
        *task.changes(now, state.inputs, checked.config, state.config, data),
        *deepspeed_changes(now, state.inputs),
    ]
    refuse(changes, options.accept_changes, checkpoint)
    if options.init_from is not None and now.init_from != state.inputs.init_from:
        warn(f"--init_from {options.init_from}: has no effect: the run goes on from {checkpoint}")
    written = ({"step": start.step, "change": change.text} for change in changes)
    inputs = dataclasses.replace(
        now, init_from=state.inputs.init_from, changes=(*state.inputs.changes, *written)
    )
    fields = frozenset(change.field for change in changes)
    previous = Previous(folder, state.inputs.tokenizer, fields)
    restart_data = task.loses_position(fields, checked.config, state.config)
    return Kept(inputs, previous, tuple(changes), restart_data)
