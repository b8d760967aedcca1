"""An update with a refresh on plain torch, DDP, FSDP2 and FSDP1: python -m tests.torch_alone

Needs torch and numpy and nothing else. Two ranks are forked here. Prints the seconds that the library's
import adds to torch's, and a line an engine; fails where anything was loaded that it can do without.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

WORLD_SIZE = 2
NOT_NEEDED = {
    *("accelerate", "datasets", "deepspeed", "huggingface_hub", "matplotlib", "pandas", "pyarrow"),
    *("safetensors", "scipy", "sentencepiece", "tokenizers", "transformers", "wandb", "yaml"),
}


def refresh_on(engine):
    """One update with a refresh; the tuned decays."""
    import torch
    from torch import nn
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    from alphadecay_dist import AlphaDecay, param_groups

    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.GELU()) for _ in range(3)))
    if engine == "DDP":
        model = nn.parallel.DistributedDataParallel(model)
    elif engine == "FSDP2":
        model = fully_shard(model, mesh=torch.distributed.init_device_mesh("cpu", (WORLD_SIZE,)))
    elif engine == "FSDP1":
        model = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
    optimizer = torch.optim.AdamW(param_groups(model, weight_decay=0.1), lr=1e-3)
    decay = AlphaDecay(model, optimizer, weight_decay=0.1, interval=1)
    model(torch.randn(4, 64)).square().mean().backward()
    refresh = decay.step()
    optimizer.step()
    return [module.weight_decay for module in refresh.modules.values()]


def run_rank(rank, folder):
    """Every engine on one of the ranks; each has the same decays."""
    import torch.distributed as dist

    warnings.simplefilter("ignore")  # FSDP1 is deprecated
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(WORLD_SIZE), "LOCAL_RANK": str(rank)}
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD_SIZE)
    expected = refresh_on("plain torch")
    assert len(set(expected)) == 3, f"decays of three matrices: {expected}"
    for engine in ("DDP", "FSDP2", "FSDP1"):
        assert refresh_on(engine) == expected, engine
        if rank == 0:
            print(f"{engine}: as in plain torch", flush=True)
    assert not NOT_NEEDED & sys.modules.keys(), sorted(NOT_NEEDED & sys.modules.keys())
    dist.barrier()
    os._exit(0)  # gloo threads can abort an orderly exit


def main():
    import torch

    before, begin = set(sys.modules), time.perf_counter()
    from alphadecay_dist import AlphaDecay, param_groups

    seconds = time.perf_counter() - begin
    added = {name.split(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
    print(
        f"torch {torch.__version__}: {AlphaDecay.__name__}, {param_groups.__name__} in {seconds:.2f} s more"
    )
    print(f"loaded with them: {', '.join(sorted(added))}", flush=True)
    forks = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        ranks = [forks.Process(target=run_rank, args=(rank, Path(folder))) for rank in range(WORLD_SIZE)]
        for own in ranks:
            own.start()
        for own in ranks:
            own.join()
    return max(abs(own.exitcode) for own in ranks)


if __name__ == "__main__":
    sys.exit(main())
