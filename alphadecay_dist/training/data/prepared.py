"""A corpus that was tokenized in advance: shards of token ids, read by number.

On disk (written by prepare.py) a split is a list of shards of whole documents. Each shard is two files of
little-endian numbers: ``NAME.tokens`` has the joined ids of the documents (uint16, or uint32 for more than
65536 pieces), and ``NAME.ends`` the end of each document in them (uint64). Nothing in them depends on
train.seq_len, data.pack, data.lanes or train.seed: sequence i is computed, and so is a lane's next sequence.
"""

from __future__ import annotations

import functools
import hashlib
import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from alphadecay_dist.errors import UserError, shown
from alphadecay_dist.files import leads_out, size_of
from alphadecay_dist.json_fields import count, get, items
from alphadecay_dist.training.data.permutation import Permutation
from alphadecay_dist.training.data.tokenizer import Tokenizer
from alphadecay_dist.training.data.tokenizer_files import TRAIN, is_local, kept_at, kept_in, load_tokenizer
from alphadecay_dist.training.recipe import TokenizerConfig

MANIFEST = "manifest.json"
FORMAT = 1
SPLITS = ("train", "validation")
DTYPES = ("<u2", "<u4")
ENDS = "<u8"
OPEN_FILES = 256  # a mapping keeps its file open; many systems allow a process 1024
BLOCK = 1 << 20  # bytes that are hashed at a time


@dataclass(frozen=True)
class Shard:
    """Some documents of a split.

    Attributes:
        name: name of its files, without suffix.
        documents: number of documents.
        tokens: number of tokens in all of them.
        files: size in ``bytes`` and ``sha256`` of each file, by file name.
    """

    name: str
    documents: int
    tokens: int
    files: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Manifest:
    """Describes a complete prepared corpus; written last.

    Attributes:
        format: version of this layout.
        dtype: type of the token ids.
        tokenizer: ``model`` and ``vocabulary`` from the recipe, ``pieces`` and ``sha256`` (its
            fingerprint) as found.
        source: where the documents came from: the recipe's data section.
        train: shards of the training split.
        validation: shards of the validation split.
    """

    format: int
    dtype: str
    tokenizer: dict[str, Any]
    source: dict[str, Any]
    train: tuple[Shard, ...]
    validation: tuple[Shard, ...]

    def shards(self, split: str) -> tuple[Shard, ...]:
        """The shards of ``train`` or ``validation``."""
        return self.train if split == "train" else self.validation


def dtype_for(pieces: int) -> str:
    """The smallest type that can represent every token id."""
    return DTYPES[pieces > 1 << 16]


def read_manifest(folder: Path) -> Manifest:
    """Read a manifest and check that its files exist with their full sizes.

    Raises:
        UserError: the directory has no complete prepared corpus.
    """
    path = folder / MANIFEST
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        if get(tree, "format", int) != FORMAT:
            raise UserError(f"data.prepared {folder}: format {tree['format']}, expected {FORMAT}")
        manifest = _manifest(tree)
    except FileNotFoundError:
        raise UserError(
            f"data.prepared {folder}: has no {MANIFEST}: no prepared corpus, or not finished; "
            f"run alphadecay data prepare --output {folder} (again)"
        ) from None
    except UserError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"data.prepared {folder}: {MANIFEST} cannot be read: {reason}") from None
    for name, file in _files(manifest).items():
        if leads_out(folder, name):
            raise UserError(f"data.prepared {folder}: {name} leads out of it; put the file itself there")
        found = size_of(folder / name)
        if found != file["bytes"]:
            raise UserError(
                f"data.prepared {folder}: {name} has {found or 'no'} bytes, expected {file['bytes']}; "
                "prepare it again"
            )
    return manifest


def _manifest(tree: dict[str, Any]) -> Manifest:
    tokenizer = get(tree, "tokenizer", dict)
    for key, kind in (("model", str), ("vocabulary", int), ("pieces", int), ("sha256", str)):
        get(tokenizer, key, kind)
    dtype = get(tree, "dtype", str)
    train, validation = (shards_of(get(tree, split, list), dtype) for split in SPLITS)
    return Manifest(FORMAT, dtype, tokenizer, get(tree, "source", dict), train, validation)


