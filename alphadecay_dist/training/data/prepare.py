"""Tokenize a corpus once, into the shards that prepared.py reads.

A shard is complete when progress.json names it, and the corpus when manifest.json is there. Both are written
after their files and put in place by a rename. So an interrupted preparation is never mistaken for a complete
one, and the same command continues after its last shard.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from alphadecay_dist.errors import UserError
from alphadecay_dist.files import flush, write_atomically
from alphadecay_dist.json_fields import get
from alphadecay_dist.training.data.batches import EVAL_SEED
from alphadecay_dist.training.data.corpus import Corpus, DocumentLane, open_corpora
from alphadecay_dist.training.data.prepared import (
    ENDS,
    FORMAT,
    MANIFEST,
    SPLITS,
    Manifest,
    Shard,
    dtype_for,
    kept_tokenizer,
    read_manifest,
    sha256,
    shards_of,
)
from alphadecay_dist.training.data.sources import find_files
from alphadecay_dist.training.data.tokenizer import Tokenizer, check_vocabulary
from alphadecay_dist.training.data.tokenizer_files import TRAIN, find_tokenizer
from alphadecay_dist.training.recipe import Config, DataConfig

PROGRESS, LOCK = "progress.json", "lock"
FINISHED = "finished"
SHARD_TOKENS = 1 << 27  # a shard ends after the batch of documents that reaches it
BATCH = 1000  # documents that are tokenized together, on all cores


def prepare_corpus(config: Config, vocabulary: int, folder: Path) -> Manifest:
    """Tokenize a recipe's training and validation data into a directory, or continue doing so.

    Args:
        config: the recipe; only its data and tokenizer sections matter.
        vocabulary: vocabulary size of the recipe's model.
        folder: the directory; an interrupted preparation of the same data in it is continued.

    Raises:
        UserError: the data cannot be read, or the directory cannot be written or contains other prepared
            data.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            if not (folder / MANIFEST).is_file():
                _prepare(config, vocabulary, folder)
            manifest = read_manifest(folder)
            header = _header(config, vocabulary, _tokenizer(config, vocabulary, folder))
            _same(header, asdict(manifest), folder)
            return manifest
    except OSError as error:
        raise UserError(f"--output {folder}: cannot be written: {error}") from None


def _prepare(config: Config, vocabulary: int, folder: Path) -> None:
    corpora = dict(zip(SPLITS, open_corpora(config.data), strict=True))
    tokenizer = _tokenizer(config, vocabulary, folder, corpora["train"])
    header = _header(config, vocabulary, tokenizer)
    if (folder / PROGRESS).is_file():
        progress = _read_progress(folder)
        _same(header, progress.header, folder)
    else:
        progress = _Progress(header, {split: [] for split in SPLITS}, dict.fromkeys(SPLITS))
        progress.write(folder)
    for split, corpus in corpora.items():
        _write_split(folder, split, corpus, tokenizer, config.data.shuffle, progress)
    write_atomically(folder / MANIFEST, json.dumps({**header, **progress.shards}, indent=1))
    (folder / PROGRESS).unlink()


def _tokenizer(config: Config, vocabulary: int, folder: Path, corpus: Corpus | None = None) -> Tokenizer:
    """The recipe's tokenizer, or the one that was trained for it here; it is stored with the shards."""
    begun = (folder / PROGRESS).is_file() or (folder / MANIFEST).is_file()
    if begun and config.tokenizer.model == TRAIN:
        return kept_tokenizer(folder)
    documents = corpus.documents() if corpus is not None else iter(())
    tokenizer = find_tokenizer(config, documents, vocabulary)
    check_vocabulary(tokenizer, vocabulary)
    if not begun:
        for name, content in tokenizer.files.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
            flush(path)
    return tokenizer


