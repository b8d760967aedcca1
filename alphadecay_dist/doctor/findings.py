"""The findings of a rank, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

WITHIN, BETWEEN = "within a node", "between nodes"


@dataclass(frozen=True)
class Place:
    """Where a rank runs; known before the ranks are joined.

    Attributes:
        rank: its number in the job.
        node: name of its node, SLURM's name if there is one.
        machine: identifies the machine; nodes that share one machine have the same.
        local_rank: its number on its node, from the launcher.
        local_ranks: number of ranks on its node, from the launcher.
        device: ``cuda`` or ``cpu``.
        gpus: number of GPUs that this rank sees.
        versions: by name; all ranks must have the same.
        mistake: what is wrong with this rank's options; None if nothing is.
    """

    rank: int
    node: str
    machine: str
    local_rank: int
    local_ranks: int
    device: str
    gpus: int
    versions: Mapping[str, str | None]
    mistake: str | None = None


@dataclass(frozen=True)
class Device:
    """A rank's GPU, or its processor.

    Attributes:
        name: its model.
        identity: unique to the device; None for a processor, which ranks share.
        total: bytes of memory.
        free: bytes of free memory.
        fault: what is wrong with a matrix product that it computed; None if it is correct.
    """

    name: str
    identity: str | None
    total: int
    free: int
    fault: str | None


@dataclass(frozen=True)
class Processor:
    """The cores that a rank may use, by number, and how many threads it starts on them."""

    cores: tuple[int, ...]
    threads: int


@dataclass(frozen=True)
class Folder:
    """The output directory, as one rank sees it.

    Attributes:
        path: absolute; its nearest existing parent if it does not exist.
        fault: why it is not writable; None if it is.
        shared: whether this rank sees rank 0's file in it, and rank 0 sees this rank's.
        locked: what is wrong with flock there; None if it excludes other processes.
        free: free bytes; None if unknown.
        needed: bytes that the run's checkpoints will need in addition to the existing ones.
    """

    path: str
    fault: str | None
    shared: bool
    locked: str | None
    free: int | None
    needed: int


@dataclass(frozen=True)
class Finding:
    """All that one rank found.

    Attributes:
        place: where it runs.
        device: its GPU or processor.
        processor: its cores and threads.
        kernel: release of the operating system's kernel; may differ.
        shared_memory: free bytes in /dev/shm; None if there is no /dev/shm.
        folder: the output directory.
        clock: seconds by which its clock is ahead of rank 0's, and the uncertainty of that.
        data: why its node cannot read documents; None if it can. Only the first rank of each node tries;
            the others have None.
    """

    place: Place
    device: Device
    processor: Processor
    kernel: str
    shared_memory: int | None
    folder: Folder
    clock: tuple[float, float]
    data: str | None = None


@dataclass(frozen=True)
class Link:
    """The rate of two ranks that send to each other at the same time.

    Attributes:
        ranks: the lower one first.
        kind: ``WITHIN`` or ``BETWEEN``.
        rate: bytes per second in each direction.
    """

    ranks: tuple[int, int]
    kind: str
    rate: float


@dataclass(frozen=True)
class Limits:
    """Thresholds of warnings and problems.

    Attributes:
        link_fraction: a link below this fraction of the median is bad.
        clock_warn: clock offset in seconds above which there is a warning.
        clock_bad: clock offset in seconds above which the clock is bad.
        shared_memory: bytes in /dev/shm below which there is a warning.
        memory_taken: fraction of a GPU's memory that may be in use without a warning.
    """

    link_fraction: float = 0.5
    clock_warn: float = 1.0
    clock_bad: float = 60.0
    shared_memory: int = 2**30
    memory_taken: float = 0.1


@dataclass(frozen=True)
class Problem:
    """Something that is wrong.

    Attributes:
        bad: whether training must not begin; otherwise it is a warning.
        nodes: the nodes that have it.
        ranks: the ranks that have it.
        what: what was checked.
        found: what was found.
        expected: what was expected.
        advice: what to do.
    """

    bad: bool
    nodes: tuple[str, ...]
    ranks: tuple[int, ...]
    what: str
    found: str
    expected: str
    advice: str
