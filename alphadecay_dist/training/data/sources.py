"""Which files a source means: a file, a directory or a glob."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from pathlib import Path, PurePath

from alphadecay_dist.errors import UserError

KINDS = {".txt": "text", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")  # of text and json; parquet compresses its own pages
READABLE = f"{', '.join(KINDS)} (all but .parquet also as {', '.join(COMPRESSED)})"

# What programs leave beside data, and the history of a table.
NOT_DATA = ("__MACOSX", "_temporary", "_delta_log")
UNFINISHED = (".tmp", ".part", ".partial", ".incomplete", ".crdownload")


def find_files(source: str) -> tuple[str, list[str]]:
    """The kind and the sorted files of a path, directory or glob.

    A file that is named is taken as it is. A directory and a glob leave out hidden files, the content of
    hidden directories, and what programs leave beside data.

    Raises:
        UserError: there is no file, or files are of several kinds, or of a kind that cannot be read.
    """
    files = [source] if os.path.isfile(source) else _without_copies(_found(source))
    if not files:
        raise UserError(
            f"data: {source}: no such file, and no directory or glob with {READABLE} files; "
            "data.source also takes 'demo' and 'c4'"
        )
    by_kind = {kind_of(name): name for name in reversed(files)}
    (kind, *others) = by_kind
    if others or kind is None:
        raise UserError(
            f"data: {source}: expected files of one kind of {READABLE}, found "
            f"{' and '.join(sorted(by_kind.values()))}; give a file, or a glob of one kind"
        )
    return kind, files


def kind_of(name: str) -> str | None:
    """The kind of reader that a file needs, from its name; None if there is no reader."""
    path = PurePath(name)
    if path.suffix not in COMPRESSED:
        return KINDS.get(path.suffix)
    kind = KINDS.get(PurePath(path.stem).suffix)
    return None if kind == "parquet" else kind


def _found(source: str) -> list[str]:
    if os.path.isdir(source):
        folder = Path(source)
        paths = (path for path in folder.rglob("*") if kind_of(path.name) and path.is_file())
        return sorted(str(path) for path in paths if _is_data(path.relative_to(folder)))
    # Wildcards match no hidden files; what the pattern itself spells out is taken.
    named = PurePath(source).parts
    names = (name for name in glob.glob(source, recursive=True) if os.path.isfile(name))
    return sorted(
        name
        for name in names
        if not name.endswith(UNFINISHED)
        and not any(part in NOT_DATA and part not in named for part in PurePath(name).parts)
    )


def _is_data(path: PurePath) -> bool:
    """Whether a path below a directory can be part of the corpus."""
    return not any(part.startswith(".") or part in NOT_DATA for part in path.parts)


def _without_copies(names: Iterable[str]) -> list[str]:
    """The names without an ``a.jsonl.zst`` whose ``a.jsonl`` or ``a.jsonl.gz`` is there: a copy of it."""
    found = list(names)
    present = set(found)

    def copies(name: str) -> bool:
        stem, suffix = os.path.splitext(name)
        return suffix in COMPRESSED[1:] and (stem in present or f"{stem}.gz" in present)

    return [name for name in found if not copies(name)]