def _header(config: Config, vocabulary: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """The manifest without its shards; it must be equal for a preparation to be continued."""
    data = asdict(config.data)
    names = ("source", "validation", "holdout", "text_field", "shuffle")
    return {
        "format": FORMAT,
        "dtype": dtype_for(tokenizer.vocab_size),
        "tokenizer": {
            "model": config.tokenizer.model,
            "vocabulary": vocabulary,
            "pieces": tokenizer.vocab_size,
            "sha256": tokenizer.fingerprint,
        },
        "source": {**{name: data[name] for name in names}, "files_sha256": _files_of(config.data)},
    }


def _files_of(data: DataConfig) -> str | None:
    """A checksum of the names and sizes of local files, which changes if files are added or replaced."""
    sources = [source for source in (data.source, data.validation) if source not in ("demo", "c4", None)]
    paths = [Path(name) for source in sources for name in find_files(source)[1]]
    files = [(path.name, path.stat().st_size) for path in paths]
    return sha256(json.dumps(files).encode()) if files else None


def _same(now: dict[str, Any], found: dict[str, Any], folder: Path) -> None:
    """Refuse to mix two preparations.

    Raises:
        UserError: they differ; the message has the first difference.
    """
    before = dict(_flat(found))
    for key, value in _flat(now):
        if before.get(key) != value:
            raise UserError(
                f"--output {folder}: holds data prepared with {key} {before.get(key)!r}, found {value!r}; "
                "give the same data and tokenizer, or another --output"
            )


def _flat(header: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values."""
    for key, value in header.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{inner}", content) for inner, content in value.items())
        else:
            yield key, value


@dataclass
class _Progress:
    """The finished shards, and the position at which each split continues; written after each shard.

    Attributes:
        header: see :func:`_header`.
        shards: the finished shards of each split.
        cursors: the position of each split: None before its first shard, FINISHED after its last.
    """

    header: dict[str, Any]
    shards: dict[str, list[dict[str, Any]]]
    cursors: dict[str, dict[str, int] | str | None]

    def write(self, folder: Path) -> None:
        write_atomically(folder / PROGRESS, json.dumps(asdict(self)))


def _read_progress(folder: Path) -> _Progress:
    try:
        tree = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
        header, shards, cursors = (get(tree, key, dict) for key in ("header", "shards", "cursors"))
        found = {split: shards_of(get(shards, split, list), get(header, "dtype", str)) for split in SPLITS}
        for split in SPLITS:
            if cursors.get(split) not in (None, FINISHED):
                get(cursors, split, dict)
        return _Progress(
            header,
            {split: [asdict(shard) for shard in found[split]] for split in SPLITS},
            {split: cursors.get(split) for split in SPLITS},
        )
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"--output {folder}: {PROGRESS} cannot be read: {error}; empty the directory"
        ) from None


def _write_split(
    folder: Path, split: str, corpus: Corpus, tokenizer: Tokenizer, shuffle: int, progress: _Progress
) -> None:
    """Write the missing shards of a split."""
    cursor = progress.cursors[split]
    if cursor == FINISHED:
        return
    # The order in which a validation set is read as text, so its first sequences are the same.
    lane = DocumentLane(corpus, 0, 1, EVAL_SEED, shuffle)
    if isinstance(cursor, dict):
        try:
            lane.load(cursor)
        except ValueError as error:
            raise UserError(f"--output {folder}: {PROGRESS} {error}; empty the directory") from None
    shards = progress.shards[split]
    done = sum(shard["documents"] for shard in shards)
    with tqdm(desc=split, initial=done, unit=" documents", unit_scale=True, dynamic_ncols=True) as bar:
        batches = _batches(lane, tokenizer)
        while progress.cursors[split] != FINISHED:
            shard = _write_shard(folder, f"{split}-{len(shards):05d}", batches, tokenizer, bar)
            if shard.documents:
                shards.append(asdict(shard))
            progress.cursors[split] = FINISHED if lane.cursor.epoch > 0 else lane.state()
            progress.write(folder)


def _batches(lane: DocumentLane, tokenizer: Tokenizer) -> Iterator[list[list[int]]]:
    """The token ids of one epoch's documents, in batches."""

    def documents() -> Iterator[str]:
        while True:
            text = lane.next()
            if lane.cursor.epoch > 0:
                return
            yield text

    epoch = documents()
    while batch := list(islice(epoch, BATCH)):
        yield tokenizer.encode(batch, threads=-1)


def _write_shard(
    folder: Path, name: str, batches: Iterator[list[list[int]]], tokenizer: Tokenizer, bar: Any
) -> Shard:
    """Write documents until the shard is full or there are no more."""
    dtype = dtype_for(tokenizer.vocab_size)
    paths = [folder / f"{name}.tokens", folder / f"{name}.ends"]
    count = total = 0
    with _Hashed(paths[0]) as tokens, _Hashed(paths[1]) as ends:
        for batch in batches:
            lengths = np.array([len(ids) for ids in batch])
            tokens.write(np.concatenate([np.array(ids, dtype) for ids in batch]))
            ends.write((total + lengths.cumsum()).astype(ENDS))
            count, total = count + len(batch), total + int(lengths.sum())
            bar.update(len(batch))
            bar.set_postfix_str(f"shard {name}, {total:,} tokens", refresh=False)
            if total >= SHARD_TOKENS:
                break
    written = zip(paths, (tokens, ends), strict=True)
    files = {path.name: {"bytes": file.size, "sha256": file.digest} for path, file in written}
    if not count:
        for path in paths:
            path.unlink()
    return Shard(name, count, total, files)


class _Hashed:
    """A file that is hashed while it is written, and flushed to disk when it is closed."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._hash = hashlib.sha256()
        self.size = 0

    def __enter__(self) -> _Hashed:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def write(self, values: np.ndarray) -> None:
        content = values.tobytes()
        self._file.write(content)
        self._hash.update(content)
        self.size += len(content)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock the directory against a second preparation; the lock ends with the process."""
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"--output {folder}: another process prepares data there") from None
        yield
