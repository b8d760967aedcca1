"""What is decided when a run begins, and compared when it goes on."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path

from alphadecay_dist.errors import warn
from alphadecay_dist.training import resume
from alphadecay_dist.training.changes import Change, deepspeed_changes, refuse
from alphadecay_dist.training.fingerprint import marks_in
from alphadecay_dist.training.inputs import Inputs
from alphadecay_dist.training.preflight import Options, ResolvedRun
from alphadecay_dist.training.process.ranks import Ranks
from alphadecay_dist.training.state import saved_state
from alphadecay_dist.training.tasks.data import Data, Loaders, Previous


@dataclass(frozen=True)
class Kept:
    """What the run is made of from now on.

    Attributes:
        inputs: less what the task makes to read its data, until it is made.
        previous: the run that goes on; None at the beginning of one.
        accepted: changes since it was begun, or last gone on with.
        anew: whether the saved position means nothing in what is there now: the data begin anew.
    """

    inputs: Inputs
    previous: Previous | None = None
    accepted: tuple[Change, ...] = ()
    anew: bool = False

    def with_loaders(self, loaders: Loaders) -> Inputs:
        """All that the run is made of."""
        return dataclasses.replace(self.inputs, tokenizer=loaders.fingerprint)


def settled(checked: ResolvedRun, options: Options, begin: resume.Start, ranks: Ranks) -> ResolvedRun:
    """The recipe with what a run decides at its beginning, such as whose tokenizer it has. Collective.

    Raises:
        UserError: what is found does not fit together.
    """
    before = None if begin.checkpoint is None else saved_state(begin.checkpoint)
    sections = ranks.from_main(
        lambda: checked.task.settle(checked.config, checked.model, options.init_from, before)
    )
    return dataclasses.replace(checked, config=dataclasses.replace(checked.config, **sections))


def keep(checked: ResolvedRun, options: Options, data: Data, begin: resume.Start, ranks: Ranks) -> Kept:
    """Look at what the run is made of, on rank 0 for all, and compare it with what it was. Collective.

    Raises:
        UserError: something was changed, and not accepted.
    """
    kept = ranks.from_main(lambda: _kept(checked, options, data, begin))
    for change in kept.accepted:
        ranks.say(f"accepted: {change.text}")
    if kept.anew:
        ranks.say("the data are read from their beginning")
    return kept


def inputs_of(checked: ResolvedRun, data: Data, init_from: str | None) -> Inputs:
    """What a run that begins now is made of, less what its task makes to read the data.

    Raises:
        UserError: a file cannot be read.
    """
    settings = copy.deepcopy(checked.engine_config)  # DeepSpeed writes into its own
    return Inputs(
        model=checked.model.values(),
        tokenizer="",
        data=data.marks(),
        revision=data.revision,
        engine={
            "name": checked.config.engine.name,
            "settings": settings if isinstance(settings, dict) else dataclasses.asdict(settings),
        },
        init_from=None if init_from is None else marks_in(Path(init_from)),
    )


def _kept(checked: ResolvedRun, options: Options, data: Data, begin: resume.Start) -> Kept:
    now = inputs_of(checked, data, options.init_from)
    if begin.checkpoint is None:
        return Kept(now)
    folder = begin.checkpoint.folder.resolve().parents[1]
    state = saved_state(begin.checkpoint)
    if state.inputs is None:  # its checkpoint is older than this comparison
        return Kept(dataclasses.replace(now, init_from=None), Previous(folder, None, frozenset()))
    task = checked.task
    changes = [
        *task.changes(now, state.inputs, checked.config, state.config, data),
        *deepspeed_changes(now, state.inputs),
    ]
    refuse(changes, options.accept_changes, begin.checkpoint.folder)
    if options.init_from is not None and now.init_from != state.inputs.init_from:
        warn(
            f"--init_from {options.init_from}: has no effect: the run goes on from {begin.checkpoint.folder}"
        )
    written = ({"step": begin.step, "change": change.text} for change in changes)
    inputs = dataclasses.replace(
        now, init_from=state.inputs.init_from, changes=(*state.inputs.changes, *written)
    )
    fields = frozenset(change.field for change in changes)
    previous = Previous(folder, state.inputs.tokenizer, fields)
    anew = task.loses_position(fields, checked.config, state.config)
    return Kept(inputs, previous, tuple(changes), anew)
