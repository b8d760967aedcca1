from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alphadecay_dist.training.batch_size import micro_batch
from alphadecay_dist.training.fingerprint import Marks
from alphadecay_dist.training.process.ranks import Ranks
from alphadecay_dist.training.recipe import Config
from alphadecay_dist.training.tasks.data import Data, Loaders, Previous

VALIDATION = -1_000_000  # number of the first sample of the validation set


@dataclass(frozen=True)
class Pairs:
    """Questions (b, n) and answers (b, n), fp32."""

    questions: Tensor
    answers: Tensor

    @property
    def targets(self) -> int:
        return len(self.questions)

    def pinned(self) -> Pairs:
        return Pairs(self.questions.pin_memory(), self.answers.pin_memory())

    def to(self, device: torch.device) -> Pairs:
        return Pairs(self.questions.to(device), self.answers.to(device))

    def digests(self) -> list[str]:
        return [hashlib.sha256(row.numpy().tobytes()).hexdigest()[:16] for row in self.questions]


def pairs_of(numbers: Iterable[int], width: int, config: Config) -> Pairs:
    """The samples of these numbers."""
    truth = torch.randn(width, width, generator=torch.Generator().manual_seed(7)) / width**0.5
    questions, errors = [], []
    for number in numbers:
        generator = torch.Generator().manual_seed(config.train.seed * 10**9 + number + 10**7)
        questions.append(torch.randn(width, generator=generator))
        errors.append(config.task.noise * torch.randn(width, generator=generator))
    asked = torch.stack(questions) if questions else torch.empty(0, width)
    return Pairs(asked, asked @ truth.T + (torch.stack(errors) if errors else 0))


class Drawn:
    """The training data of one rank."""

    def __init__(self, config: Config, width: int, rank: int, world_size: int) -> None:
        self._config, self._width = config, width
        self._share = config.train.global_batch // world_size
        self._size = micro_batch(config.train, world_size)
        self._first, self._next = rank * self._share, 0

    def next_update(self) -> list[Pairs]:
        start = self._next + self._first
        self._next += self._config.train.global_batch
        starts = range(start, start + self._share, self._size)
        return [pairs_of(range(i, i + self._size), self._width, self._config) for i in starts]

    def state(self) -> dict[str, dict[str, Any]]:
        return {"numbers": {"next": self._next}}

    def load(self, states: Mapping[str, Any]) -> None:
        self._next = states["numbers"]["next"]


class Numbers(Data, Loaders):
    """Numbers need no files: what is opened can be read at once."""

    def __init__(self, config: Config, width: int) -> None:
        self._config, self._width = config, width

    def marks(self) -> dict[str, Marks]:
        return {}

    def fault(self) -> str | None:
        return None

    def loaders(self, ranks: Ranks, previous: Previous | None) -> Numbers:
        return self

    @property
    def files(self) -> Mapping[str, bytes]:
        return {"width.txt": str(self._width).encode()}

    def training(self, rank: int, world_size: int, states: Mapping[str, Any] | None) -> Drawn:
        drawn = Drawn(self._config, self._width, rank, world_size)
        if states is not None:
            drawn.load(states)
        return drawn

    def evaluation(self, ranks: Ranks) -> list[Pairs]:
        size = self._config.train.global_batch // (1 if self._config.task.whole else 2)
        mine = range(VALIDATION + ranks.rank, VALIDATION + size, ranks.world_size)
        return [pairs_of(mine, self._width, self._config)]

    def describe(self, update: Sequence[Any]) -> list[str]:
        return [f"first answer: {update[0].answers[0, 0]:.3f}"]
