"""Files or hub data -> documents in a fixed order that can be resumed anywhere.

The order of a lane's documents depends only on the seed, the lane and the files. The files of an epoch are in
a seeded permutation, and within a file each block of ``shuffle`` documents is permuted. So a position is four
numbers, and a resume reads one block again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from alphadecay_dist.errors import UserError, warn
from alphadecay_dist.json_fields import count
from alphadecay_dist.training.data.documents import Files, LocalFiles, rows_of
from alphadecay_dist.training.data.holdout import Holdout
from alphadecay_dist.training.data.hub import open_c4
from alphadecay_dist.training.data.sources import find_files
from alphadecay_dist.training.recipe import DataConfig

LOOKED_AT = 1000  # files whose first row is checked before training


class Corpus:
    """Documents in numbered files; each file is read as a stream from any row on.

    Args:
        files: the files.
        where: name of the corpus in errors.
        holdout: which rows belong to the validation set; None means no row.
        held_out: take those rows instead of the others.
        revision: the commit, for data on the hub.
    """

    def __init__(
        self,
        files: Files,
        where: str,
        holdout: Holdout | None = None,
        held_out: bool = False,
        revision: str | None = None,
    ) -> None:
        self.revision = revision
        self._files = files
        self._where = where
        self._holdout = holdout
        self._held_out = held_out
        self._nulls = 0
        self._counted: dict[int, int] = {}  # the row of each file up to which nulls were counted
        self._reported = False

    @property
    def name(self) -> str:
        """Its name in errors."""
        if self._holdout is None or not self._held_out:
            return self._where
        return f"{self._where} (every {self._holdout.every}th document of it)"

    @property
    def advice(self) -> str:
        """What to do if a lane has no document."""
        if self._holdout is not None and self._held_out:
            return self._holdout.advice
        return "use more documents, fewer data.lanes or another data.holdout"

    @property
    def num_files(self) -> int:
        """Number of files; the order permutes whole files."""
        return len(self._files)

    def documents(self) -> Iterator[str]:
        """All documents, file by file."""
        return (text for file in range(self.num_files) for _, text in self.rows(file, 0))

    def rows(self, file: int, start: int) -> Iterator[tuple[int, str]]:
        """Row number and text of the non-empty documents of one file, from row ``start`` on.

        Raises:
            UserError: a row without text, or a file that cannot be read.
        """
        for row, value in rows_of(self._files, file, start):
            if value is None:
                self._pass_over(file, row)
            elif self._belongs(file, row) and (text := value.strip()):
                yield row, text

    def report_nulls(self) -> None:
        """Report, once, how many rows were skipped."""
        if self._nulls > 1 and not self._reported:
            self._reported = True
            field = self._files.field
            warn(f"data: {self._where}: {self._nulls} rows so far are null in {field!r} and were passed over")

    def _pass_over(self, file: int, row: int) -> None:
        """Count a row whose text is null; a row that is read again counts once."""
        if row < self._counted.get(file, 0):
            return
        self._counted[file] = row + 1
        self._nulls += 1
        if self._nulls == 1:
            warn(
                f"data: {self._files.name(file)}: row {row} (counted from 0) is null in "
                f"{self._files.field!r}; such rows are passed over"
            )

    def _belongs(self, file: int, row: int) -> bool:
        return self._holdout is None or self._holdout.has(file, row) == self._held_out


@dataclass
class Cursor:
    """A position in a lane.

    Attributes:
        epoch: number of finished passes.
        file: position in the epoch's order of files.
        row: first row of the current block.
        taken: documents of that block that were handed out.
    """

    epoch: int = 0
    file: int = 0
    row: int = 0
    taken: int = 0


class DocumentLane:
    """An endless stream of one lane's documents.

    With at least as many files as lanes, a lane has every ``lanes``-th file of the epoch's permutation. With
    fewer files, it has every ``lanes``-th row of all files.
    """

    def __init__(self, corpus: Corpus, lane: int, lanes: int, seed: int, shuffle: int) -> None:
        self._corpus = corpus
        self._lane = lane
        self._lanes = lanes
        self._seed = seed
        self._shuffle = shuffle
        self.seek(Cursor())

    def seek(self, cursor: Cursor) -> None:
        """Continue from a cursor."""
        self.cursor = cursor
        self._block: list[str] | None = None
        self._next_row = cursor.row
        self._rows: Iterator[tuple[int, str]] | None = None

    def next(self) -> str:
        """The next document; after the last one of an epoch, the first one of the next.

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
                    f"{self._corpus.advice}"
                )

    def _advance(self, ended: bool) -> None:
        """Move to the next block, or from the end of a file to the next file or epoch."""
        if not ended:
            self.cursor = Cursor(self.cursor.epoch, self.cursor.file, self._next_row, 0)
        elif self.cursor.file + 1 < len(self._files(self.cursor.epoch)):
            self.seek(Cursor(self.cursor.epoch, self.cursor.file + 1))
        else:
            self._corpus.report_nulls()
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
            self.seek(self.cursor)  # a new attempt begins at the cursor, not where reading failed
            raise
        name = f"block {self._seed} {self.cursor.epoch} {file} {self.cursor.row} {self._lane}"
        random.Random(name).shuffle(block)
        return block

    def state(self) -> dict[str, int]:
        """The cursor as plain data."""
        return asdict(self.cursor)

    def load(self, state: Any) -> None:
        """Continue from a state.

        Raises:
            ValueError: the state is not one of this corpus.
        """
        cursor = Cursor(**{option.name: count(state, option.name) for option in fields(Cursor)})
        files = len(self._files(cursor.epoch))
        if cursor.file >= files:
            raise ValueError(f"has file {cursor.file}, expected one of {files}")
        self.seek(cursor)


def open_corpora(config: DataConfig) -> tuple[Corpus, Corpus]:
    """The training and the validation corpus.

    Raises:
        UserError: a missing or unreadable file, a file whose first row has no text, or a hub that does not
            answer.
    """
    if config.source == "c4":
        return _open_hub("train", config.revision), _open_hub("validation", config.revision)
    if config.source == "demo":
        train, validation = demo_files()
        return _open(train, "text"), _open(validation, "text")
    if config.validation is not None:
        return _open(config.source, config.text_field), _open(config.validation, config.text_field)
    files = _open_files(config.source, config.text_field)
    holdout = Holdout.of(files, config.holdout)
    return Corpus(files, config.source, holdout), Corpus(files, config.source, holdout, held_out=True)


def demo_files() -> tuple[str, str]:
    """The training and the validation file that come with the package."""
    folder = Path(str(resources.files("alphadecay_dist.recipes") / "text"))
    return str(folder / "train.json.gz"), str(folder / "validation.json.gz")


def _open_hub(split: str, revision: str | None) -> Corpus:
    files = open_c4(split, revision)
    return Corpus(files, "c4", revision=files.revision)


def _open(source: str, text_field: str) -> Corpus:
    return Corpus(_open_files(source, text_field), source)


def _open_files(source: str, text_field: str) -> LocalFiles:
    """The files of a source, after a check of the first row of each, or of some if there are very many."""
    kind, paths = find_files(source)
    files = LocalFiles(kind, paths, "text" if kind == "text" else text_field)
    every = range(len(files))
    looked = [_has_row(files, file) for file in every[:: -(-len(files) // LOOKED_AT)]]
    if not any(looked) and not any(_has_row(files, file) for file in every):
        raise UserError(f"data: {source}: has no document; give files with text")
    return files


def _has_row(files: Files, file: int) -> bool:
    return next(rows_of(files, file, 0), None) is not None
