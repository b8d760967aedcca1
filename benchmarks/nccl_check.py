"""Check owner-only gathering on every GPU of this machine, over NCCL, for every engine; then time it.

    python benchmarks/nccl_check.py              # all GPUs
    python benchmarks/nccl_check.py --device cpu --ranks 3

For DDP, ZeRO-1, 2 and 3 (bf16 weights and fp32 masters), FSDP1, FSDP2 and HSDP it compares every gathered
matrix bit for bit with the whole weight, the decays of all engines with each other, and bytes and peak with
what ``alphadecay plan`` foretells. Shapes are uneven and few, so that some ranks send or receive nothing in a
round, which is where NCCL has been reported to hang. It prints a line an engine and exits with 1 at the first
fault; a hang ends after ``--timeout`` seconds.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from alphadecay_dist import AlphaDecay, param_groups
from alphadecay_dist.sharding.inventory import named_modules

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


def values() -> dict[str, Tensor]:
    """The weights, whole, by module name: exact in bf16, so that all engines hold the same."""
    generator = torch.Generator().manual_seed(0)
    return {
        f"layers.{number}.up": torch.randn(shape, generator=generator).bfloat16().float()
        for number, shape in enumerate(SHAPES)
    }


def main() -> int:
    """Check, then time; 0 where all is well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--ranks", type=int, default=max(1, torch.cuda.device_count()))
    parser.add_argument("--timeout", type=int, default=120)
    parser.add_argument("--no_timing", action="store_true")
    args = parser.parse_args()
    print(f"{args.ranks} ranks on {args.device}, torch {torch.__version__}", flush=True)
    for engine in ENGINES:
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(check, (args.ranks, folder, engine, args.device, args.timeout), nprocs=args.ranks)
            decays = torch.load(Path(folder) / "decays")
        if engine == "DDP":
            expected = decays
        off = max(abs(decays[name] / expected[name] - 1) for name in expected)
        print(
            f"{engine}: matrices bit-identical, bytes and peak as foretold, decays off by {off:.1e}",
            flush=True,
        )
        if off > 1e-6:
            return 1
    if not args.no_timing:
        ranks = [str(n) for n in (2, 4, 8) if n <= args.ranks]
        command = [sys.executable, str(Path(__file__).with_name("exchange.py")), "--device", args.device]
        return subprocess.run([*command, "--ranks", *ranks], check=False).returncode if ranks else 0
    return 0


def check(rank: int, ranks: int, folder: str, engine: str, device: str, timeout: int) -> None:
    """One engine on one rank."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)}
    if device == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=timeout),
    )
    model, optimizer, wrapped, dtype = ENGINES[engine](_filled(device), device)
    for budget in (None, 1):
        decay = AlphaDecay(
            model, optimizer, engine=wrapped, weight_decay=0.1, dtype=dtype, memory_budget=budget
        )
        exchange = decay._exchange
        for name, matrix in exchange.matrices():
            assert torch.equal(matrix.float().cpu(), values()[name]), f"{engine}: {name} is not what it was"
        foretold = exchange.foretold()
        found = exchange.bytes_received, exchange.bytes_sent, exchange.peak_bytes
        expected = tuple(int(row[rank]) for row in (foretold.received, foretold.sent, foretold.peak))
        assert found == expected, f"{engine}: received, sent, peak {found}, foretold {expected}"
    modules = decay.refresh().modules
    if rank == 0:
        torch.save({name: module.weight_decay for name, module in modules.items()}, Path(folder) / "decays")
    dist.barrier()
    dist.destroy_process_group()


def _filled(device: str) -> Uneven:
    model = Uneven()
    with torch.no_grad():
        for name, module in named_modules(model).items():
            if isinstance(module, nn.Linear):
                module.weight.copy_(values()[name])
    return model.to(device)


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(param_groups(model, weight_decay=0.1), lr=0.1)


def _ddp(model: nn.Module, device: str) -> Built:
    wrapped = nn.parallel.DistributedDataParallel(model)
    return wrapped, _sgd(wrapped), None, None


def _fsdp1(model: nn.Module, device: str) -> Built:
    from torch.distributed.fsdp import FullyShardedDataParallel  # noqa: PLC0415

    place = torch.device(device, torch.cuda.current_device() if device == "cuda" else None)
    wrapped = FullyShardedDataParallel(model, use_orig_params=True, device_id=place)
    return wrapped, _sgd(wrapped), None, None


def _fsdp2(sizes: Callable[[int], tuple[int, ...]]) -> Callable[[nn.Module, str], Built]:
    def build(model: nn.Module, device: str) -> Built:
        from torch.distributed.fsdp import fully_shard  # noqa: PLC0415

        shape = sizes(dist.get_world_size())
        mesh = dist.init_device_mesh(device, shape, mesh_dim_names=("replicas", "shards")[-len(shape) :])
        fully_shard(model, mesh=mesh)
        return model, _sgd(model), None, None

    return build


def _zero(stage: int, dtype: torch.dtype | None) -> Callable[[nn.Module, str], Built]:
    def build(model: nn.Module, device: str) -> Built:
        import deepspeed  # noqa: PLC0415

        if device == "cpu":
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist.get_backend(), verbose=False)
        config = {
            "train_micro_batch_size_per_gpu": 1,
            "bf16": {"enabled": True},
            "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        }
        optimizer = torch.optim.AdamW(param_groups(model, weight_decay=0.1), lr=0.1)
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        return model, optimizer, engine, dtype

    return build


ENGINES: dict[str, Callable[[nn.Module, str], Built]] = {
    "DDP": _ddp,
    **{f"ZeRO-{stage}": _zero(stage, None) for stage in (1, 2, 3)},
    **{f"ZeRO-{stage} fp32 masters": _zero(stage, torch.float32) for stage in (1, 2, 3)},
    "FSDP1": _fsdp1,
    "FSDP2": _fsdp2(lambda ranks: (ranks,)),
    "HSDP": _fsdp2(lambda ranks: (2, ranks // 2) if ranks % 2 == 0 else (1, ranks)),
}


if __name__ == "__main__":
    sys.exit(main())
