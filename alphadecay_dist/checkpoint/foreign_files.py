"""Which files of a directory are the weights of one model: an index, or their names, decide."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from alphadecay_dist.checkpoint.other_formats import (
    ADAPTERS,
    WEIGHTS,
    checkpoint_around,
    folders_in,
    holds_weights,
    own,
    recognised,
)
from alphadecay_dist.errors import UserError, shown
from alphadecay_dist.json_fields import items

# How files of weights are named, and a model in one file; safetensors are preferred to pickles.
KINDS = tuple(zip(WEIGHTS, ("model.safetensors", "pytorch_model.bin"), strict=True))
NUMBERED = re.compile(r"(?P<set>.+)[-_.](?P<number>\d+)-of-(?P<count>\d+)\.\w+")
CONSOLIDATED = "consolidated"  # how Mistral and Meta name a second set of the same weights


@dataclass(frozen=True)
class WeightFiles:
    """The files of one set of weights.

    Attributes:
        files: those to read.
        index: the index that named them; None without one.
        homes: the file of each tensor, as the index says.
    """

    files: Sequence[Path]
    index: Path | None = None
    homes: Mapping[str, str] = field(default_factory=dict)


def weight_files(path: Path) -> WeightFiles:
    """The files of the weights at a path.

    An index is read as data: names of tensors, and of files in the same directory.

    Args:
        path: one file, or a HF checkpoint's directory.

    Raises:
        UserError: the path is not there or is something else, a file is missing, or there are two sets.
    """
    around = checkpoint_around(path)
    if around is not None:
        raise UserError(f"{path}: is a part of a checkpoint of this trainer; give {around}")
    if os.path.isfile(path) and recognised(path) is None:
        return WeightFiles([path])
    for names, single in KINDS if os.path.isdir(path) else ():
        files = [file for file in sorted(path.glob(names)) if not file.match(ADAPTERS[0])]
        index = path / f"{single}.index.json"
        if files:
            return (
                _indexed(index, path / single)
                if os.path.isfile(index)
                else WeightFiles(_one_set(files, single))
            )
    for _, single in KINDS if os.path.isdir(path) else ():
        index = path / f"{single}.index.json"
        if os.path.isfile(index):
            return _indexed(index, path / single)
    raise UserError(f"{path}: {_why_not(path)}")


def _why_not(path: Path) -> str:
    """Why there are no weights at a path, and what to do."""
    other = recognised(path) or own(path)
    if other is not None:
        return f"{other.what}; {other.remedy}"
    inner = next((folder for folder in folders_in(path) if holds_weights(folder)), None)
    if inner is not None:
        return f"has no weights itself, {inner.name} in it has; give {inner}"
    return "found no weights, expected *.safetensors or pytorch_model*.bin; give a HF checkpoint's directory"


def _indexed(index: Path, single: Path) -> WeightFiles:
    """The files that an index names, all of which must be there."""
    homes = _homes(index)
    names = sorted(set(homes.values()))
    missing = [name for name in names if not os.path.isfile(index.parent / name)]
    if missing:
        held = [tensor for tensor, name in homes.items() if name == missing[0]]
        others = f"; so are {len(missing) - 1} more of its {len(names)} files" if len(missing) > 1 else ""
        raise UserError(
            f"{index.parent / missing[0]}: is missing: {index.name} says that {shown(held[0])} and "
            f"{len(held) - 1} tensors more are in it{others}; fetch it again"
        )
    if os.path.isfile(single) and single.name not in names:
        raise UserError(
            f"{single.parent}: holds two sets of weights, {single.name} and what {index.name} names "
            f"({names[0]} ...); remove one of them"
        )
    return WeightFiles([index.parent / name for name in names], index, homes)


def _homes(index: Path) -> dict[str, str]:
    """Names of tensors, and of the files that hold them."""
    try:
        homes = dict(items(json.loads(index.read_text(encoding="utf-8")), "weight_map", str))
    except OSError as error:
        raise UserError(f"{index}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{index}: is not an index of weight files: {reason}; fetch it again") from None
    if not homes:
        raise UserError(f"{index}: names no tensor; fetch it again, or remove it")
    for tensor, name in homes.items():
        if name != os.path.basename(name) or name in ("", ".", ".."):
            raise UserError(
                f"{index}: says that {shown(tensor)} is in {shown(name)}, expected the name of a file in the "
                "same directory; fetch it again"
            )
    return homes


def _one_set(files: Sequence[Path], single: str) -> list[Path]:
    """The files of one set where no index says which: a model in one file, else all of one naming."""
    whole = [file for file in files if file.name == single]
    if whole:
        return whole
    sets: dict[str, list[Path]] = {}
    for file in files:
        sets.setdefault(_set_of(file), []).append(file)
    if len(sets) > 1:
        first, second, *_ = (own[0].name for own in sets.values())
        raise UserError(
            f"{files[0].parent}: holds several sets of weights, of {first} and of {second}, and no index; "
            "give the file that is meant, or a directory with one set"
        )
    _require_all_numbers(files)
    return list(files)


def _set_of(file: Path) -> str:
    numbered = NUMBERED.fullmatch(file.name)
    if numbered:
        return f"{numbered['set']} of {numbered['count']}"
    return CONSOLIDATED if file.name.startswith(CONSOLIDATED) else ""


def _require_all_numbers(files: Sequence[Path]) -> None:
    """Refuse a set whose names say that it had more files."""
    found = [match for file in files if (match := NUMBERED.fullmatch(file.name))]
    if not found:
        return
    numbers = {int(match["number"]) for match in found}
    first = min(numbers) if min(numbers) == 0 else 1
    count = int(found[0]["count"])
    missing = next(number for number in range(first, first + len(numbers) + 1) if number not in numbers)
    if missing < first + count:
        one = found[0]
        start, end = one.span("number")
        name = f"{one.string[:start]}{missing:0{end - start}d}{one.string[end:]}"
        raise UserError(
            f"{files[0].parent / name}: is missing: {len(files)} of {count} files are there; fetch it again"
        )
