"""What all ranks must agree on, and hear of: whole numbers and short texts; never a weight, never a spectrum.

A rank that gives up alone leaves the others waiting for it, until the process group's timeout. So what may
fail on one rank runs inside :func:`raise_on_all_ranks`. What must be equal is compared before it is used.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

from alphadecay_dist.errors import UserError, warn

T = TypeVar("T")

_TEXT_BYTES = 1000  # of an error or a line that differs; more would be cut
_SHOWN = 300  # characters of a line that differs
_WORD = 7  # bytes of text in a whole number
_KINDS: tuple[type[Exception], ...] = (UserError, ValueError, RuntimeError)


class RankLostError(RuntimeError):
    """Another rank died, or did not come within the process group's timeout."""


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
def raise_on_all_ranks(group: dist.ProcessGroup | None) -> Iterator[None]:
    """Work of this rank alone; where it fails on a rank, all raise what the first such did. Collective.

    No collective may be called inside.
    """
    fault: Exception | None = None
    try:
        yield
    except RankLostError:
        raise
    except Exception as error:
        fault = error
    faulty = [rank for rank, (failed,) in enumerate(all_gather_ints([fault is not None], group)) if failed]
    if not faulty:
        return
    kind = next((kind for kind in _KINDS if isinstance(fault, kind)), RuntimeError)
    text = str(fault) if isinstance(fault, _KINDS) else f"{type(fault).__name__}: {fault}"
    first = faulty[0]
    found, kinds = _texts(text, group)[first], all_gather_ints([_KINDS.index(kind)], group)
    if fault is not None and text.startswith(found):
        raise fault
    raise _KINDS[kinds[first][0]](f"rank {first}: {found}") from fault


def all_gather_checked(
    facts: Callable[[], Sequence[int]], group: dist.ProcessGroup | None
) -> list[list[int]]:
    """Whole numbers that each rank works out for itself, by rank. Collective.

    Raises:
        Exception: ``facts`` failed on a rank, see :func:`raise_on_all_ranks`.
        RuntimeError: the ranks have different numbers of them.
    """
    with raise_on_all_ranks(group):
        mine = facts()
    counts = [count for (count,) in all_gather_ints([len(mine)], group)]
    other = next((rank for rank, count in enumerate(counts) if count != counts[0]), None)
    if other is not None:
        raise RuntimeError(
            f"layout of the weights: rank 0 has {counts[0]} numbers to tell, rank {other} {counts[other]}, "
            "expected as many; build the same model with the same sharding on every rank"
        )
    return all_gather_ints(mine, group) if counts[0] else [[] for _ in counts]


def require_equal(
    what: str,
    lines: Sequence[str],
    group: dist.ProcessGroup | None,
    advice: str,
    *,
    kind: type[Exception] = RuntimeError,
    details: Callable[[int], Sequence[str]] | None = None,
) -> None:
    """Compare lines across ranks. Collective; nothing but a hash a rank moves where they are equal.

    Args:
        what: in words, what differs where they do.
        lines: this rank's.
        group: the ranks.
        advice: what to do then.
        kind: of the error.
        details: the lines that stand behind a line, by its place.

    Raises:
        Exception: ``kind``, with the first difference, the same text on every rank.
    """
    difference = first_difference(lines, group, details)
    if difference is not None:
        raise kind(f"{what}: {difference}; {advice}")


def first_difference(
    lines: Sequence[str],
    group: dist.ProcessGroup | None,
    details: Callable[[int], Sequence[str]] | None = None,
) -> str | None:
    """Where the ranks' lines first differ: what rank 0 has, and the first rank that has another. Collective.

    Args:
        lines: this rank's.
        group: the ranks.
        details: see :func:`require_equal`.

    Returns:
        None where all are equal; else the same text on every rank.
    """
    prefixes = _prefix_hashes(lines)
    rows = all_gather_ints([len(lines), prefixes[-1]], group)
    if all(row == rows[0] for row in rows):
        return None
    shortest = min(count for count, _ in rows)
    place = _first_place(prefixes.__getitem__, shortest, range(len(rows)), group)
    if details is not None:
        return first_difference(details(place) if place < len(lines) else [], group)
    line = lines[place] if place < len(lines) else "nothing more"
    hashes = [own for (own,) in all_gather_ints([_hash(line)], group)]
    other = next(rank for rank, own in enumerate(hashes) if own != hashes[0])
    lengths = [length for (length,) in all_gather_ints([len(line)], group)]
    least = min(lengths[0], lengths[other])
    at = _first_place(lambda count: _hash(line[:count]), least, (0, other), group)
    texts = _texts(_window(line, at), group)
    return f"rank 0 has {texts[0]!r}, rank {other} {texts[other]!r}"


