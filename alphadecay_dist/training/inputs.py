"""What a run is made of: kept in its directory and in every checkpoint, so that a resume can compare it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from alphadecay_dist.errors import shown
from alphadecay_dist.json_fields import count, get, items
from alphadecay_dist.training.fingerprint import FileMark, Marks

INPUTS = "inputs.json"  # in the output directory, for people to read


@dataclass(frozen=True)
class Inputs:
    """Fingerprints of the files that recipe and options name.

    Attributes:
        model: the values that describe it, see :meth:`.tasks.task.Model.values`.
        tokenizer: the fingerprint of what the task made to read its data, see
            :attr:`.tasks.data.Loaders.fingerprint`. The first such thing was a tokenizer.
        data: marks of the data files by name, for each field of the recipe that names some.
        revision: the version of data that are no local files, such as a commit, where it is known.
        engine: name and resolved settings: the DeepSpeed JSON, or those of torch's own engines.
        init_from: marks of the files of ``--init_from``, which held the initial weights.
        changes: what was changed and accepted later, and after which update.
        command: that last started the run, without what says where it is written and how it goes on.
        versions: of the packages at that start, by name.
    """

    model: dict[str, Any]
    tokenizer: str
    data: dict[str, Marks]
    revision: str | None
    engine: dict[str, Any]
    init_from: Marks | None
    changes: tuple[dict[str, Any], ...] = ()
    command: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)


def inputs_from(data: Any) -> Inputs:
    """Inputs from plain data.

    Raises:
        ValueError: a value is missing or of another type.
    """
    engine = get(data, "engine", dict)
    get(engine, "name", str), get(engine, "settings", dict)
    changes = get(data, "changes", list)
    for change in changes:
        count(change, "step")
        get(change, "change", str)
    return Inputs(
        model=get(data, "model", dict),
        tokenizer=get(data, "tokenizer", str),
        data={field: _marks(get(data, "data", dict), field) for field in get(data, "data", dict)},
        revision=None if data.get("revision") is None else get(data, "revision", str),
        engine=engine,
        init_from=None if data.get("init_from") is None else _marks(data, "init_from"),
        changes=tuple(changes),
        command=_words(data) if "command" in data else (),  # older versions did not keep these two
        versions=dict(items(data, "versions", str)) if "versions" in data else {},
    )


def _words(data: Any) -> tuple[str, ...]:
    words = get(data, "command", list)
    odd = next((word for word in words if not isinstance(word, str)), None)
    if odd is not None:
        raise ValueError(f"has {shown(odd)} in command, expected a text")
    return tuple(words)


def _marks(data: Any, key: str) -> Marks:
    return {
        name: FileMark(count(mark, "bytes"), get(mark, "sha256", str))
        for name, mark in items(data, key, dict)
    }
