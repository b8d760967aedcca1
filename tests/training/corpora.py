"""Small corpora in files, and a tokenizer that gives every word its own ids."""

from __future__ import annotations

import bz2
import functools
import gzip
import json
import lzma
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow

from alphadecay_dist.training.data.corpus import Corpus, open_corpora
from alphadecay_dist.training.data.sentencepiece_tokenizer import SentencePieceTokenizer, train_tokenizer
from alphadecay_dist.training.recipe import NFKC, DataConfig

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pyarrow.Codec("zstd").compress(content, asbytes=True),
}


@functools.cache
def number_tokenizer() -> SentencePieceTokenizer:
    """A tokenizer whose text comes back exactly: documents here are made of digits and spaces."""
    return train_tokenizer((f"{i} {i * 7}" for i in range(2000)), 64, NFKC)


def numbered(count: int, first: int = 0) -> list[str]:
    """Documents that differ from one another, 1 to 7 words long."""
    return [" ".join([str(number)] * (1 + number % 7)) for number in range(first, first + count)]


def write_files(folder: Path, documents: list[list[str]]) -> Path:
    """A directory with a JSON-lines file for every list of documents."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, texts in enumerate(documents):
        write_lines(folder / f"part-{i:03d}.jsonl", ({"text": text} for text in texts))
    return folder


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> Path:
    """A JSON-lines file, compressed as its name says."""
    return write_bytes(path, "".join(json.dumps(record) + "\n" for record in records).encode())


def write_bytes(path: Path, content: bytes) -> Path:
    """A file, compressed as its name says."""
    path.write_bytes(COMPRESS.get(path.suffix, bytes)(content))
    return path


def texts_of(corpus: Corpus) -> list[str]:
    """All documents, file by file."""
    return [text for file in range(corpus.num_files) for _, text in corpus.rows(file, 0)]


def open_all(source: Path | str, **options: Any) -> tuple[list[str], list[str]]:
    """All training and all validation documents of a source."""
    train, validation = open_corpora(DataConfig(source=str(source), **options))
    return texts_of(train), texts_of(validation)
