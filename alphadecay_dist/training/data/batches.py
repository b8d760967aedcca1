"""Documents -> sequences -> the micro-batches of an update.

The sequences of update u depend only on the seed and the data. Sequence j of a global batch of G comes from
lane j * lanes // G, and rank r of W takes the sequences from r G / W to (r + 1) G / W. So an update has the
same sequences on any number of ranks, and a rank reads only the lanes of its own sequences.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from alphadecay_dist.errors import UserError
from alphadecay_dist.json_fields import counted, get
from alphadecay_dist.training.batch_size import micro_batch
from alphadecay_dist.training.data.corpus import Corpus, DocumentLane, open_corpora
from alphadecay_dist.training.data.prepared import PreparedLane, PreparedSequences, Shards, open_prepared
from alphadecay_dist.training.data.tokenizer import Tokenizer
from alphadecay_dist.training.recipe import DataConfig, TrainConfig
from alphadecay_dist.training.tasks.language.loss import IGNORE

EVAL_SEED = 42  # the published order of validation documents

Source = Corpus | Shards


@dataclass(frozen=True)
class Batch:
    """Sequences of one micro-batch: ``input_ids`` (b, s) and ``labels`` (b, s), int64; padding is IGNORE.

    Of an evaluation, ``of_whole`` is the targets of the whole batch that it is cut from, over all ranks.
    """

    input_ids: Tensor
    labels: Tensor
    of_whole: int | None = None

    @property
    def targets(self) -> int:
        """Number of predicted tokens: all except padding and the first of each sequence."""
        return int((self.labels[:, 1:] != IGNORE).sum())

    def pinned(self) -> Batch:
        """The batch in page-locked memory."""
        return Batch(self.input_ids.pin_memory(), self.labels.pin_memory(), self.of_whole)

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        ids, labels = (tensor.to(device, non_blocking=True) for tensor in (self.input_ids, self.labels))
        return Batch(ids, labels, self.of_whole)

    def digests(self) -> list[str]:
        """A digest of 16 hex digits of each sequence's token ids, in order: it identifies the sequence."""
        return [
            hashlib.blake2b(ids[labels != IGNORE].numpy().tobytes(), digest_size=8).hexdigest()
            for ids, labels in zip(self.input_ids, self.labels, strict=True)
        ]


class Lane(Protocol):
    """The endless sequences of one lane."""

    @property
    def epoch(self) -> int:
        """Epoch of the last sequence that was taken, or of the last document that was read for it."""

    def take(self, count: int, wanted: range) -> list[list[int]]:
        """Move on by ``count`` sequences, and return the token ids of those whose index is in ``wanted``."""

    def state(self) -> dict[str, Any]:
        """Position, as plain data."""

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a state.

        Raises:
            ValueError: the state is not one of these data.
        """


class SequenceLane:
    """The endless token sequences of one lane: one per document, or cut from joined documents (packing)."""

    def __init__(self, documents: DocumentLane, tokenizer: Tokenizer, seq_len: int, pack: bool) -> None:
        self._documents = documents
        self._tokenizer = tokenizer
        self._seq_len = seq_len
        self._pack = pack
        self._carry: list[int] = []

    @property
    def epoch(self) -> int:
        """Epoch of the last document that was read."""
        return self._documents.cursor.epoch

    def take(self, count: int, wanted: range) -> list[list[int]]:
        """See :meth:`Lane.take`; a sequence has at most ``seq_len`` ids."""
        if self._pack:
            sequences = [self._cut_from_carry() for _ in range(count)]
            return [sequences[j] for j in range(count) if j in wanted]
        documents = [self._documents.next() for _ in range(count)]
        encoded = self._tokenizer.encode([documents[j] for j in range(count) if j in wanted])
        return [self._tokenizer.cut(ids, self._seq_len) for ids in encoded]

    def _cut_from_carry(self) -> list[int]:
        while len(self._carry) < self._seq_len:
            self._carry += self._tokenizer.encode([self._documents.next()])[0]
        sequence, self._carry = self._carry[: self._seq_len], self._carry[self._seq_len :]
        return sequence

    def state(self) -> dict[str, Any]:
        """Position, and tokens that were read but not handed out yet, as plain data."""
        return {"documents": self._documents.state(), "carry": list(self._carry)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a state.

        Raises:
            ValueError: the state is not one of these data.
        """
        carry = [counted(number, "a token") for number in get(state, "carry", list)]
        if max(carry, default=0) >= self._tokenizer.vocab_size:
            raise ValueError(f"has the token {max(carry)}, expected {self._tokenizer.vocab_size - 1} at most")
        self._documents.load(state.get("documents"))
        self._carry = carry


