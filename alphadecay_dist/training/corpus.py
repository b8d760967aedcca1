"""Files or hub data -> documents in a fixed order that can be taken up anywhere.

The order of a lane's documents depends on the seed, the lane and the files alone: the files of an epoch in a
seeded permutation, and within a file blocks of ``shuffle`` documents, each permuted. So a position is four
numbers, and a resume reads one block again. (The shuffle buffers of ``datasets`` lose and repeat documents
on resume; its plain streams, used here, do not.)
"""

from __future__ import annotations

import glob
import logging
import os
import random
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from alphadecay_dist.errors import UserError
from alphadecay_dist.fields import count
from alphadecay_dist.training.recipe import DataConfig
from alphadecay_dist.training.retries import Patience, may_pass

LOADERS = {".txt": "text", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
C4 = ("allenai/c4", "en")
COMMIT = re.compile(r"@([0-9a-f]{40})/")  # in the address of a file on the hub


class Corpus:
    """Documents in numbered files, each read as a stream from any row on.

    Args:
        stream: a ``datasets.IterableDataset`` without shuffling.
        text_field: its column of text.
        where: what errors call it.
        holdout: every so many rows one belongs to the validation set; 0 is none.
        held_out: take those rows instead of the others.
        revision: the commit, of data on the hub.
    """

    def __init__(
        self,
        stream: Any,
        text_field: str,
        where: str,
        holdout: int = 0,
        held_out: bool = False,
        revision: str | None = None,
    ) -> None:
        self.revision = revision
        self._stream = stream
        self._field = text_field
        self._where = where
        self._holdout = holdout
        self._held_out = held_out

    @property
    def name(self) -> str:
        """What errors call it."""
        return f"{self._where} (every {self._holdout}th document of it)" if self._held_out else self._where

    @property
    def num_files(self) -> int:
        """Number of files, each a unit of the order."""
        return self._stream.num_shards

    def documents(self) -> Iterator[str]:
        """All documents, file by file."""
        return (text for file in range(self.num_files) for _, text in self.rows(file, 0))

    def rows(self, file: int, start: int) -> Iterator[tuple[int, str]]:
        """Row number and text of the non-empty documents of one file, from row ``start`` on.

        Raises:
            UserError: a row without the text column, or a file that cannot be read.
        """
        for row, record in self._records(file, start):
            text = record.get(self._field)
            if not isinstance(text, str):
                raise UserError(
                    f"{self._where}: row {row} has no text in {self._field!r} (its fields: "
                    f"{', '.join(record)}); set data.text_field"
                )
            if self._belongs(row) and text.strip():
                yield row, text.strip()

    def _records(self, file: int, row: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """The records of one file from a row on; where the connection fails, opened again at the next row."""
        patience = Patience()
        while True:
            stream = self._stream.shard(num_shards=self.num_files, index=file)
            try:
                for record in stream.skip(row) if row else stream:
                    yield row, record
                    row += 1
                    patience.progress()
                return
            except Exception as error:  # readers raise a dozen unrelated types: EOFError, zlib.error, Arrow's
                if not (may_pass(error) and patience.wait(self._where, error)):
                    raise _unreadable(self._where, error) from error

    def _belongs(self, row: int) -> bool:
        if not self._holdout:
            return True
        return (row % self._holdout == self._holdout - 1) == self._held_out


@dataclass
class Cursor:
    """A position in a lane.

    Attributes:
        epoch: passes finished.
        file: position in the epoch's order of files.
        row: first row of the current block.
        taken: documents of that block already handed out.
    """

    epoch: int = 0
    file: int = 0
    row: int = 0
    taken: int = 0


class DocumentLane:
    """An endless stream of one lane's documents.

    With at least as many files as lanes, a lane has every ``lanes``-th file of the epoch's permutation;
    with fewer, every ``lanes``-th row of all files.
    """

    def __init__(self, corpus: Corpus, lane: int, lanes: int, seed: int, shuffle: int) -> None:
        self._corpus = corpus
        self._lane = lane
        self._lanes = lanes
        self._seed = seed
        self._shuffle = shuffle
        self.seek(Cursor())

    def seek(self, cursor: Cursor) -> None:
        """Go on from a cursor."""
        self.cursor = cursor
        self._block: list[str] | None = None
        self._next_row = cursor.row
        self._rows: Iterator[tuple[int, str]] | None = None

    def next(self) -> str:
        """The next document; after the last one of an epoch the first of the next.

        Raises:
            UserError: a whole epoch has no document.
        """
        begun = self.cursor.epoch
        while True:
            if self._block is None:
                self._block = self._read_block()
            if self.cursor.taken < len(self._block):
                document = self._block[self.cursor.taken]
                self.cursor.taken += 1
                return document
            self._advance(ended=not self._block)
            if self.cursor.epoch > begun + 1:
                raise UserError(
                    f"data: {self._corpus.name}: lane {self._lane} of {self._lanes} has no document; "
                    "use more documents, fewer data.lanes or another data.holdout"
                )

    def _advance(self, ended: bool) -> None:
        """To the next block, or past the end of a file to the next file or epoch."""
        if not ended:
            self.cursor = Cursor(self.cursor.epoch, self.cursor.file, self._next_row, 0)
        elif self.cursor.file + 1 < len(self._files(self.cursor.epoch)):
            self.seek(Cursor(self.cursor.epoch, self.cursor.file + 1))
        else:
            self.seek(Cursor(self.cursor.epoch + 1))
        self._block = None

    def _files(self, epoch: int) -> list[int]:
        files = list(range(self._corpus.num_files))
        random.Random(f"files {self._seed} {epoch}").shuffle(files)
        return files if self._shares_files() else files[self._lane :: self._lanes]

    def _shares_files(self) -> bool:
        return self._corpus.num_files < self._lanes

    def _read_block(self) -> list[str]:
        """The block that begins at the cursor's row, permuted; empty at the end of the file."""
        file = self._files(self.cursor.epoch)[self.cursor.file]
        if self._rows is None:
            self._rows = self._corpus.rows(file, self.cursor.row)
        block: list[str] = []
        try:
            for row, text in self._rows:
                if self._shares_files() and row % self._lanes != self._lane:
                    continue
                block.append(text)
                self._next_row = row + 1
                if len(block) == self._shuffle:
                    break
        except UserError:
            self.seek(self.cursor)  # asked again, it begins at the cursor: not where reading broke off
            raise
        name = f"block {self._seed} {self.cursor.epoch} {file} {self.cursor.row} {self._lane}"
        random.Random(name).shuffle(block)
        return block

    def state(self) -> dict[str, int]:
        """The cursor as plain data."""
        return asdict(self.cursor)

    def load(self, state: Any) -> None:
        """Go on from a state.

        Raises:
            ValueError: it is none of this corpus.
        """
        cursor = Cursor(**{option.name: count(state, option.name) for option in fields(Cursor)})
        files = len(self._files(cursor.epoch))
        if cursor.file >= files:
            raise ValueError(f"has file {cursor.file}, expected one of {files}")
        self.seek(cursor)


def open_corpora(config: DataConfig) -> tuple[Corpus, Corpus]:
    """The training and the validation corpus.

    Raises:
        UserError: a missing or unreadable file, or a hub that does not answer.
    """
    if config.source == "c4":
        return _open_c4("train", config.revision), _open_c4("validation", config.revision)
    if config.source == "demo":
        train, validation = demo_files()
        return _open_files(train, "text"), _open_files(validation, "text")
    if config.validation is not None:
        return (
            _open_files(config.source, config.text_field),
            _open_files(config.validation, config.text_field),
        )
    return (
        _open_files(config.source, config.text_field, config.holdout, held_out=False),
        _open_files(config.source, config.text_field, config.holdout, held_out=True),
    )


def demo_files() -> tuple[str, str]:
    """The training and the validation file that come with the package."""
    folder = Path(str(resources.files("alphadecay_dist.recipes") / "text"))
    return str(folder / "train.json.gz"), str(folder / "validation.json.gz")


def find_files(source: str) -> tuple[str, list[str]]:
    """The loader and the sorted files of a path, directory or glob.

    Raises:
        UserError: no file, files of several kinds, or of a kind that cannot be read.
    """
    path = Path(source)
    if os.path.isdir(path):
        files = sorted(str(p) for p in path.rglob("*") if _loader(p.name) and p.is_file())
    else:
        files = [source] if os.path.isfile(path) else sorted(glob.glob(source, recursive=True))
    if not files:
        raise UserError(
            f"data: {source}: no such file, and no directory or glob with {', '.join(LOADERS)} files; "
            "data.source also takes 'demo' and 'c4'"
        )
    kinds = {_loader(name) for name in files}
    loader = kinds.pop()
    if kinds or loader is None:
        raise UserError(f"data: {source}: expected files of one kind of {', '.join(LOADERS)} (.gz too)")
    return loader, files


def _loader(name: str) -> str | None:
    return LOADERS.get(Path(name.removesuffix(".gz")).suffix)


def _open_files(source: str, text_field: str, holdout: int = 0, held_out: bool = False) -> Corpus:
    import datasets  # noqa: PLC0415  (slow to load, and not needed to refuse a bad path)

    datasets.logging.set_verbosity(logging.CRITICAL)  # its errors reach the user once, as ours
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # local files: no word to the hub, no wait for it
    loader, files = find_files(source)
    options = {"sample_by": "paragraph"} if loader == "text" else {}
    names = [glob.escape(name) for name in files]  # load_dataset takes every name for a pattern
    try:
        stream = datasets.load_dataset(loader, data_files=names, split="train", streaming=True, **options)
    except StopIteration:  # how the JSON reader meets files without a byte
        raise UserError(f"data: {source}: has no document; give files with text") from None
    except Exception as error:
        raise _unreadable(source, error) from error
    return Corpus(stream, "text" if loader == "text" else text_field, source, holdout, held_out)


def _open_c4(split: str, revision: str | None) -> Corpus:
    import datasets  # noqa: PLC0415

    # Its own retries can take ten minutes an attempt and say nothing: a failed read comes to Corpus at once.
    datasets.config.STREAMING_READ_MAX_RETRIES = datasets.config.STREAMING_OPEN_MAX_RETRIES = 1
    try:
        builder = datasets.load_dataset_builder(*C4, revision=revision)
        stream = builder.as_streaming_dataset(split=split)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"data.source c4: the hub does not give {C4[0]}: {reason}; "
            "without network give local files: --data.source=PATH"
        ) from error
    found = COMMIT.search(str(builder.config.data_files[split][0]))
    return Corpus(stream, "text", "c4", revision=found[1] if found else None)


def _unreadable(where: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"data: {where}: cannot be read: {reason}; check it, or give another data.source")