def _first_place(
    prefix: Callable[[int], int], most: int, ranks: Sequence[int], group: dist.ProcessGroup | None
) -> int:
    """The first of ``most`` places at which the given ranks differ, or ``most``: by bisection. Collective.

    Args:
        prefix: the hash of all that stands before a place; asked for within ``most`` alone.
        most: places that all these ranks have.
        ranks: whose prefixes count.
        group: all ranks, which must take part.
    """
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        row = all_gather_ints([prefix(min(middle + 1, most))], group)
        if len({row[rank][0] for rank in ranks}) == 1:
            low = middle + 1
        else:
            high = middle
    return low


def _window(line: str, at: int) -> str:
    """A line, or of a long one its beginning and what stands around a place."""
    if len(line) <= _SHOWN:
        return line
    start = max(at - _SHOWN // 6, 0)
    if start <= _SHOWN // 3:
        return line[:_SHOWN]
    return f"{line[: _SHOWN // 3]} ... {line[start : start + 2 * _SHOWN // 3]}"


def _prefix_hashes(lines: Sequence[str]) -> list[int]:
    """Hashes of the first 0, 1, ... all lines."""
    state = hashlib.sha256()
    hashes = [_number(state.digest())]
    for line in lines:
        state.update(line.encode() + b"\n")
        hashes.append(_number(state.digest()))
    return hashes


def _hash(text: str) -> int:
    return _number(hashlib.sha256(text.encode()).digest())


def _number(digest: bytes) -> int:
    return int.from_bytes(digest[:_WORD], "big")


def _texts(mine: str, group: dist.ProcessGroup | None) -> list[str]:
    """A text of every rank, cut to what may travel."""
    data = mine.encode(errors="replace")[:_TEXT_BYTES].ljust(_TEXT_BYTES, b"\0")
    words = [int.from_bytes(data[at : at + _WORD], "big") for at in range(0, _TEXT_BYTES, _WORD)]
    sizes = [min(_WORD, _TEXT_BYTES - at) for at in range(0, _TEXT_BYTES, _WORD)]
    return [
        b"".join(word.to_bytes(size, "big") for word, size in zip(row, sizes, strict=True))
        .rstrip(b"\0")
        .decode(errors="ignore")
        for row in all_gather_ints(words, group)
    ]


@contextlib.contextmanager
def drain_on_error(matrices: Iterator[T]) -> Iterator[Iterator[T]]:
    """What fails in the work on exchanged matrices is a warning, and the exchange goes on to its end.

    The other ranks wait for this one's part in it; what it did not analyse has failed.

    Args:
        matrices: collective to run through.
    """
    try:
        yield matrices
    except RankLostError:
        raise
    except Exception as error:
        warn(f"the spectra of this rank failed: {type(error).__name__}: {error}")
        collections.deque(matrices, maxlen=0)


def all_gather_ints(mine: Sequence[int], group: dist.ProcessGroup | None) -> list[list[int]]:
    """What every rank gave, by rank: as many whole numbers each. Collective."""
    world_size = dist.get_world_size(group) if group else 1
    own = torch.tensor(mine, dtype=torch.int64, device="cpu").unsqueeze(0)
    if world_size == 1:
        return own.tolist()
    device = collective_device(group)
    everyone = torch.empty(world_size, len(mine), dtype=torch.int64, device=device)
    with translate_rank_loss("what other ranks had to say"):
        dist.all_gather_into_tensor(everyone, own.to(device), group=group)
        return everyone.tolist()


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