def open_data(config: DataConfig) -> tuple[Source, Source]:
    """The training and the validation data: prepared, or text.

    Raises:
        UserError: the data are missing or unreadable, or the hub does not answer.
    """
    return open_corpora(config) if config.prepared is None else open_prepared(config.prepared)


def open_lane(source: Source, lane: int, tokenizer: Tokenizer, data: DataConfig, train: TrainConfig) -> Lane:
    """A lane of the training data, at its start."""
    if isinstance(source, Shards):
        sequences = PreparedSequences(source, tokenizer, train.seq_len, data.pack)
        return PreparedLane(source, sequences, lane, data.lanes, train.seed)
    documents = DocumentLane(source, lane, data.lanes, train.seed, data.shuffle)
    return SequenceLane(documents, tokenizer, train.seq_len, data.pack)


class TrainingData:
    """The micro-batches of one rank, update by update.

    Args:
        source: the training data.
        tokenizer: the tokenizer of the data.
        data: packing, lanes and shuffling.
        train: batch sizes, sequence length and seed.
        rank: this rank.
        world_size: number of ranks, a divisor of the global batch.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        data: DataConfig,
        train: TrainConfig,
        rank: int,
        world_size: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._train = train
        self._micro_batch = micro_batch(train, world_size)
        share = train.global_batch // world_size
        self._mine = range(rank * share, (rank + 1) * share)
        self._per_lane = train.global_batch // data.lanes
        first, last = self._mine[0] // self._per_lane, self._mine[-1] // self._per_lane
        self._lanes = {
            lane: open_lane(source, lane, tokenizer, data, train) for lane in range(first, last + 1)
        }
        self._checked: _Drawn | None = None

    def next_update(self) -> list[Batch]:
        """This rank's micro-batches of the next update, on the CPU."""
        sequences = self._checked.sequences if self._checked else self._draw()
        self._checked = None
        size = self._micro_batch
        return [
            make_batch(sequences[i : i + size], self._train.seq_len, self._tokenizer.pad)
            for i in range(0, len(sequences), size)
        ]

    def _draw(self) -> list[list[int]]:
        """This rank's sequences of the next update."""
        sequences = []
        for number, lane in self._lanes.items():
            start = number * self._per_lane
            mine = range(max(self._mine.start - start, 0), self._mine.stop - start)
            sequences += lane.take(self._per_lane, mine)
        return sequences

    def check_size(self) -> None:
        """Check, without moving on, that one epoch contains a global batch.

        Raises:
            UserError: the corpus is too short for one batch.
        """
        if self._checked:
            return
        before = self.state()
        drawn = self._draw()
        for number, lane in self._lanes.items():
            if lane.epoch > 0:
                lane.load(before[str(number)])
                raise UserError(
                    f"data: the corpus is too short for one batch: found {_rest_of_epoch(lane)} of the "
                    f"{self._per_lane} sequences of {self._train.seq_len} tokens that each lane needs; use "
                    "more text, a smaller train.global_batch or a smaller train.seq_len"
                )
        self._checked = _Drawn(before, drawn)

    def state(self) -> dict[str, Any]:
        """States of this rank's lanes by lane number; those of all ranks together are the whole state."""
        if self._checked:
            return self._checked.before
        return {str(number): lane.state() for number, lane in self._lanes.items()}

    def load(self, states: Mapping[str, Any]) -> None:
        """Continue from the states of all lanes, whichever ranks had them.

        Raises:
            UserError: the states are those of other data.
        """
        self._checked = None
        for number, lane in self._lanes.items():
            try:
                lane.load(get(states, str(number), dict))
            except UserError:
                raise
            except ValueError as error:
                raise UserError(
                    f"data: the saved position in lane {number} {error}; give the data that the run was "
                    "begun with, or another checkpoint"
                ) from None


