"""Findings of all ranks -> what is wrong, and on which nodes. Pure, so equal on every rank."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

from alphadecay_dist.doctor.findings import Finding, Limits, Place, Problem

K = TypeVar("K", bound=Hashable)


def judge_places(places: Sequence[Place]) -> list[Problem]:
    """Problems that prevent the ranks from joining."""
    mistakes = {place.rank: place.mistake for place in places if place.mistake is not None}
    problems = _problems(True, places, mistakes, "options", "the same recipe on every node", "fix that")
    kinds = Counter(place.device for place in places)
    if len(kinds) > 1:
        odd = {place.rank: "none" for place in places if place.device == "cpu"}
        advice = "run nvidia-smi there: driver, container and the job's --gpus options"
        problems += _problems(True, places, odd, "GPU", "one, as on the other ranks", advice)
    beyond = {
        place.rank: f"LOCAL_RANK {place.local_rank} of {place.gpus} GPUs seen"
        for place in places
        if place.device == "cuda" and place.local_rank >= place.gpus
    }
    advice = "start as many ranks a node as it has GPUs, and let each see all (no --gpus-per-task)"
    return problems + _problems(True, places, beyond, "GPU", "a GPU for each local rank", advice)


def judge_versions(places: Sequence[Place]) -> list[Problem]:
    """Versions that differ between ranks."""
    names = dict.fromkeys(name for place in places for name in place.versions)
    found = {name: [place.versions.get(name) for place in places] for name in names}
    return [problem for name, own in found.items() for problem in _unlike(True, places, name, own)]


def judge(findings: Sequence[Finding], limits: Limits) -> list[Problem]:
    """All problems except links; for these see :func:`alphadecay_dist.doctor.judge_links.judge_links`."""
    places = [finding.place for finding in findings]
    return [
        *_devices(findings, limits),
        *_processors(findings),
        *judge_versions([finding.place for finding in findings]),
        *_unlike(False, places, "kernel", [finding.kernel for finding in findings]),
        *_clocks(findings, limits),
        *_folders(findings),
        *_data(findings),
        *_shared_memory(findings, limits),
    ]


def bad_nodes(problems: Iterable[Problem]) -> list[str]:
    """The nodes that must be fixed or left out, each once."""
    return list(dict.fromkeys(node for problem in problems if problem.bad for node in problem.nodes))


def most_common(values: Sequence[K]) -> K:
    """The most common value; in a tie, the one that comes first."""
    return Counter(values).most_common(1)[0][0]


def _devices(findings: Sequence[Finding], limits: Limits) -> list[Problem]:
    places = [finding.place for finding in findings]
    devices = {finding.place.rank: finding.device for finding in findings}
    faults = {rank: device.fault for rank, device in devices.items() if device.fault is not None}
    problems = _problems(
        True, places, faults, "compute", "the right product", "take the node out of the job (--exclude)"
    )
    name = most_common([device.name for device in devices.values()])
    other = {rank: device.name for rank, device in devices.items() if device.name != name}
    problems += _problems(False, places, other, "device", name, "all ranks wait for the slowest")
    holders = Counter(device.identity for device in devices.values())
    twice = {
        rank: "one of several ranks" for rank, d in devices.items() if d.identity and holders[d.identity] > 1
    }
    problems += _problems(
        True, places, twice, "GPU", "a GPU of its own", "LOCAL_RANK must count a node's ranks"
    )
    taken = {
        rank: f"{(d.total - d.free) / 2**30:.1f} of {d.total / 2**30:.1f} GiB taken"
        for rank, d in devices.items()
        if d.identity and d.total - d.free > limits.memory_taken * d.total
    }
    return problems + _problems(
        False, places, taken, "GPU memory", "a GPU that nobody else uses", "end what runs there (nvidia-smi)"
    )


def _processors(findings: Sequence[Finding]) -> list[Problem]:
    places = [finding.place for finding in findings]
    crowded: dict[int, str] = {}
    for node in dict.fromkeys(place.node for place in places):
        own = [finding for finding in findings if finding.place.node == node]
        cores = {core for finding in own for core in finding.processor.cores}
        threads = sum(finding.processor.threads for finding in own)
        if threads > len(cores):
            found = f"{threads} threads of {len(own)} ranks on {len(cores)} cores"
            crowded |= {finding.place.rank: found for finding in own}
    advice = "set OMP_NUM_THREADS, or give the ranks more cores (--cpus-per-task)"
    return _problems(False, places, crowded, "threads", "at most a thread a core", advice)


def _unlike(bad: bool, places: Sequence[Place], name: str, versions: Sequence[str | None]) -> list[Problem]:
    usual = most_common(versions)
    other = {place.rank: str(v) for place, v in zip(places, versions, strict=True) if v != usual}
    on = f"{usual}, as on {len(places) - len(other)} of {len(places)} ranks"
    return _problems(bad, places, other, name, on, "install the same on every node")


def _clocks(findings: Sequence[Finding], limits: Limits) -> list[Problem]:
    places = [finding.place for finding in findings]
    problems = []
    for bad, least, beyond in (
        (True, limits.clock_bad, float("inf")),
        (False, limits.clock_warn, limits.clock_bad),
    ):
        # The time of the measurement is no offset. A node has one clock; it is reported in whole seconds.
        sure = {finding.place.rank: abs(finding.clock[0]) - finding.clock[1] for finding in findings}
        off = {
            finding.place.rank: f"{finding.clock[0]:+.0f} s from rank 0's"
            for finding in findings
            if least < sure[finding.place.rank] <= beyond
        }
        problems += _problems(bad, places, off, "clock", f"within {least:g} s", "set it (chronyc, ntpd)")
    return problems


def _folders(findings: Sequence[Finding]) -> list[Problem]:
    places = [finding.place for finding in findings]
    folders = {finding.place.rank: finding.folder for finding in findings}
    path = folders[0].path
    faults = {rank: f"{folder.path}: {folder.fault}" for rank, folder in folders.items() if folder.fault}
    problems = _problems(
        True, places, faults, "output directory", "one to write to", "choose another --output_dir"
    )
    apart = {rank: f"another {folder.path}" for rank, folder in folders.items() if not folder.shared}
    advice = "choose an --output_dir on a file system that all nodes share"
    problems += _problems(True, places, apart, "output directory", f"rank 0's files in {path}", advice)
    unlocked = {rank: folder.locked for rank, folder in folders.items() if folder.locked}
    advice = "see to it that no second run writes there (mount with flock)"
    problems += _problems(False, places, unlocked, "flock", "a lock that keeps others out", advice)
    short = {
        rank: f"{gib(folder.free)} free in {folder.path}"
        for rank, folder in folders.items()
        if folder.free is not None and folder.free < folders[0].needed
    }
    needed = f"{gib(folders[0].needed)} for the run's checkpoints"
    advice = "make room, lower checkpoint.keep, or choose another --output_dir"
    return problems + _problems(True, places, short, "disk", needed, advice)


def _data(findings: Sequence[Finding]) -> list[Problem]:
    faults = {finding.place.rank: finding.data for finding in findings if finding.data is not None}
    places = [finding.place for finding in findings]
    advice = "training would end there"
    return _problems(True, places, faults, "data", "a first sample, on every node", advice)


def _shared_memory(findings: Sequence[Finding], limits: Limits) -> list[Problem]:
    little = {
        finding.place.rank: "none" if finding.shared_memory is None else f"{gib(finding.shared_memory)} free"
        for finding in findings
        if (finding.shared_memory or 0) < limits.shared_memory
    }
    advice = "clear it, or give the container more (--shm-size)"
    return _problems(
        False,
        [finding.place for finding in findings],
        little,
        "/dev/shm",
        f"{gib(limits.shared_memory)} or more",
        advice,
    )


def gib(size: int) -> str:
    """Bytes in GiB, as text."""
    return f"{size / 2**30:.3g} GiB"


def _problems(
    bad: bool, places: Sequence[Place], found: Mapping[int, str | None], what: str, expected: str, advice: str
) -> list[Problem]:
    """One problem per distinct finding, with all ranks that have it."""
    ranks_of: dict[str, list[int]] = {}
    for rank, thing in sorted(found.items()):
        ranks_of.setdefault(str(thing), []).append(rank)
    node_of = {place.rank: place.node for place in places}
    return [
        Problem(
            bad,
            tuple(dict.fromkeys(node_of[rank] for rank in ranks)),
            tuple(ranks),
            what,
            thing,
            expected,
            advice,
        )
        for thing, ranks in ranks_of.items()
    ]