def shards_of(trees: Sequence[Any], dtype: str) -> tuple[Shard, ...]:
    """Shards from plain data; their files must be in the directory, with sizes that agree with their counts.

    Raises:
        ValueError: they are elsewhere, or have other sizes.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {shown(dtype)}")
    return tuple(_shard(tree, np.dtype(dtype).itemsize) for tree in trees)


def _shard(tree: Any, token_bytes: int) -> Shard:
    name, files = get(tree, "name", str), dict(items(tree, "files", dict))
    shard = Shard(name, count(tree, "documents"), count(tree, "tokens"), files)
    sizes = {
        f"{name}.tokens": shard.tokens * token_bytes,
        f"{name}.ends": shard.documents * np.dtype(ENDS).itemsize,
    }
    found = {file: count(about, "bytes") for file, about in files.items()}
    if Path(name).name != name or found != sizes:
        raise ValueError(f"shard {shown(name)} has files of {found} bytes, expected {sizes}")
    for about in files.values():
        get(about, "sha256", str)
    return shard


def verify(folder: Path) -> Manifest:
    """Read all of a prepared corpus and compare its checksums.

    Raises:
        UserError: a file has changed since it was written.
    """
    manifest = read_manifest(folder)
    for name, file in _files(manifest).items():
        if _sha256(folder / name) != file["sha256"]:
            raise UserError(f"data.prepared {folder}: {name} was changed (sha256); prepare it again")
    open_prepared(str(folder))
    return manifest


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _files(manifest: Manifest) -> dict[str, dict[str, Any]]:
    return {
        name: file
        for split in SPLITS
        for shard in manifest.shards(split)
        for name, file in shard.files.items()
    }


class Shards:
    """The documents of one split, by number, and their joined tokens, by position."""

    def __init__(self, folder: Path, manifest: Manifest, split: str, tokenizer: Tokenizer) -> None:
        self.folder = folder
        self.manifest = manifest
        self.tokenizer = tokenizer
        self.shards = manifest.shards(split)
        self._documents = [0, *accumulate(shard.documents for shard in self.shards)]
        self._tokens = [0, *accumulate(shard.tokens for shard in self.shards)]

    @property
    def documents(self) -> int:
        """Number of documents."""
        return self._documents[-1]

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return self._tokens[-1]

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that identify the split; equal if the same split is prepared again."""
        content = [self.manifest.tokenizer["sha256"], *(asdict(shard) for shard in self.shards)]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def document(self, number: int) -> np.ndarray:
        """Token ids of a document."""
        shard = bisect_right(self._documents, number) - 1
        row = number - self._documents[shard]
        ends = self._map(shard, "ends", ENDS)
        return self._map(shard, "tokens", self.manifest.dtype)[ends[row - 1] if row else 0 : ends[row]]

    def joined(self, start: int, stop: int) -> np.ndarray:
        """The tokens from ``start`` to ``stop`` of all documents joined."""
        first, last = bisect_right(self._tokens, start) - 1, bisect_right(self._tokens, stop - 1) - 1
        parts = []
        for shard in range(first, last + 1):
            offset = self._tokens[shard]
            tokens = self._map(shard, "tokens", self.manifest.dtype)
            parts.append(tokens[max(start - offset, 0) : stop - offset])
        return np.concatenate(parts)

    def _map(self, shard: int, suffix: str, dtype: str) -> np.ndarray:
        return _mapped(str(self.folder / f"{self.shards[shard].name}.{suffix}"), dtype)


@functools.lru_cache(maxsize=OPEN_FILES)
def _mapped(path: str, dtype: str) -> np.ndarray:
    return np.memmap(path, dtype, mode="r")


def open_prepared(folder: str) -> tuple[Shards, Shards]:
    """The training and the validation split of a prepared corpus.

    Raises:
        UserError: the corpus is not complete, or its tokenizer was changed.
    """
    path = Path(folder)
    manifest = read_manifest(path)
    tokenizer = kept_tokenizer(path, manifest.tokenizer["sha256"])
    if tokenizer.fingerprint != manifest.tokenizer["sha256"]:
        raise UserError(
            f"data.prepared {folder}: its tokenizer is not the one that it was made with; prepare it again"
        )
    train, validation = (Shards(path, manifest, split, tokenizer) for split in SPLITS)
    return train, validation


def kept_tokenizer(folder: Path, fingerprint: str | None = None) -> Tokenizer:
    """The tokenizer that is stored with the shards.

    Raises:
        UserError: it is missing, or cannot be read.
    """
    try:
        tokenizer = kept_in(folder, fingerprint)
    except UserError as error:
        raise UserError(
            f"data.prepared {folder}: its tokenizer is not the one that it was made with ({error}); prepare "
            "it again"
        ) from None
    if tokenizer is None:
        raise UserError(f"data.prepared {folder}: its tokenizer is missing; prepare it again")
    return tokenizer