@dataclass(frozen=True)
class _Drawn:
    """An update that was read for a check, and the state before it; it is handed out next, not read again."""

    before: dict[str, Any]
    sequences: list[list[int]]


def _rest_of_epoch(lane: Lane) -> int:
    """Number of sequences that a lane has before the next epoch begins."""
    count = 0
    while True:
        lane.take(1, range(0))
        if lane.epoch > 0:
            return count
        count += 1


def validation_sequences(
    source: Source, tokenizer: Tokenizer, data: DataConfig, train: TrainConfig, tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first sequences, in a fixed order, that contain ``tokens`` tokens to predict; or all sequences.

    Returns:
        Their joined token ids, int32, and their lengths.

    Raises:
        UserError: the validation data do not contain one sequence.
    """
    drawn: list[np.ndarray] = []
    found = 0
    for ids in _in_order(source, tokenizer, data, train):
        drawn.append(np.array(ids, np.int32))
        found += len(ids) - 1
        if found >= tokens:
            break
    if not drawn:
        raise UserError("data: the validation set does not hold one sequence; use more text")
    return np.concatenate(drawn), np.array([len(ids) for ids in drawn])


def _in_order(
    source: Source, tokenizer: Tokenizer, data: DataConfig, train: TrainConfig
) -> Iterator[list[int]]:
    """Every validation sequence once; prepared shards were written in the order of the text."""
    if isinstance(source, Shards):
        sequences = PreparedSequences(source, tokenizer, train.seq_len, data.pack)
        yield from (sequences[number] for number in range(len(sequences)))
        return
    documents = DocumentLane(source, 0, 1, EVAL_SEED, data.shuffle)
    lane = SequenceLane(documents, tokenizer, train.seq_len, data.pack)
    while True:
        (ids,) = lane.take(1, range(1))
        if lane.epoch > 0:
            return
        yield ids


class EvaluationData:
    """The validation set of one rank: rank r of W takes every W-th sequence, starting with number r.

    It is cut into batches of ``train.global_batch`` sequences, whatever the number of ranks; the last one may
    be smaller. A rank's micro-batches are each within one of them, for their size divides its share of it.

    Args:
        drawn: the result of :func:`validation_sequences` on one rank, for all ranks.
        pad: the padding's token id.
        train: batch sizes and sequence length.
        rank: this rank.
        world_size: number of ranks.
    """

    def __init__(
        self, drawn: tuple[np.ndarray, np.ndarray], pad: int, train: TrainConfig, rank: int, world_size: int
    ) -> None:
        joined, lengths = drawn
        ends = lengths.cumsum()
        self._seq_len, self._pad = train.seq_len, pad
        self._size = micro_batch(train, world_size)
        self._sequences = [
            torch.from_numpy(joined[ends[i] - lengths[i] : ends[i]].copy())
            for i in range(rank, len(lengths), world_size)
        ]
        self._rounds = math.ceil(math.ceil(len(lengths) / world_size) / self._size)
        starts = range(0, len(lengths), train.global_batch)
        self._targets = [int((lengths[i : i + train.global_batch] - 1).clip(0).sum()) for i in starts]
        self._share = train.global_batch // world_size

    def __iter__(self) -> Iterator[Batch]:
        """Micro-batches, as many on every rank (some only padding), as ZeRO-3 gathers weights in each."""
        for i in range(self._rounds):
            part = self._sequences[i * self._size : (i + 1) * self._size]
            batch = make_batch(part or [torch.empty(0)], self._seq_len, self._pad)
            yield replace(batch, of_whole=self._targets[i * self._size // self._share])


def make_batch(sequences: Sequence[list[int] | Tensor], seq_len: int, pad: int) -> Batch:
    """Pad sequences at the right to (b, seq_len)."""
    input_ids = torch.full((len(sequences), seq_len), pad)
    labels = torch.full((len(sequences), seq_len), IGNORE)
    for row, ids in enumerate(sequences):
        input_ids[row, : len(ids)] = torch.as_tensor(ids, dtype=torch.int64)
        labels[row, : len(ids)] = input_ids[row, : len(ids)]
    return Batch(input_ids, labels)
