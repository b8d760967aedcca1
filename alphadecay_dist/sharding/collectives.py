"""What all ranks must agree on, and hear of: plain data, texts and errors; never a weight, never a spectrum.

A rank that gives up alone leaves the others waiting for it, until the process group's timeout. So what may
fail on one rank runs inside :meth:`Collectives.raise_on_all_ranks`. What must be equal is compared before it
is used.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from alphadecay_dist.errors import LONGEST, RunError, UserError, warn

T = TypeVar("T")

_PLAIN_DATA = "what other ranks had to say"
_SHOWN = 300  # characters of a line that differs
_KINDS: tuple[type[Exception], ...] = (UserError, RunError, ValueError, RuntimeError)  # kept on all ranks


class RankLostError(RuntimeError):
    """Another rank died, or did not come within the process group's timeout."""


class Collectives:
    """The ranks of a process group, as they tell each other plain data; its methods are collective.

    All ranks must call the same methods in the same order, whatever they find. All else is made of
    :meth:`gather`, :meth:`broadcast`, :meth:`sum_on_device` and :meth:`add_up`.

    Args:
        group: the ranks; None is this process alone.
        device: where sums are made; None is where the group's collectives take tensors from.

    Attributes:
        group: as given.
        rank: this one's number in the group.
        world_size: number of ranks.
    """

    def __init__(self, group: dist.ProcessGroup | None, device: torch.device | None = None) -> None:
        self.group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        self.world_size = 1 if group is None else dist.get_world_size(group)
        self._device = device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the one that writes files and prints. Not collective."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Plain data of every rank, on every rank, by rank."""
        everyone: list[Any] = [value] * self.world_size
        if self.world_size > 1:
            with translate_rank_loss(_PLAIN_DATA):
                dist.all_gather_object(everyone, value, group=self.group)
        return everyone

    def all_gather_checked(self, mine: Sequence[int]) -> list[list[int]]:
        """Whole numbers that each rank worked out for itself, by rank.

        Raises:
            RuntimeError: the ranks have different numbers of them; on every rank.
        """
        everyone = self.gather(list(mine))
        counts = [len(row) for row in everyone]
        other = next((rank for rank, count in enumerate(counts) if count != counts[0]), None)
        if other is not None:
            raise RuntimeError(
                f"layout of the weights: rank 0 has {counts[0]} numbers to tell, rank {other} "
                f"{counts[other]}, expected as many; build the same model with the same sharding on every "
                "rank"
            )
        return everyone

    def broadcast(self, value: T | None) -> T:
        """What rank 0 gives, on every rank; what the others give is not looked at."""
        shared: list[Any] = [value]
        if self.world_size > 1:
            with translate_rank_loss(_PLAIN_DATA):
                dist.broadcast_object_list(shared, group=self.group, group_src=0)
        return shared[0]

    def from_main(self, work: Callable[[], T]) -> T:
        """Run ``work`` on rank 0 alone and give its result to all; see :meth:`raise_on_all_ranks`."""
        with self.raise_on_all_ranks():
            found = work() if self.is_main else None
        return self.broadcast(found)

    def sum(self, *values: float | torch.Tensor) -> list[float]:
        """Each value summed over all ranks, in fp64."""
        return self.sum_on_device(*values).tolist()

    def sum_on_device(self, *values: float | torch.Tensor) -> torch.Tensor:
        """Each value summed over all ranks, fp64 on the device of the sums: nobody waits for it."""
        device = self._device or collective_device(self.group)
        if any(isinstance(value, torch.Tensor) for value in values):
            mine = torch.stack([torch.as_tensor(v, dtype=torch.float64, device=device) for v in values])
        else:
            mine = torch.tensor(values, dtype=torch.float64, device=device)  # in one copy
        if self.group is not None:
            with translate_rank_loss("sums over all ranks"):
                dist.all_reduce(mine, group=self.group)
        return mine

    def add_up(self, mine: torch.Tensor) -> torch.Tensor:
        """A tensor of numbers summed over all ranks, element by element; of its shape, where it lies."""
        total = mine.to(self._device or collective_device(self.group), copy=True)
        if self.group is not None:
            with translate_rank_loss("sums over all ranks"):
                dist.all_reduce(total, group=self.group)
        return total.to(mine.device)

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.sum(0.0)

    @contextlib.contextmanager
    def raise_on_all_ranks(self) -> Iterator[None]:
        """Work of this rank alone; where it fails on a rank, all raise what the lowest such rank did.

        No collective may be called inside. A rank that failed in the same words raises its own error;
        another one that failed has its own as the cause.

        Raises:
            UserError: or RunError, ValueError, RuntimeError, as the lowest rank did, which is named.
            RuntimeError: it was another error, whose type is named too.
        """
        fault: Exception | None = None
        try:
            yield
        except RankLostError:  # the others are waiting for that rank too
            raise
        except Exception as error:
            fault = error
        mine = None if fault is None else _as_report(fault)
        faults = [(rank, found) for rank, found in enumerate(self.gather(mine)) if found is not None]
        if not faults:
            return
        first, report = faults[0]
        if fault is not None and mine == report:
            raise fault
        kind, text = report
        raise kind(f"rank {first}: {text}") from fault

    def require_equal(
        self,
        what: str,
        lines: Sequence[str],
        advice: str,
        *,
        kind: type[Exception] = RuntimeError,
        details: Callable[[int], Sequence[str]] | None = None,
    ) -> None:
        """Compare lines across ranks; nothing but a hash a rank moves where they are equal.

        Args:
            what: in words, what differs where they do.
            lines: this rank's.
            advice: what to do then.
            kind: of the error.
            details: the lines that stand behind a line, by its place.

        Raises:
            Exception: ``kind``, with the first difference, the same text on every rank.
        """
        difference = self._difference(lines, details)
        if difference is not None:
            raise kind(f"{what}: {difference}; {advice}")

    def _difference(self, lines: Sequence[str], details: Callable[[int], Sequence[str]] | None) -> str | None:
        """What rank 0 has where lines first differ, and the lowest rank that has another there.

        Returns:
            None where all are equal; else the same text on every rank.
        """
        if len(set(self.gather(_digest(lines)))) == 1:
            return None
        of_main = self.broadcast(list(lines))
        own = _first_difference(of_main, lines)
        mine = None if own is None else (own, self.rank, _both_at(own, of_main, lines, self.rank))
        place, _, text = min(found for found in self.gather(mine) if found is not None)
        if details is None:
            return text
        with self.raise_on_all_ranks():
            behind = details(place) if place < len(lines) else []
        return self._difference(behind, None) or text


