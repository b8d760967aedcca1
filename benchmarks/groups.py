"""Time updates with a param group a matrix, and premultiplied in two, against two uniform groups.

    python benchmarks/groups.py --engine zero0 zero1 zero2 zero3 fsdp2 ddp --ranks 1 2

On gloo ranks of this machine, or with ``--device cuda`` a GPU each on NCCL. The same model is trained three
times in one process a rank, an update of each in turn: with one decay in two groups, with a group a matrix,
and with premultiplied decays in two groups. A row "update" has forward, backward and step, a row "step" the
step alone (with DDP and FSDP2 the optimizer's); milliseconds are medians of the slowest rank, ratios medians
of those of each turn. Refreshes are left out. On a GPU, ZeRO-1 to 3 and FSDP2 compute in bf16 and AdamW is
fused.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ranks import deepspeed_engine, joined, outcome
from refresh import machine
from torch import Tensor, nn

from alphadecay_dist import AlphaDecay, param_groups

COLUMNS = ("engine", "ranks", "time", "two groups, ms", "many, ms", "ratio", "premultiplied, ms", "ratio")
ENGINES = ("zero0", "zero1", "zero2", "zero3", "fsdp2", "ddp")
WAYS = ("uniform", "groups", "premultiply")
BASE = 0.1
NEVER = 10**9  # the interval: one refresh, in the first update, which warms up


class Layers(nn.Module):
    """Many equal matrices one after the other, each added to what came before, and a norm for each."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        blocks = (
            {"norm": nn.RMSNorm(width), "up": nn.Linear(width, width, bias=False)} for _ in range(count)
        )
        self.layers = nn.ModuleList(nn.ModuleDict(block) for block in blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Mean square of the output, of (rows, width) inputs."""
        for block in self.layers:
            x = x + block["up"](block["norm"](x))
        return x.float().square().mean()


def main() -> None:
    """Print the machine and a table with two rows an engine and number of ranks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--matrices", type=int, default=170)
    parser.add_argument("--width", type=int, default=344, help="rows and columns of each")
    parser.add_argument("--rows", type=int, default=64, help="tokens a rank and update")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    million = args.matrices * args.width**2 / 1e6
    print(
        f"{machine(torch.device(args.device))}, torch {torch.__version__}, {args.matrices} matrices, "
        f"{million:.1f} M weights, {args.rows} rows, {args.repeats} repeats\n"
    )
    print(f"| {' | '.join(COLUMNS)} |")
    print("|---" * len(COLUMNS) + "|")
    for engine in args.engine:
        for ranks in args.ranks:
            print(outcome(engine, functools.partial(rows, engine, ranks, args)), flush=True)


def rows(engine: str, ranks: int, args: argparse.Namespace) -> str:
    """Two lines of the table."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run_rank, (ranks, folder, engine, args), nprocs=ranks)
        found = torch.stack([torch.load(Path(folder) / str(rank)) for rank in range(ranks)])
    slowest = found.amax(0)  # (ways, repeats, 2) seconds
    lines = []
    for place, name in enumerate(("update", "step")):
        uniform, many, two = slowest[:, :, place].tolist()
        lines.append(
            f"| {engine} | {ranks} | {name} | {1e3 * statistics.median(uniform):.1f} "
            f"| {1e3 * statistics.median(many):.1f} | {ratio(many, uniform):.3f} "
            f"| {1e3 * statistics.median(two):.1f} | {ratio(two, uniform):.3f} |"
        )
    return "\n".join(lines)


def ratio(times: list[float], baseline: list[float]) -> float:
    """Median of the ratios of each turn."""
    return statistics.median(one / other for one, other in zip(times, baseline, strict=True))


def run_rank(rank: int, ranks: int, folder: str, engine: str, args: argparse.Namespace) -> None:
    """All three ways in turn, on one rank; the first turns warm up."""
    with joined(rank, ranks, folder, args.device):
        torch.manual_seed(0)
        x = torch.randn(args.rows, args.width, device=args.device)
        build = under_deepspeed if engine.startswith("zero") else under_torch
        turns = [build(engine, way, Layers(args.matrices, args.width), args.device) for way in WAYS]
        warm_up = 3
        seconds = torch.zeros(len(WAYS), args.repeats + warm_up, 2, dtype=torch.float64)
        for repeat in range(args.repeats + warm_up):
            for way in range(len(WAYS)):
                place = (way + repeat) % len(WAYS)  # nobody is always the first after a collection of garbage
                seconds[place, repeat] = timed(turns[place], x, args.device)
        torch.save(seconds[:, warm_up:], Path(folder) / str(rank))


Turn = tuple[Callable[[Tensor], Any], Callable[[], Any]]  # forward and backward, step


def timed(turn: Turn, x: Tensor, device: str) -> Tensor:
    """Seconds of one update and of its step."""
    gradients, step = turn
    times = []
    dist.barrier()
    for work in (lambda: None, lambda: gradients(x), step):
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter())
    return torch.tensor([times[2] - times[0], times[2] - times[1]], dtype=torch.float64)


def optimizer_for(model: nn.Module, way: str, device: str) -> torch.optim.AdamW:
    """AdamW over the groups of one way, as the trainer builds it."""
    groups = param_groups(model, weight_decay=BASE, apply="groups" if way == "groups" else "premultiply")
    if way == "uniform":
        groups[0]["weight_decay"] = BASE
    return torch.optim.AdamW(groups, lr=1e-4, fused=device == "cuda")


def stepper(decay: AlphaDecay | None, step: Callable[[], Any]) -> Callable[[], Any]:
    """The step with what AlphaDecay does before it."""

    def both() -> None:
        if decay is not None:
            decay.step()
        step()

    return both


def under_torch(engine: str, way: str, model: nn.Module, device: str) -> Turn:
    """DDP or FSDP2."""
    model = model.to(device)
    if engine == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    else:
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # noqa: PLC0415

        mesh = dist.init_device_mesh(device, (dist.get_world_size(),))
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if device == "cuda" else None)
        for block in model.layers:
            fully_shard(block["up"], mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)
    optimizer = optimizer_for(model, way, device)
    decay = None
    if way != "uniform":
        decay = AlphaDecay(model, optimizer, weight_decay=BASE, interval=NEVER, apply=way)

    def gradients(x: Tensor) -> None:
        optimizer.zero_grad()
        model(x).backward()

    return gradients, stepper(decay, optimizer.step)


def under_deepspeed(engine: str, way: str, model: nn.Module, device: str) -> Turn:
    """ZeRO stage 0 to 3."""
    stage = int(engine[-1])
    bf16 = device == "cuda" and stage > 0
    optimizer = optimizer_for(model, way, device)
    wrapped = deepspeed_engine(model, optimizer, device, bf16, stage=stage)
    decay = None
    if way != "uniform":
        decay = AlphaDecay(model, optimizer, engine=wrapped, weight_decay=BASE, interval=NEVER, apply=way)
    dtype = torch.bfloat16 if bf16 else torch.float32
    return lambda x: wrapped.backward(wrapped(x.to(dtype))), stepper(decay, wrapped.step)


if __name__ == "__main__":
    main()
