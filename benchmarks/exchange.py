"""Time bringing every tuned matrix together: to its owner alone, against everything to everyone.

    python benchmarks/exchange.py --sizes 60m 130m --ranks 2 4

On gloo ranks of this machine, or with ``--device cuda`` a GPU each on NCCL: FSDP2's ``full_tensor``, FSDP1's
``summon_full_params``, DeepSpeed's ``GatheredParameters`` and ``safe_get_full_fp32_param``, each in turn with
our exchange over the same sharded weights. Bytes are those that a rank receives from others: ours are
counted, the others' are computed, all that a rank does not hold. Memory is the growth of a process (on a GPU
of its allocations) while it gathers; both of the rank that has the most. The ratio of times is the median of
those of each pair of turns.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ranks import deepspeed_engine, joined, outcome
from refresh import SIZES, machine
from torch import nn

from alphadecay_dist.decay.settings import Settings
from alphadecay_dist.engines.native.host import PlainHost
from alphadecay_dist.params.groups import param_groups
from alphadecay_dist.params.inventory import tuned_weights
from alphadecay_dist.sharding.exchange import Exchange
from alphadecay_dist.sharding.planning import plan_exchange

COLUMNS = ("model", "ranks", "way", "ms", "ours, ms", "ratio", "MB a rank, computed", "ours, MB", "ratio")
COLUMNS += ("memory, MB", "ours, MB")
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Measured:
    """What one way took on one rank: seconds a repeat, bytes received, growth of memory."""

    seconds: list[float] = field(default_factory=list)
    received: int = 0
    memory: int = 0


class Layers(nn.Module):
    """The tuned matrices of a LLaMA, and nothing else."""

    def __init__(self, hidden: int, intermediate: int, count: int) -> None:
        super().__init__()
        shapes = dict.fromkeys(("q", "k", "v", "o"), (hidden, hidden))
        shapes |= {
            "gate": (hidden, intermediate),
            "up": (hidden, intermediate),
            "down": (intermediate, hidden),
        }
        self.layers = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(*shape, bias=False) for name, shape in shapes.items()})
            for _ in range(count)
        )


def main() -> None:
    """Print the machine and a table with a row a way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["60m", "130m"])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    print(f"{machine(torch.device(args.device))}, torch {torch.__version__}, {args.repeats} repeats\n")
    print(f"| {' | '.join(COLUMNS)} |")
    print("|---" * len(COLUMNS) + "|")
    for size in args.sizes:
        for ranks in args.ranks:
            for way in WAYS:
                work = functools.partial(row, size, ranks, way, args.repeats, args.device)
                print(outcome(way, work), flush=True)


