"""What a rank finds, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

WITHIN, BETWEEN = "within a node", "between nodes"


@dataclass(frozen=True)
class Place:
    """Where a rank runs; known before the ranks are joined.

    Attributes:
        rank: in the job.
        node: its name, SLURM's where there is one.
        machine: equal for all nodes that are one machine in truth.
        local_rank: on its node, as the launcher says.
        local_ranks: on its node, as the launcher says.
        device: ``cuda`` or ``cpu``.
        gpus: that this rank sees.
        versions: by name; all ranks must have the same.
        mistake: what is wrong with what this rank was given; None where nothing is.
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
        identity: no other device has it; None for a processor, which ranks share.
        total: bytes of memory.
        free: bytes of memory.
        fault: what is wrong with a product of matrices that it made; None where it is right.
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
        path: absolute; the nearest one above that exists.
        fault: why it cannot be written to; None where it can.
        shared: whether this rank sees rank 0's file in it, and rank 0 this rank's.
        locked: what is wrong with flock there; None where it keeps others out.
        free: bytes; None where that is not known.
        needed: bytes that the run's checkpoints will take beside those that are there.
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
        device: what computes.
        processor: its cores.
        kernel: of the operating system; may differ.
        shared_memory: free bytes in /dev/shm; None where there is none.
        folder: the output directory.
        clock: seconds by which its clock is before rank 0's, and how exactly that is known.
        data: why documents cannot be read from its node; None where they can, and on all but a node's first
            rank, which alone tries.
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
    """What two ranks reached when each sent to the other at once.

    Attributes:
        ranks: the lower one first.
        kind: ``WITHIN`` or ``BETWEEN``.
        rate: bytes a second in each direction.
    """

    ranks: tuple[int, int]
    kind: str
    rate: float


@dataclass(frozen=True)
class Limits:
    """From where on something is wrong.

    Attributes:
        link_fraction: a link below this part of the median is bad.
        clock_warn: seconds of offset that are told.
        clock_bad: seconds of offset that are bad.
        shared_memory: bytes in /dev/shm below which there is a warning.
        memory_taken: part of a GPU's memory that others may hold already without a warning.
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
        bad: whether training must not begin; else it is a warning.
        nodes: that have it.
        ranks: that have it.
        what: was looked at.
        found: there.
        expected: in its place.
        advice: what to do.
    """

    bad: bool
    nodes: tuple[str, ...]
    ranks: tuple[int, ...]
    what: str
    found: str
    expected: str
    advice: str
