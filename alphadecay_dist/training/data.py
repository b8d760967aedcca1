"""Documents -> sequences -> the micro-batches of an update.

The sequences of update u are fixed by the seed and the data alone. Sequence j of a global batch of G comes
from lane j * lanes // G, and rank r of W takes the sequences from r G / W on: so the same sequences make the
same update on any number of ranks, and a rank reads the lanes of its own sequences only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alphadecay_dist.errors import UserError
from alphadecay_dist.training.corpus import Corpus, Cursor, DocumentLane
from alphadecay_dist.training.loss import IGNORE
from alphadecay_dist.training.recipe import DataConfig, TrainConfig
from alphadecay_dist.training.tokenizer import Tokenizer

EVAL_SEED = 42  # the published order of validation documents


@dataclass(frozen=True)
class Batch:
    """Sequences of one micro-batch: ``input_ids`` (b, s) and ``labels`` (b, s), int64; padding is IGNORE."""

    input_ids: Tensor
    labels: Tensor

    @property
    def targets(self) -> int:
        """Number of tokens that are predicted: all but padding and each sequence's first."""
        return int((self.labels[:, 1:] != IGNORE).sum())

    def pinned(self) -> Batch:
        """The batch in page-locked memory."""
        return Batch(self.input_ids.pin_memory(), self.labels.pin_memory())

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        return Batch(self.input_ids.to(device, non_blocking=True), self.labels.to(device, non_blocking=True))


class SequenceLane:
    """The endless token sequences of one lane: a document each, or, packed, cut from joined ones."""

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

    def next(self) -> list[int]:
        """Token ids of the next sequence: at most ``seq_len``, packed exactly so many."""
        if not self._pack:
            ids = self._read()
            ending = self._tokenizer.eos
            if len(ids) > self._seq_len and ending >= 0:
                return [*ids[: self._seq_len - 1], ending]
            return ids[: self._seq_len]
        while len(self._carry) < self._seq_len:
            self._carry += self._read()
        sequence, self._carry = self._carry[: self._seq_len], self._carry[self._seq_len :]
        return sequence

    def _read(self) -> list[int]:
        return self._tokenizer.encode([self._documents.next()])[0]

    def state(self) -> dict[str, Any]:
        """Position and tokens read but not yet handed out, as plain data."""
        return {"documents": self._documents.state(), "carry": list(self._carry)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self._documents.seek(Cursor(**state["documents"]))
        self._carry = list(state["carry"])


class TrainingData:
    """The micro-batches of one rank, update by update.

    Args:
        corpus: documents to train on.
        tokenizer: their tokenizer.
        data: packing, lanes and shuffling.
        train: batch sizes, sequence length and seed.
        rank: this rank.
        world_size: number of ranks, a divisor of the global batch.
    """

    def __init__(
        self,
        corpus: Corpus,
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
            lane: SequenceLane(
                DocumentLane(corpus, lane, data.lanes, train.seed, data.shuffle),
                tokenizer,
                train.seq_len,
                data.pack,
            )
            for lane in range(first, last + 1)
        }

    def next_update(self) -> list[Batch]:
        """This rank's micro-batches of the next update, on the CPU."""
        sequences = []
        for number, lane in self._lanes.items():
            drawn = [lane.next() for _ in range(self._per_lane)]
            start = number * self._per_lane
            sequences += [ids for j, ids in enumerate(drawn, start) if j in self._mine]
        size = self._micro_batch
        return [
            make_batch(sequences[i : i + size], self._train.seq_len, self._tokenizer.pad)
            for i in range(0, len(sequences), size)
        ]

    def check_size(self) -> None:
        """Check, without moving on, that one epoch holds a global batch.

        Raises:
            UserError: the corpus is too short for one batch.
        """
        before = self.state()
        for lane in self._lanes.values():
            drawn = 0
            while drawn < self._per_lane:
                lane.next()
                if lane.epoch > 0:
                    raise UserError(
                        f"data: the corpus is too short for one batch: found {drawn} of the {self._per_lane} "
                        f"sequences of {self._train.seq_len} tokens that each lane needs; use more text, a "
                        "smaller train.global_batch or a smaller train.seq_len"
                    )
                drawn += 1
        self.load(before)

    def state(self) -> dict[str, Any]:
        """States of this rank's lanes by lane number; the states of all ranks together are the whole."""
        return {str(number): lane.state() for number, lane in self._lanes.items()}

    def load(self, states: Mapping[str, Any]) -> None:
        """Go on from the states of all lanes, whichever ranks had them."""
        for number, lane in self._lanes.items():
            lane.load(states[str(number)])


class EvaluationData:
    """A fixed set of validation sequences, the same for any number of ranks.

    The first sequences, in a seeded order, that hold ``tokens`` tokens to predict, or all of the corpus if
    it has fewer; rank r of W takes every W-th from the r-th on.

    Raises:
        UserError: the validation corpus does not hold one sequence.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Tokenizer,
        data: DataConfig,
        train: TrainConfig,
        tokens: int,
        rank: int,
        world_size: int,
    ) -> None:
        documents = DocumentLane(corpus, 0, 1, EVAL_SEED, data.shuffle)
        lane = SequenceLane(documents, tokenizer, train.seq_len, data.pack)
        self._seq_len, self._pad = train.seq_len, tokenizer.pad
        self._size = micro_batch(train, world_size)
        self._sequences: list[Tensor] = []
        found = count = 0
        while found < tokens:
            sequence = lane.next()
            if lane.epoch > 0:
                break
            if count % world_size == rank:
                self._sequences.append(torch.tensor(sequence, dtype=torch.int32))
            found, count = found + len(sequence) - 1, count + 1
        if not count:
            raise UserError("data: the validation set does not hold one sequence; use more text")
        self._rounds = math.ceil(math.ceil(count / world_size) / self._size)

    def __iter__(self) -> Iterator[Batch]:
        """Micro-batches, as many on every rank (some may be all padding): ZeRO-3 gathers weights in each."""
        for i in range(self._rounds):
            part = self._sequences[i * self._size : (i + 1) * self._size]
            yield make_batch(part or [torch.empty(0)], self._seq_len, self._pad)


def micro_batch(train: TrainConfig, world_size: int) -> int:
    """The largest divisor of a rank's share of the global batch that is at most ``train.micro_batch``.

    Raises:
        UserError: the ranks do not divide the global batch.
    """
    if train.global_batch % world_size:
        raise UserError(
            f"train.global_batch: found {train.global_batch}, not divisible by {world_size} ranks; "
            "expected a multiple of the number of ranks"
        )
    share = train.global_batch // world_size
    return max(size for size in range(1, min(train.micro_batch, share) + 1) if share % size == 0)


def make_batch(sequences: Sequence[list[int] | Tensor], seq_len: int, pad: int) -> Batch:
    """Pad sequences at the right to (b, seq_len)."""
    input_ids = torch.full((len(sequences), seq_len), pad)
    labels = torch.full((len(sequences), seq_len), IGNORE)
    for row, ids in enumerate(sequences):
        input_ids[row, : len(ids)] = torch.as_tensor(ids, dtype=torch.int64)
        labels[row, : len(ids)] = input_ids[row, : len(ids)]
    return Batch(input_ids, labels)