@contextlib.contextmanager
def translate_rank_loss(what: str) -> Iterator[None]:
    """A collective; where it fails, say what did not arrive and why that may be.

    Raises:
        RankLostError: in place of the backend's error.
    """
    try:
        yield
    except RuntimeError as error:
        raise RankLostError(
            f"{what} did not arrive: another rank died, or did not come within the process group's timeout "
            f"({' '.join(str(error).split())[:200]}); look at its output"
        ) from None


@contextlib.contextmanager
def drain_on_error(matrices: Iterator[T]) -> Iterator[Iterator[T]]:
    """What fails in the work on exchanged matrices is a warning, and the exchange goes on to its end.

    The other ranks wait for this one's part in it; what it did not analyse has failed.

    Args:
        matrices: collective to run through.

    Raises:
        RunError: of the exchange, which raises it on all ranks.
    """
    try:
        yield matrices
    except (RankLostError, RunError):
        raise
    except Exception as error:
        warn(f"the spectra of this rank failed: {type(error).__name__}: {error}")
        collections.deque(matrices, maxlen=0)


def collective_device(group: dist.ProcessGroup | None, stored: str = "cpu") -> torch.device:
    """Where tensors must lie for the group's collectives.

    Args:
        group: it may have a backend for each type of device, such as ``cpu:gloo,cuda:nccl``.
        stored: the type of device where what is to be sent lies.

    Returns:
        The current GPU where the group serves nothing else, and for what lies on GPUs where NCCL serves
        these; else the CPU.
    """
    if group is None:
        return torch.device("cpu")
    backends = dict(part.split(":") for part in dist.get_backend_config(group).split(","))
    on_gpu = backends.get("cuda") == dist.Backend.NCCL
    if on_gpu and (stored == "cuda" or "cpu" not in backends):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _as_report(fault: Exception) -> tuple[type[Exception], str]:
    """An error in a form that travels: its kind, of those that are kept, and its text."""
    kind = next((kind for kind in _KINDS if isinstance(fault, kind)), None)
    if kind is None:
        return RuntimeError, f"{type(fault).__name__}: {fault}"[:LONGEST]
    return kind, str(fault)[:LONGEST]


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256(repr(list(lines)).encode()).hexdigest()


def _first_difference(left: Sequence[str], right: Sequence[str]) -> int | None:
    """The first place, of a line or of a character, at which two differ; None where they are equal."""
    pairs = enumerate(itertools.zip_longest(left, right))
    return next((place for place, (one, other) in pairs if one != other), None)


def _both_at(place: int, of_main: Sequence[str], own: Sequence[str], rank: int) -> str:
    """What rank 0 and a rank have at a place, as messages show it."""
    here, there = (lines[place] if place < len(lines) else "nothing more" for lines in (of_main, own))
    at = _first_difference(here, there) or 0
    return f"rank 0 has {_window(here, at)!r}, rank {rank} {_window(there, at)!r}"


def _window(line: str, at: int) -> str:
    """A line, or of a long one its beginning and what stands around a place."""
    if len(line) <= _SHOWN:
        return line
    start = max(at - _SHOWN // 6, 0)
    if start <= _SHOWN // 3:
        return line[:_SHOWN]
    return f"{line[: _SHOWN // 3]} ... {line[start : start + 2 * _SHOWN // 3]}"
