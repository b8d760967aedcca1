"""Check owner-only gathering on every GPU of this machine, over NCCL, for every engine; then time it.

    python benchmarks/nccl_check.py              # all GPUs
    python benchmarks/nccl_check.py --device cpu --ranks 3

For every line of ``ENGINES`` it compares each gathered matrix bit for bit with the whole weight, the decays
of all engines with each other, and bytes and peak with the schedule of ``alphadecay plan``; at last one rank
plans otherwise, which all must refuse. Shapes are uneven and few, so that some ranks send or receive nothing
in a round, which is where NCCL has been reported to hang. It prints a line an engine and exits with 1 where
one has a fault, after which the others are checked in new processes; a hang ends after ``--timeout`` seconds.

It leaves out: a killed rank (NCCL's watchdog aborts the process), what the allocator holds (the table of
``exchange.py`` has it), expert parallelism on a mesh of its own, and more than one node.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ranks import SKIPPED, deepspeed_engine, joined, lacks_deepspeed, reason
from torch import Tensor, nn

from alphadecay_dist import AlphaDecay, UserError, param_groups
from alphadecay_dist.params.wrappers import named_modules

MISMATCH = "another plan on one rank"
SHAPES = [(64, 172), (61, 67), (172, 64), (67, 61), (53, 127)]
Built = tuple[nn.Module, torch.optim.Optimizer, Any, torch.dtype | None]


class Uneven(nn.Module):
    """A few uneven matrices in numbered blocks; the output is one scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(n, m, bias=False)}) for m, n in SHAPES)

    def forward(self, x: Tensor) -> Tensor:
        """Mean squares of all outputs."""
        outputs = [block["up"](x[:, : block["up"].in_features]) for block in self.layers]
        return torch.stack([output.float().square().mean() for output in outputs]).sum()


def value(name: str, shape: tuple[int, ...]) -> Tensor:
    """A weight, whole: exact in bf16, so that all engines hold the same."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(shape, generator=generator).bfloat16().float()


def main() -> int:
    """Check, then time; 0 where all is well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--ranks", type=int, default=max(1, torch.cuda.device_count()))
    parser.add_argument("--timeout", type=int, default=120)
    parser.add_argument("--no_timing", action="store_true")
    parser.add_argument("--without", metavar="NAME", help="leave out engines whose names begin so (zero)")
    args = parser.parse_args()
    print(f"{args.ranks} ranks on {args.device}, torch {torch.__version__}", flush=True)
    checks = [*ENGINES, MISMATCH]
    if args.without:
        checks = [name for name in checks if not name.lower().startswith(args.without.lower())]
    faults = check_all(checks, args)
    if not args.no_timing:
        ranks = [str(n) for n in (2, 4, 8) if n <= args.ranks]
        command = [sys.executable, str(Path(__file__).with_name("exchange.py")), "--device", args.device]
        timing = subprocess.run([*command, "--ranks", *ranks], check=False).returncode if ranks else 0
        return timing or min(1, faults)
    return min(1, faults)


def check_all(checks: list[str], args: argparse.Namespace) -> int:
    """Each in turn in the same processes, and after a fault the rest in new ones; the number of faults."""
    for name in filter(lacks_deepspeed, checks):
        print(f"{name}: {SKIPPED}", flush=True)
    checks = [name for name in checks if not lacks_deepspeed(name)]
    faults = 0
    with tempfile.TemporaryDirectory() as folder:
        while checks:
            store, done = tempfile.mkdtemp(dir=folder), Path(folder) / "done"
            done.write_text("")
            try:
                mp.spawn(check_on_rank, (checks, args, folder, store), nprocs=args.ranks)
                break
            except Exception as error:
                finished = len(done.read_text().splitlines())
                print(f"{checks[finished]}: failed: {reason(error)}", flush=True)
                checks = checks[finished + 1 :]
                faults += 1
    return faults


def check_on_rank(rank: int, checks: list[str], args: argparse.Namespace, folder: str, store: str) -> None:
    """All in turn, on one rank; rank 0 notes what is done, and the decays that later engines shall have."""
    with joined(rank, args.ranks, store, args.device, args.timeout):
        notes, done = Path(folder) / "decays.json", Path(folder) / "done"
        expected: dict[str, dict[str, float]] = json.loads(notes.read_text()) if notes.exists() else {}
        for name in checks:
            if name == MISMATCH:
                check_mismatch(rank, args.ranks, args.device)
                line = f"{name}: refused by all"
            else:
                decays = check(rank, name, args.device)
                first = expected.setdefault(",".join(sorted(decays)), decays)  # by names: DDP comes first
                off = max(abs(decays[module] / first[module] - 1) for module in first)
                assert off <= 1e-6, f"{name}: decays off by {off:.1e}"
                line = f"{name}: matrices bit-identical, bytes and peak as expected, decays off by {off:.1e}"
            dist.barrier()
            if rank == 0:
                print(line, flush=True)
                notes.write_text(json.dumps(expected))
                with done.open("a") as file:
                    file.write(f"{name}\n")


def check(rank: int, engine: str, device: str) -> dict[str, float]:
    """One engine; its decays by name."""
    model, optimizer, wrapped, dtype = ENGINES[engine](_filled(device), device)
    for budget in (None, 1):
        decay = AlphaDecay(
            model, optimizer, engine=wrapped, weight_decay=0.1, dtype=dtype, memory_budget=budget
        )
        exchange = decay._measure._exchange
        schedule = exchange.schedule
        for name, matrix in exchange.matrices():
            whole = value(name, tuple(matrix.shape))
            assert torch.equal(matrix.float().cpu(), whole), f"{engine}: {name} is not what it was"
        found = exchange.bytes_received, exchange.bytes_sent, exchange.peak_bytes
        expected = tuple(int(row[rank]) for row in (schedule.received, schedule.sent, schedule.peak))
        assert found == expected, f"{engine}: received, sent, peak {found}, scheduled {expected}"
    return {name: module.weight_decay for name, module in decay.refresh().modules.items()}


