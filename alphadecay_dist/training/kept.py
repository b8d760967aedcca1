"""What a run decides at its start, and what a resume compares with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alphadecay_dist.errors import UserError, warn
from alphadecay_dist.training.changes import Change, changes_of, refuse, tokenizer_change
from alphadecay_dist.training.data.batches import Source
from alphadecay_dist.training.data.prepared import Shards, check_tokenizer, read_manifest, sha256
from alphadecay_dist.training.data.tokenizer import TRAIN, Tokenizer, tokenizer_in
from alphadecay_dist.training.inputs import Inputs, inputs_of
from alphadecay_dist.training.options import Options
from alphadecay_dist.training.preflight import ResolvedRun
from alphadecay_dist.training.process.ranks import Ranks
from alphadecay_dist.training.recipe import AUTO, NFKC, Config, DataConfig, TokenizerConfig
from alphadecay_dist.training.resume import RunStart
from alphadecay_dist.training.state import SavedState


@dataclass(frozen=True)
class Kept:
    """What the run is made of from now on.

    Attributes:
        inputs: without the tokenizer, until it is found.
        own_tokenizer: SHA-256 of the tokenizer that a resume needs; None where any will do.
        accepted: changes since the run began, or since its last resume.
        restart_data: whether the saved position has no meaning in the data that are there now: they are read
            from their beginning.
    """

    inputs: Inputs
    own_tokenizer: str | None = None
    accepted: tuple[Change, ...] = ()
    restart_data: bool = False

    def changed(self, *fields: str) -> bool:
        """Whether one of these fields names other content than before."""
        return any(change.field in fields for change in self.accepted)

    def with_tokenizer(self, tokenizer: Tokenizer) -> Inputs:
        """All that the run is made of.

        Raises:
            UserError: a resume needs another tokenizer.
        """
        found = sha256(tokenizer.proto)
        if self.own_tokenizer not in (None, found):
            raise UserError(
                "tokenizer.model: the run's own, beside its checkpoints, is missing or not the one that it "
                "was begun with (SHA-256); restore it"
            )
        return dataclasses.replace(self.inputs, tokenizer=found)


def settled(checked: ResolvedRun, options: Options, start: RunStart, ranks: Ranks) -> ResolvedRun:
    """The recipe with what a run decides at its start: whose tokenizer, which commit of C4; collective.

    Raises:
        UserError: --init_from has a tokenizer that cannot be read here, or not that of the prepared data.
    """
    data, tokenizer = ranks.from_main(lambda: _settled(checked, options, start))
    config = dataclasses.replace(checked.config, data=data, tokenizer=tokenizer)
    return dataclasses.replace(checked, config=config)


def _settled(checked: ResolvedRun, options: Options, start: RunStart) -> tuple[DataConfig, TokenizerConfig]:
    data, tokenizer = checked.config.data, checked.config.tokenizer
    if start.saved is None:
        if options.init_from is not None and tokenizer.model == TRAIN:
            tokenizer = _of_weights(Path(options.init_from), tokenizer)
    else:
        data, tokenizer = _as_begun(data, tokenizer, start.saved.state)
    if data.prepared is not None:
        folder, vocabulary = Path(data.prepared), checked.model_config.vocab_size
        check_tokenizer(read_manifest(folder), folder, tokenizer, vocabulary)
    return data, tokenizer


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
        return dataclasses.replace(tokenizer, model=str(found))
    warn(
        f"--init_from {folder}: has no tokenizer: one is trained, whose ids are not those that the "
        "weights were trained with; give theirs as --tokenizer.model=PATH"
    )
    return tokenizer


def keep(
    checked: ResolvedRun,
    options: Options,
    source: Source,
    validation: Source,
    start: RunStart,
    ranks: Ranks,
) -> Kept:
    """Find what the run is made of, on rank 0 for all, and compare it with what it was; collective.

    Raises:
        UserError: something was changed, and not accepted.
    """
    kept = ranks.from_main(lambda: _kept(checked, options, source, validation, start))
    for change in kept.accepted:
        ranks.say(f"accepted: {change.text}")
    if kept.restart_data:
        ranks.say("the data are read from their beginning")
    return kept


def _kept(
    checked: ResolvedRun, options: Options, source: Source, validation: Source, start: RunStart
) -> Kept:
    now = inputs_of(checked, source, validation, options.init_from)
    if start.saved is None:
        return Kept(now)
    state, folder = start.saved.state, start.saved.checkpoint.folder
    if state.inputs is None:  # a checkpoint of a version that did not keep them: nothing to compare with
        return Kept(dataclasses.replace(now, init_from=None))
    changes = _compared(now, state, state.inputs, checked, source)
    refuse(changes, options.accept_changes, folder)
    if options.init_from is not None and now.init_from != state.inputs.init_from:
        warn(f"--init_from {options.init_from}: has no effect: the run goes on from {folder}")
    written = ({"step": start.step, "change": change.text} for change in changes)
    inputs = dataclasses.replace(
        now, init_from=state.inputs.init_from, changes=(*state.inputs.changes, *written)
    )
    own = None if any(change.field == "tokenizer.model" for change in changes) else state.inputs.tokenizer
    return Kept(inputs, own, tuple(changes), _moves_data(changes, checked.config, state.config))


def _moves_data(changes: Sequence[Change], config: Config, before: Config) -> bool:
    """Whether the saved position is one in other sequences: of other rows, or packed by another tokenizer."""
    fields = {change.field for change in changes}
    holdout = (config.data.validation is None) != (before.data.validation is None)  # some rows change sides
    return (
        not fields.isdisjoint({"data.source", "data.prepared"})
        or ("data.validation" in fields and holdout)
        or ("tokenizer.model" in fields and config.data.pack)
    )


def _compared(
    now: Inputs, state: SavedState, before: Inputs, checked: ResolvedRun, source: Source
) -> list[Change]:
    """All differences between what is there now and what the run had before."""
    changes = changes_of(now, before, checked.config, state.config)
    asked = _asked_tokenizer(checked.config, source)
    tokenizer = tokenizer_change(asked, before, checked.config, state.config)
    return changes if tokenizer is None else [*changes, tokenizer]


def _asked_tokenizer(config: Config, source: Source) -> str | None:
    """SHA-256 of the tokenizer that the recipe names; None where it names no local file."""
    if isinstance(source, Shards):
        return sha256(source.proto)
    path = Path(config.tokenizer.model)
    return sha256(path.read_bytes()) if path.is_file() else None
