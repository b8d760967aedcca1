"""Files that are on disk whole or not at all, and paths that may not leave a directory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath


def write_atomically(path: Path, text: str) -> None:
    """Replace a file by new text: a reader sees the old or the new whole, also after a crash.

    Raises:
        OSError: it cannot be written; the old file is as it was.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        flush(partial)
        os.replace(partial, path)
    except OSError:
        with suppress(OSError):
            partial.unlink()  # a full disk needs its space
        raise
    flush(path.parent)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory to fill, which gets its name once all of it is on disk; after a failure nothing is left.

    Args:
        path: where it will be; nothing, or an empty directory, is there now.

    Yields:
        The directory to write to, ``.NAME.partial`` beside it.

    Raises:
        OSError: it cannot be made, or not be renamed.
    """
    partial = path.parent / f".{path.name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
        partial.mkdir(parents=True)
        yield partial
        for inner in (*partial.rglob("*"), partial):
            flush(inner)
        os.replace(partial, path)
        flush(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def flush(path: Path) -> None:
    """Wait until a file's content, or a directory's entries, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def size_of(path: Path) -> int | None:
    """A file's size in bytes; None where no file is, whatever is in its place."""
    return os.path.getsize(path) if os.path.isfile(path) else None


def is_inner_path(name: str) -> bool:
    """Whether a name is a relative path that stays in its directory, as long as no link is followed."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def leads_out(folder: Path, name: str) -> bool:
    """Whether a path in a directory is outside of it once links are followed."""
    return not Path(os.path.realpath(folder / name)).is_relative_to(os.path.realpath(folder))