def row(size: str, ranks: int, way: str, repeats: int, device: str) -> str:
    """One line of the table: medians over the turns, each of its slowest rank."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run_rank, (ranks, folder, size, way, repeats, device), nprocs=ranks)
        found = [torch.load(Path(folder) / str(rank), weights_only=False) for rank in range(ranks)]
    theirs, ours = ([pair[place] for pair in found] for place in (0, 1))
    turns = [[max(m.seconds[i] for m in side) for i in range(repeats)] for side in (theirs, ours)]
    seconds = [statistics.median(side) for side in turns]
    ratio = statistics.median(their / our for their, our in zip(*turns, strict=True))
    received = [max(m.received for m in side) for side in (theirs, ours)]
    memory = [max(m.memory for m in side) / 1e6 for side in (theirs, ours)]
    return (
        f"| {size} | {ranks} | {way} | {1e3 * seconds[0]:.0f} | {1e3 * seconds[1]:.0f} "
        f"| {ratio:.2f} | {received[0] / 1e6:.0f} | {received[1] / 1e6:.0f} "
        f"| {received[0] / received[1]:.2f} | {memory[0]:.0f} | {memory[1]:.0f} |"
    )


def run_rank(rank: int, ranks: int, folder: str, size: str, way: str, repeats: int, device: str) -> None:
    """Both sides in turn, on one rank; the first turn warms up."""
    with joined(rank, ranks, folder, device):
        hidden, intermediate, layers, _ = SIZES[size]
        torch.manual_seed(0)
        everyone, exchange, itemsize = WAYS[way](Layers(hidden, intermediate, layers), device)
        theirs, ours = Measured(), Measured()
        sides = ((theirs, everyone), (ours, lambda: sum(m.numel() for _, m in exchange.matrices())))
        for repeat in range(repeats + 1):
            for side, work in sides:
                seconds = timed(side, work, device)
                if repeat:
                    side.seconds.append(seconds)
        total = sum(block.index.numel for block in exchange.schedule.routes.blocks.values()) * itemsize
        theirs.received, ours.received = total - total // ranks, exchange.bytes_received
        torch.save((theirs, ours), Path(folder) / str(rank))


def timed(measured: Measured, work: Callable[[], Any], device: str) -> float:
    """Seconds of one turn; notes by how much the process grew."""
    dist.barrier()
    begin = time.perf_counter()
    with growth(measured, device):
        work()
        if device == "cuda":
            torch.cuda.synchronize()
    return time.perf_counter() - begin


@contextmanager
def growth(measured: Measured, device: str) -> Iterator[None]:
    """Note by how much the process grew at most."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield
        measured.memory = max(measured.memory, torch.cuda.max_memory_allocated() - before)
        return
    before, most, done = resident(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            most[0] = max(most[0], resident() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield
    done.set()
    watcher.join()
    measured.memory = max(measured.memory, most[0])


def resident() -> int:
    """Bytes that the process has in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def ours_over(model: nn.Module, host: Any, dtype: torch.dtype | None = None) -> Exchange:
    """Our exchange over the weights as a host holds them."""
    weights = tuned_weights(model)
    rule = Settings()
    return plan_exchange(weights, lambda: host.sources(weights, dtype), rule, group=host.group, dtype=dtype)


Sides = tuple[Callable[[], Any], Exchange, int]


def full_tensor(model: nn.Module, device: str) -> Sides:
    """FSDP2: every rank calls full_tensor on every weight."""
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415

    mesh = dist.init_device_mesh(device, (dist.get_world_size(),))
    for layer in model.layers:
        for linear in layer.values():
            fully_shard(linear.to(device), mesh=mesh)
    optimizer = torch.optim.SGD(param_groups(model, weight_decay=0.1), lr=0.1)
    weights = list(model.parameters())
    return (
        lambda: [w.full_tensor().numel() for w in weights],
        ours_over(model, PlainHost(model, [optimizer], None)),
        4,
    )


def summon_full_params(model: nn.Module, device: str) -> Sides:
    """FSDP1: every rank summons a layer after the other."""
    from torch.distributed.fsdp import FullyShardedDataParallel  # noqa: PLC0415
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy  # noqa: PLC0415

    wrapped = FullyShardedDataParallel(
        model,
        auto_wrap_policy=ModuleWrapPolicy({nn.Linear}),
        use_orig_params=True,
        device_id=torch.device(device, torch.cuda.current_device() if device == "cuda" else None),
    )
    optimizer = torch.optim.SGD(param_groups(wrapped, weight_decay=0.1), lr=0.1)
    units = [m for m in FullyShardedDataParallel.fsdp_modules(wrapped) if m is not wrapped]

    def everyone() -> None:
        for unit in units:
            with FullyShardedDataParallel.summon_full_params(unit, writeback=False):
                sum(p.numel() for p in unit.parameters())

    return everyone, ours_over(wrapped, PlainHost(wrapped, [optimizer], None)), 4


def gathered_parameters(model: nn.Module, device: str) -> Sides:
    """ZeRO-3 in bf16: every rank gathers a weight after the other."""
    import deepspeed  # noqa: PLC0415

    host, weights = _zero_3(model, device)

    def everyone() -> None:
        for weight in weights:
            with deepspeed.zero.GatheredParameters(weight):
                weight.numel()

    return everyone, ours_over(model, host), 2


def safe_get_full_fp32_param(model: nn.Module, device: str) -> Sides:
    """ZeRO-3 in bf16: every rank gets the fp32 master of every weight."""
    from deepspeed.utils import safe_get_full_fp32_param as full  # noqa: PLC0415

    host, weights = _zero_3(model, device)
    return lambda: [full(weight).numel() for weight in weights], ours_over(model, host, torch.float32), 4


def _zero_3(model: nn.Module, device: str) -> tuple[Any, list[nn.Parameter]]:
    from alphadecay_dist.engines.zero.host import ZeroHost  # noqa: PLC0415

    optimizer = torch.optim.AdamW(param_groups(model, weight_decay=0.1), lr=0.1)
    engine = deepspeed_engine(
        model, optimizer, device, bf16=True, stage=3, stage3_param_persistence_threshold=0
    )
    return ZeroHost(engine), list(model.parameters())


WAYS: dict[str, Callable[[nn.Module, str], Sides]] = {
    "FSDP2 full_tensor": full_tensor,
    "FSDP1 summon_full_params": summon_full_params,
    "ZeRO-3 GatheredParameters": gathered_parameters,
    "ZeRO-3 safe_get_full_fp32_param": safe_get_full_fp32_param,
}


if __name__ == "__main__":
    main()