def check_mismatch(rank: int, ranks: int, device: str) -> None:
    """One rank would send its weights in another type."""
    model, optimizer, *_ = _ddp(_filled(device), device)
    dtype = torch.bfloat16 if rank == ranks - 1 else torch.float32
    refusal = ""
    try:
        AlphaDecay(model, optimizer, weight_decay=0.1, dtype=dtype)
    except (RuntimeError, UserError) as error:
        refusal = str(error)
    assert ranks == 1 or "bfloat16" in refusal, f"another plan on one rank: {refusal or 'not refused'}"


def _filled(device: str) -> Uneven:
    model = Uneven()
    with torch.no_grad():
        for name, module in named_modules(model).items():
            if isinstance(module, nn.Linear):
                module.weight.copy_(value(name, tuple(module.weight.shape)))
    return model.to(device)


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(param_groups(model, weight_decay=0.1), lr=0.1)


def _ddp(model: nn.Module, device: str) -> Built:
    wrapped = nn.parallel.DistributedDataParallel(model)
    return wrapped, _sgd(wrapped), None, None


def _experts(build: Callable[[nn.Module, str], Built]) -> Callable[[nn.Module, str], Built]:
    """The same with a stack of three experts beside the matrices."""

    def with_experts(model: nn.Module, device: str) -> Built:
        block = nn.Module()
        block.experts = nn.Module()
        name = f"layers.{len(SHAPES)}.experts.up_proj"
        stack = torch.stack([value(f"{name}.{expert}", (60, 70)) for expert in range(3)])
        block.experts.up_proj = nn.Parameter(stack.to(device))
        model.layers.append(block)
        return build(model, device)

    return with_experts


def _fsdp1(strategy: str) -> Callable[[nn.Module, str], Built]:
    def build(model: nn.Module, device: str) -> Built:
        from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy  # noqa: PLC0415

        options: dict[str, Any] = {}
        if strategy == "HYBRID_SHARD":
            options["device_mesh"] = _mesh(device, _halves(dist.get_world_size()))
        wrapped = FullyShardedDataParallel(
            model,
            sharding_strategy=ShardingStrategy[strategy],
            use_orig_params=True,
            device_id=torch.device(device, torch.cuda.current_device() if device == "cuda" else None),
            **options,
        )
        return wrapped, _sgd(wrapped), None, None

    return build


def _halves(ranks: int) -> tuple[int, int]:
    return (2, ranks // 2) if ranks % 2 == 0 else (1, ranks)


def _mesh(device: str, sizes: tuple[int, ...]) -> Any:
    return dist.init_device_mesh(device, sizes, mesh_dim_names=("replicas", "shards")[-len(sizes) :])


def _tensor_parallel(model: nn.Module, device: str) -> Built:
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module  # noqa: PLC0415

    parallel, shards = _halves(dist.get_world_size())
    mesh = dist.init_device_mesh(device, (shards, parallel), mesh_dim_names=("shards", "parallel"))
    for block in model.layers:
        parallelize_module(block, mesh["parallel"], {"up": ColwiseParallel()})
    fully_shard(model, mesh=mesh["shards"])
    return model, _sgd(model), None, None


def _fsdp2(sizes: Callable[[int], tuple[int, ...]]) -> Callable[[nn.Module, str], Built]:
    def build(model: nn.Module, device: str) -> Built:
        from torch.distributed.fsdp import fully_shard  # noqa: PLC0415

        fully_shard(model, mesh=_mesh(device, sizes(dist.get_world_size())))
        return model, _sgd(model), None, None

    return build


def _zero(stage: int, dtype: torch.dtype | None, **options: Any) -> Callable[[nn.Module, str], Built]:
    def build(model: nn.Module, device: str) -> Built:
        optimizer = torch.optim.AdamW(param_groups(model, weight_decay=0.1), lr=0.1)
        zero = {"stage": stage, "stage3_param_persistence_threshold": 0, **options}
        return model, optimizer, deepspeed_engine(model, optimizer, device, bf16=True, **zero), dtype

    return build


def _second_copy(model: nn.Module, device: str) -> Built:
    size = 2 if dist.get_world_size() % 2 == 0 else 1
    return _zero(3, None, zero_hpz_partition_size=size)(model, device)


OFFLOAD = {"offload_param": {"device": "cpu"}, "offload_optimizer": {"device": "cpu"}}
ENGINES: dict[str, Callable[[nn.Module, str], Built]] = {
    "DDP": _ddp,
    "DDP, experts": _experts(_ddp),
    **{f"ZeRO-{stage}": _zero(stage, None) for stage in (1, 2, 3)},
    **{f"ZeRO-{stage} fp32 masters": _zero(stage, torch.float32) for stage in (1, 2, 3)},
    "ZeRO-3 offload": _zero(3, None, **OFFLOAD),
    "ZeRO-3 hpZ": _second_copy,
    **{f"FSDP1 {name}": _fsdp1(name) for name in ("FULL_SHARD", "SHARD_GRAD_OP", "HYBRID_SHARD")},
    "FSDP2": _fsdp2(lambda ranks: (ranks,)),
    "FSDP2, experts": _experts(_fsdp2(lambda ranks: (ranks,))),
    "HSDP": _fsdp2(_halves),
    "TP and FSDP2": _tensor_parallel,
}


if __name__ == "__main__":
    sys.exit(main())
