"""Time Muon's step under FSDP2: every rank gathers and orthogonalises every matrix, against owner ranks.

    python benchmarks/muon.py --ranks 2 --repeats 5

On gloo ranks of this machine, or with ``--device cuda`` a GPU each on NCCL. Both ways step the same sharded
weights with the same gradients, in turn in one process a rank:

- gathered: the momentum of each matrix is gathered whole by every rank, which puts it through torch's own
  Newton-Schulz, one matrix after the other, and keeps its own rows. Its decay has a param group a matrix.
- owners: :class:`alphadecay_dist.ShardedMuon`, with the same groups.

Seconds are medians of the slowest rank, the ratio is the median of those of each turn. Bytes are what a rank
receives in a step, the most of all ranks. The weights of both must be equal at the end, bit for bit on CPUs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ranks import joined, outcome
from refresh import machine
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim._muon import _adjust_lr, _zeropower_via_newtonschulz

from alphadecay_dist import ShardedMuon

COLUMNS = ("matrices", "ranks", "gathered, s", "owners, s", "ratio", "gathered, MB", "owners, MB")
RATE, DECAY, MOMENTUM = 0.02, 0.1, 0.95
COEFFICIENTS, STEPS, EPS = (3.4445, -4.7750, 2.0315), 5, 1e-7
WARM_UP = 2

# The hidden matrices of the published LLaMAs: number, width, width of the MLP.
SHAPES = {
    "tiny": (2, 64, 172),
    "60m": (8, 512, 1376),
    "130m": (12, 768, 2048),
    "350m": (24, 1024, 2736),
    "1b": (24, 2048, 5461),
}


def main() -> None:
    """Print the machine and a row a size and number of ranks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=SHAPES, default=["60m"])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    print(f"{machine(torch.device(args.device))}, torch {torch.__version__}, {args.repeats} repeats\n")
    print(f"| {' | '.join(COLUMNS)} |")
    print("|---" * len(COLUMNS) + "|")
    for size in args.sizes:
        for ranks in args.ranks:
            print(outcome(size, lambda size=size, ranks=ranks: row(size, ranks, args)), flush=True)


def row(size: str, ranks: int, args: argparse.Namespace) -> str:
    """A line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run_rank, (ranks, folder, size, args), nprocs=ranks)
        found = [torch.load(Path(folder) / str(rank)) for rank in range(ranks)]
    gathered, owners = torch.stack([seconds for seconds, _ in found]).amax(0).tolist()
    bytes_of = [max(own[way] for _, own in found) / 1e6 for way in (0, 1)]
    ratio = statistics.median(one / other for one, other in zip(gathered, owners, strict=True))
    return (
        f"| {size}: {len(matrices_of(size))} | {ranks} | {statistics.median(gathered):.3f} "
        f"| {statistics.median(owners):.3f} | {ratio:.2f} | {bytes_of[0]:.1f} | {bytes_of[1]:.1f} |"
    )


def matrices_of(size: str) -> list[tuple[int, int]]:
    """Shapes of the hidden matrices."""
    layers, width, mlp = SHAPES[size]
    return [*[(width, width)] * 4, *[(mlp, width)] * 2, (width, mlp)] * layers


def run_rank(rank: int, ranks: int, folder: str, size: str, args: argparse.Namespace) -> None:
    """Both ways in turn, on one rank; the first turns warm up."""
    with joined(rank, ranks, folder, args.device):
        models = [sharded(matrices_of(size), args.device) for _ in range(2)]
        optimizers = [Gathered(groups_of(models[0])), ShardedMuon(groups_of(models[1]), RATE, DECAY)]
        seconds = torch.zeros(2, args.repeats + WARM_UP, dtype=torch.float64)
        for repeat in range(args.repeats + WARM_UP):
            for way in (0, 1) if repeat % 2 == 0 else (1, 0):
                seconds[way, repeat] = timed(optimizers[way], args.device)
        for one, other in zip(*(list(model.parameters()) for model in models), strict=True):
            torch.testing.assert_close(
                one.to_local(), other.to_local(), rtol=0, atol=0 if args.device == "cpu" else 1e-2
            )
        received = [optimizers[0].bytes_received, received_by(optimizers[1], args.repeats + WARM_UP)]
        torch.save((seconds[:, WARM_UP:], received), Path(folder) / str(rank))


def sharded(shapes: Sequence[tuple[int, int]], device: str) -> nn.Module:
    """Matrices under FSDP2, with gradients; equal in both ways."""
    generator = torch.Generator().manual_seed(0)
    model = nn.ParameterList(nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes)
    model.to(device)
    fully_shard(model, mesh=init_device_mesh(device, (dist.get_world_size(),)))
    for own in model.parameters():
        whole = torch.randn(own.shape, generator=generator).to(device)
        own.grad = distribute_tensor(whole, own.device_mesh, own.placements, src_data_rank=None)
    return model


def groups_of(model: nn.Module) -> list[dict[str, object]]:
    """A group a matrix, as decays of their own need."""
    return [{"params": [own], "weight_decay": DECAY} for own in model.parameters()]


def timed(optimizer: torch.optim.Optimizer, device: str) -> float:
    """Seconds of a step."""
    dist.barrier()
    start = time.perf_counter()
    optimizer.step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


class Gathered(torch.optim.Optimizer):
    """Muon of which every rank does all: it gathers each matrix, and loops torch's own iteration."""

    def __init__(self, params: list[dict[str, object]]) -> None:
        super().__init__(params, {"lr": RATE})
        self.bytes_received = 0

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One update."""
        self.bytes_received = 0
        for group in self.param_groups:
            for own in group["params"]:
                own.mul_(1 - group["lr"] * group["weight_decay"])
                own.add_(self._update(own), alpha=-_adjust_lr(group["lr"], "original", own.shape))

    def _update(self, own: DTensor) -> Tensor:
        buffer = self.state[own].setdefault("momentum", torch.zeros_like(own))
        buffer.lerp_(own.grad, 1 - MOMENTUM)
        mixed = own.grad.lerp(buffer, MOMENTUM).bfloat16()
        whole = mixed.full_tensor()  # (m, n)
        self.bytes_received += whole.nbytes - mixed.to_local().nbytes
        made = _zeropower_via_newtonschulz(whole, COEFFICIENTS, STEPS, EPS)
        return distribute_tensor(made, own.device_mesh, own.placements, src_data_rank=None)


def received_by(optimizer: ShardedMuon, steps: int) -> float:
    """Bytes of a step, there and back."""
    ((owners, _),) = optimizer._places
    there, back = owners.bytes_received
    return there + back / steps


if __name__ == "__main__":
    main()
