"""What a run is made of: kept in its directory and in every checkpoint, so that a resume can compare it."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alphadecay_dist.json_fields import count, get, items
from alphadecay_dist.training.data.batches import Source
from alphadecay_dist.training.data.corpus import Corpus, demo_files
from alphadecay_dist.training.data.prepared import Shards
from alphadecay_dist.training.data.sources import find_files
from alphadecay_dist.training.fingerprint import FileMark, Marks, marks_of
from alphadecay_dist.training.preflight import ResolvedRun
from alphadecay_dist.training.recipe import DataConfig
from alphadecay_dist.training.tasks.language import model as models

INPUTS = "inputs.json"  # in the output directory, for people to read


@dataclass(frozen=True)
class Inputs:
    """Fingerprints of the files that recipe and options name.

    Attributes:
        model: the values that build it, see :func:`alphadecay_dist.training.tasks.language.model.values_of`.
        tokenizer: SHA-256 of the sentencepiece model, which is kept as tokenizer.model.
        data: marks of the data files by name, for each field of the recipe that names some. For prepared
            data, the fingerprints of both splits; for C4, nothing.
        revision: the commit of C4 on the hub, where it is known.
        engine: name and resolved settings: the DeepSpeed JSON, or those of torch's own engines.
        init_from: marks of the files of ``--init_from``, which held the initial weights.
        changes: what was changed and accepted later, and after which update.
    """

    model: dict[str, Any]
    tokenizer: str
    data: dict[str, Marks]
    revision: str | None
    engine: dict[str, Any]
    init_from: Marks | None
    changes: tuple[dict[str, Any], ...] = ()


def inputs_of(checked: ResolvedRun, source: Source, validation: Source, init_from: str | None) -> Inputs:
    """What a run that starts now is made of, without the tokenizer, which may not be trained yet.

    Raises:
        UserError: a file cannot be read.
    """
    settings = copy.deepcopy(checked.engine_config)  # DeepSpeed writes into the original
    return Inputs(
        model=models.values_of(checked.model_config),
        tokenizer="",
        data=_data(checked.config.data, source, validation),
        revision=source.revision if isinstance(source, Corpus) else None,
        engine={
            "name": checked.config.engine.name,
            "settings": settings if isinstance(settings, dict) else asdict(settings),
        },
        init_from=None if init_from is None else _directory(Path(init_from)),
    )


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
    )


def _data(config: DataConfig, source: Source, validation: Source) -> dict[str, Marks]:
    if isinstance(source, Shards) and isinstance(validation, Shards):
        return {"data.prepared": {"train": _prepared(source), "validation": _prepared(validation)}}
    return {field: marks_of(name, find_files(name)[1]) for field, name in _named(config)}


def _prepared(split: Shards) -> FileMark:
    files = (file for shard in split.shards for file in shard.files.values())
    return FileMark(sum(file["bytes"] for file in files), split.fingerprint)


def _named(config: DataConfig) -> Iterable[tuple[str, str]]:
    """The fields that name local files, and the names."""
    if config.source == "c4":
        return []
    train, validation = demo_files() if config.source == "demo" else (config.source, config.validation)
    named = (("data.source", train), ("data.validation", validation))
    return [(field, name) for field, name in named if name is not None]


def _directory(folder: Path) -> Marks:
    if folder.is_file():
        return marks_of(str(folder), [str(folder)])
    return marks_of(str(folder), sorted(str(path) for path in folder.iterdir() if path.is_file()))


def _marks(data: Any, key: str) -> Marks:
    return {
        name: FileMark(count(mark, "bytes"), get(mark, "sha256", str))
        for name, mark in items(data, key, dict)
    }