def sha256(content: bytes) -> str:
    """The SHA-256 of some bytes, in hex."""
    return hashlib.sha256(content).hexdigest()


def check_tokenizer(manifest: Manifest, folder: Path, config: TokenizerConfig, vocabulary: int) -> None:
    """Refuse a recipe with a tokenizer other than the one that the corpus was prepared with.

    Args:
        manifest: the manifest of the prepared corpus.
        folder: its directory.
        config: the recipe's tokenizer.
        vocabulary: vocabulary size of the recipe's model, for which "train" trains.

    Raises:
        UserError: the tokenizers differ.
    """
    made = manifest.tokenizer
    hint = f"prepare it again, or give --tokenizer.model={kept_at(folder)}"
    if config.model != TRAIN and is_local(config.model):
        if load_tokenizer(config.model).fingerprint != made["sha256"]:
            raise UserError(
                f"tokenizer.model {config.model}: is not the one that {folder} was prepared with; {hint}"
            )
    elif config.model != made["model"]:
        raise UserError(
            f"tokenizer.model: found {config.model!r}, {folder} was prepared with {made['model']!r}; {hint}"
        )
    elif config.model == TRAIN and vocabulary != made["vocabulary"]:
        raise UserError(
            f"tokenizer.model train: the model's vocabulary is {vocabulary}, {folder} was prepared with a "
            f"tokenizer trained for {made['vocabulary']}; {hint}"
        )


class PreparedSequences:
    """The sequences of a split, by number: one per document, or with packing cut from joined documents."""

    def __init__(self, shards: Shards, tokenizer: Tokenizer, seq_len: int, pack: bool) -> None:
        self._shards = shards
        self._tokenizer = tokenizer
        self._seq_len = seq_len
        self._pack = pack

    def __len__(self) -> int:
        """Number of sequences; with packing, a last sequence that is not full is left out."""
        return self._shards.tokens // self._seq_len if self._pack else self._shards.documents

    def __getitem__(self, number: int) -> list[int]:
        """Token ids of a sequence."""
        if self._pack:
            return self._shards.joined(number * self._seq_len, (number + 1) * self._seq_len).tolist()
        return self._tokenizer.cut(self._shards.document(number).tolist(), self._seq_len)


class PreparedLane:
    """The endless sequences of one lane: every ``lanes``-th of each epoch's permutation.

    Its state is the number of sequences taken: sequence j of epoch e is at place j * lanes + lane of the
    permutation that is given by seed and e.

    Raises:
        UserError: there is no sequence for the lane.
    """

    def __init__(
        self, shards: Shards, sequences: PreparedSequences, lane: int, lanes: int, seed: int
    ) -> None:
        self._shards = shards
        self._sequences = sequences
        self._lane = lane
        self._lanes = lanes
        self._seed = seed
        self._taken = 0
        self._count = (len(sequences) - lane + lanes - 1) // lanes
        if self._count < 1:
            raise UserError(
                f"data.prepared {shards.folder}: has {len(sequences)} sequences for {lanes} lanes; "
                "use more documents or fewer data.lanes"
            )
        self._order = functools.lru_cache(maxsize=2)(self._permutation)

    @property
    def epoch(self) -> int:
        """Epoch of the last sequence that was taken."""
        return max(self._taken - 1, 0) // self._count

    def take(self, count: int, wanted: range) -> list[list[int]]:
        """Move on by ``count`` sequences, and return the token ids of those whose index is in ``wanted``."""
        begin = self._taken
        self._taken += count
        return [self._sequences[self.number(begin + j)] for j in range(count) if j in wanted]

    def number(self, place: int) -> int:
        """The number, in the split, of the lane's sequence at a place, which is counted over all epochs."""
        epoch, place = divmod(place, self._count)
        return self._order(epoch)[place * self._lanes + self._lane]

    def _permutation(self, epoch: int) -> Permutation:
        return Permutation(len(self._sequences), f"{self._seed} {epoch}")

    def state(self) -> dict[str, Any]:
        """The number of sequences taken, and the fingerprint of the data, as plain data."""
        return {"taken": self._taken, "prepared": self._shards.fingerprint}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a state.

        Raises:
            UserError: the state is that of other data.
            ValueError: it is not a valid state.
        """
        if state.get("prepared") != self._shards.fingerprint:
            raise UserError(
                f"data.prepared {self._shards.folder}: is not what the run was begun with; give it the same "
                "data, or start a new run with --resume none and another --output_dir"
            )
        self._taken = count(state, "taken")
