"""What a rank measures without the others."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import socket
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch

import alphadecay_dist
from alphadecay_dist.doctor.findings import Device, Place, Processor
from alphadecay_dist.engines.rank_variables import local_size
from alphadecay_dist.training.process.environment import environment

SHARED_MEMORY = Path("/dev/shm")
DRIVER = Path("/proc/driver/nvidia/version")
BOOT = Path("/proc/sys/kernel/random/boot_id")


def place_of(device: torch.device, versions: Mapping[str, str | None], mistake: str | None) -> Place:
    """Where this rank runs, from its launcher's variables; see :class:`Place` for the arguments."""
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    return Place(
        rank=environment("RANK", 0),
        node=node(),
        machine=machine(),
        local_rank=environment("LOCAL_RANK", 0),
        local_ranks=local_size(),
        device=device.type,
        gpus=gpus,
        versions=versions,
        mistake=mistake,
    )


def node() -> str:
    """SLURM's name of this node, else the host's."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def machine() -> str:
    """The boot id of this machine's kernel, which containers and nodes of a test cluster share."""
    return _text(BOOT) or socket.gethostname()


def device_of(device: torch.device) -> Device:
    """The device with its memory, and whether it computes correctly."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        free, total = torch.cuda.mem_get_info(device)
        return Device(properties.name, str(properties.uuid), total, free, compute_fault(device))
    page = os.sysconf("SC_PAGE_SIZE")
    free, total = (page * os.sysconf(name) for name in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"))
    return Device(_processor_name(), None, total, free, compute_fault(device))


def compute_fault(device: torch.device) -> str | None:
    """Multiply two matrices whose product is exact in every compute type; returns what is wrong, or None.

    Raises:
        RuntimeError: the device cannot compute.
    """
    rows = torch.arange(256).unsqueeze(1)  # (256, 1)
    a, b = (rows + 3 * rows.T) % 7, (5 * rows + rows.T) % 5  # (256, 256)
    found = (a.to(device, torch.float32) @ b.to(device, torch.float32)).cpu()
    wrong = int((found != a @ b).sum())
    return f"{wrong} of {found.numel()} elements are wrong" if wrong else None


def processor_of() -> Processor:
    """Cores and threads of this process."""
    return Processor(tuple(sorted(os.sched_getaffinity(0))), torch.get_num_threads())


def versions() -> dict[str, str | None]:
    """Versions that must be the same on every rank; None if not installed."""
    nccl = torch.cuda.nccl.version() if torch.cuda.is_available() else None
    driver = re.search(r"\s(\d+\.\d[\d.]*)\s", _text(DRIVER))
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "deepspeed": _installed("deepspeed"),
        "CUDA": torch.version.cuda,
        "NCCL": ".".join(map(str, nccl)) if nccl else None,
        "CUDA driver": driver[1] if driver else None,
        "alphadecay_dist": source_digest(Path(alphadecay_dist.__file__).parent),
    }


def source_digest(folder: Path) -> str:
    """The first digits of a SHA-256 over names and contents of a package's files, those behind links too."""
    digest = hashlib.sha256()
    files = [Path(own, name) for own, _, names in os.walk(folder, followlinks=True) for name in names]
    for path in sorted(files):
        if path.suffix in (".py", ".yaml", ".json"):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(folder)} {content}\n".encode())
    return digest.hexdigest()[:12]


def kernel() -> str:
    """The release of the operating system's kernel."""
    return platform.release()


def shared_memory() -> int | None:
    """Free bytes in /dev/shm; None if there is no /dev/shm."""
    return free_bytes(SHARED_MEMORY)


def free_bytes(folder: Path) -> int | None:
    """Bytes that this user can still write there; None if unknown."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@cache
def _processor_name() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _text(Path("/proc/cpuinfo")), re.MULTILINE)
    return found[1] if found else platform.machine()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
