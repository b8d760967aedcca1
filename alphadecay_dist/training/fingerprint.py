"""What tells data files from others of the same names and sizes, without reading them whole."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO

from alphadecay_dist.errors import UserError

SAMPLE = 1 << 16  # bytes
READERS = 32  # a file on a network file system takes milliseconds to open, and thousands seconds


@dataclass(frozen=True)
class FileMark:
    """Size of a file in ``bytes``, and ``sha256`` of its first, middle and last 64 KiB (32 digits)."""

    bytes: int
    sha256: str


Marks = dict[str, FileMark]


def marks_of(source: str, files: Iterable[str]) -> Marks:
    """The marks of files, by their paths below the root of what named them.

    Args:
        source: a file, a directory or a glob.
        files: what it stands for.

    Raises:
        UserError: a file cannot be read.
    """
    root = root_of(source)
    with ThreadPoolExecutor(READERS) as readers:
        paths = [Path(file) for file in files]
        return dict(
            zip((str(path.relative_to(root)) for path in paths), readers.map(_mark, paths), strict=True)
        )


def marks_in(folder: Path) -> Marks:
    """The marks of the files of a directory, or of one file.

    Raises:
        UserError: a file cannot be read.
    """
    if folder.is_file():
        return marks_of(str(folder), [str(folder)])
    return marks_of(str(folder), sorted(str(path) for path in folder.iterdir() if path.is_file()))


def root_of(source: str) -> Path:
    """The directory that a source's files are named from, so that all may move together to another place."""
    path = Path(source)
    if os.path.isdir(path):
        return path
    if os.path.isfile(path):
        return path.parent
    return Path(*takewhile(lambda part: glob.escape(part) == part, path.parts))


def _mark(path: Path) -> FileMark:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return FileMark(size, _sampled(file, size))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; check it") from None


def _sampled(file: BinaryIO, size: int) -> str:
    digest = hashlib.sha256()
    if size <= 3 * SAMPLE:
        digest.update(file.read())
    else:
        for start in (0, (size - SAMPLE) // 2, size - SAMPLE):
            file.seek(start)
            digest.update(file.read(SAMPLE))
    return digest.hexdigest()[:32]
