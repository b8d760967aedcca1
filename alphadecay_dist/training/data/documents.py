"""Reads the documents of each kind of file: the text of every row, from any row on.

A row is a paragraph of a text file, a JSON value, or a row of a parquet file. Rows are counted from 0 in each
file. Only the text of a record matters: the types of other fields may differ between rows and between files.
"""

from __future__ import annotations

import codecs
import importlib
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import PurePath
from typing import IO, Any, Protocol, TypeVar

from alphadecay_dist.errors import UserError
from alphadecay_dist.training.data.json_text import json_records, not_json
from alphadecay_dist.training.data.retries import read_on

T = TypeVar("T")

BUFFER = 1 << 18  # bytes that are decompressed at a time
PARQUET_BATCH = 1000  # rows that are decoded at a time
FIELDS_SHOWN = 20

# Imported when a file needs them: Python may be built without them.
DECOMPRESSORS = {".gz": ("gzip", "GzipFile"), ".bz2": ("bz2", "BZ2File"), ".xz": ("lzma", "LZMAFile")}


class Files(Protocol):
    """Numbered files of documents; each can be read from any row on."""

    @property
    def field(self) -> str:
        """The column or key of the text."""

    def __len__(self) -> int:
        """Number of files."""

    def name(self, file: int) -> str:
        """The name of a file in errors."""

    def texts(self, file: int, start: int) -> Iterator[str | None]:
        """The text of each row of a file from row ``start`` on; None if it is null.

        Raises:
            UserError: a row has no text.
        """


@dataclass(frozen=True)
class LocalFiles:
    """Files of one kind.

    Attributes:
        kind: ``text``, ``json`` or ``parquet``.
        paths: the files, in their order.
        field: the column or key of the text.
    """

    kind: str
    paths: list[str]
    field: str

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, file: int) -> str:
        """A file's path."""
        return self.paths[file]

    def texts(self, file: int, start: int) -> Iterator[str | None]:
        """See :meth:`Files.texts`."""
        return READERS[self.kind](self.paths[file], self.field, start)


def rows_of(files: Files, file: int, start: int) -> Iterator[tuple[int, str | None]]:
    """Row number and text of each row of a file from row ``start`` on; failed connections are retried.

    Raises:
        UserError: a row has no text, or the file cannot be read.
    """
    return read_on(lambda row: files.texts(file, row), start, files.name(file))


def text_of(record: Any, field: str, where: str, row: int) -> str | None:
    """The text of a record; None if it is null.

    Raises:
        UserError: the record does not have the field, or its value is not text.
    """
    if not isinstance(record, dict):
        raise _bad_row(where, row, f"is {_kind(record)}, expected an object with the field {field!r}")
    if field not in record:
        raise _bad_row(where, row, f"has no field {field!r} {_listed(record)}; set data.text_field")
    return _checked(record[field], field, where, row, record)


def _checked(value: Any, field: str, where: str, row: int, fields: Iterable[str]) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        what = f"has {_kind(value)} in {field!r}, expected text {_listed(fields)}"
        raise _bad_row(where, row, f"{what}; make it text, or set data.text_field")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON can contain half of a surrogate pair, which no tokenizer accepts
            raise _bad_row(where, row, f"has half of a surrogate pair in {field!r}; correct it") from None
    return value


def _bad_row(where: str, row: int, what: str) -> UserError:
    return UserError(f"data: {where}: row {row} (counted from 0) {what}")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "a truth value", bytes: "bytes", str: "a string"}
    names |= {int: "a number", float: "a number", type(None): "null"}
    return names.get(type(value), f"a {type(value).__name__}")


def _listed(fields: Iterable[str]) -> str:
    names = list(islice(fields, FIELDS_SHOWN + 1))
    more = ", ..." if len(names) > FIELDS_SHOWN else ""
    return f"(its fields: {', '.join(names[:FIELDS_SHOWN])}{more})"


def _open(path: str) -> IO[bytes]:
    """The content of a file, decompressed according to its name."""
    suffix = PurePath(path).suffix
    if suffix == ".zst":
        import pyarrow  # noqa: PLC0415  (slow to load)

        return io.BufferedReader(pyarrow.input_stream(path, compression="zstd"), BUFFER)
    if suffix in DECOMPRESSORS:
        module, name = DECOMPRESSORS[suffix]
        return io.BufferedReader(getattr(importlib.import_module(module), name)(path), BUFFER)
    return open(path, "rb", BUFFER)


def _numbered(path: str, values: Iterator[T], first: int = 0) -> Iterator[tuple[int, T]]:
    """Row numbers and values, from row ``first`` on.

    Raises:
        UserError: a value cannot be decoded; the message names its row.
    """
    for row in count(first):
        try:
            value = next(values)
        except StopIteration:
            return
        except UnicodeDecodeError as error:
            raise _bad_row(path, row, f"is not text in UTF-8: {error.reason}; convert the file") from None
        except json.JSONDecodeError as error:
            raise _bad_row(path, row, f"{not_json(error)}; correct it") from None
        except RecursionError:
            raise _bad_row(path, row, "is nested too deep to be read") from None
        yield row, value


def _paragraphs_of(path: str, _: str, start: int) -> Iterator[str | None]:
    with _open(path) as file:
        for row, paragraph in _numbered(path, _paragraphs(_lines(file))):
            if row >= start:
                yield paragraph


def _lines(file: Iterable[bytes]) -> Iterator[str]:
    r"""Decoded lines that end with ``\n``, whatever line ends the file has."""
    for line in file:
        text = line.decode()
        if "\r" in text:
            yield from io.StringIO(text, newline=None)
        else:
            yield text


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    r"""The text between pairs of ``\n``, paired from the left; empty paragraphs are left out."""
    parts: list[str] = []
    for line in lines:
        if line != "\n" or not parts:
            parts.append(line)
            continue
        paragraph = "".join(parts)[:-1]  # the first of the two newlines is in parts
        parts = []
        if paragraph:
            yield paragraph
    if parts:
        yield "".join(parts)


def _json_texts(path: str, field: str, start: int) -> Iterator[str | None]:
    with _open(path) as file:
        first = file.readline().removeprefix(codecs.BOM_UTF8)
        lines = (line.decode() for line in chain([first], file))
        for row, record in _numbered(path, json_records(lines)):
            if row >= start:
                yield text_of(record, field, path, row)


def _parquet_texts(path: str, field: str, start: int) -> Iterator[str | None]:
    from pyarrow import parquet  # noqa: PLC0415  (slow to load)

    with parquet.ParquetFile(path) as file:
        fields = file.schema_arrow.names
        if file.metadata.num_rows and field not in fields:
            raise UserError(f"data: {path}: has no column {field!r} {_listed(fields)}; set data.text_field")
        first = 0
        for group in range(file.num_row_groups):
            end = first + file.metadata.row_group(group).num_rows
            if start < end:
                batches = file.iter_batches(PARQUET_BATCH, [group], [field], use_threads=False)
                scalars = (scalar.as_py() for batch in batches for scalar in batch.column(0))
                for row, value in _numbered(path, scalars, first):
                    if row >= start:
                        yield _checked(value, field, path, row, fields)
            first = end


READERS: dict[str, Callable[[str, str, int], Iterator[str | None]]] = {
    "text": _paragraphs_of,
    "json": _json_texts,
    "parquet": _parquet_texts,
}
