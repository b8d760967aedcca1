"""A tiny LLaMA, texts of equal length, and the same training in a plain loop; hosts on ranks without GPUs."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
import transformers as hf
from torch.utils.data import Dataset

from alphadecay_dist import AlphaDecay, param_groups
from tests.models import LAYERS, LLAMA

UPDATES, ACCUMULATION, INTERVAL = 12, 2, 3
BASE, RATE, CLIP = 0.1, 1e-3, 1.0
SETTINGS = {"interval": INTERVAL, "min_ratio": 0.5, "max_ratio": 3.0}
LENGTH = 16


def tiny_model():
    """The same on every rank; weights of a size at which an update is seen."""
    torch.manual_seed(0)
    config = hf.LlamaConfig(**LLAMA, **LAYERS, initializer_range=0.1, use_cache=False)
    return hf.LlamaForCausalLM(config)


class Texts(Dataset):
    """As many samples as a run takes; each of another text."""

    def __init__(self, count):
        generator = torch.Generator().manual_seed(1)
        self._ids = torch.randint(3, LAYERS["vocab_size"], (count, LENGTH), generator=generator)

    def __len__(self):
        return len(self._ids)

    def __getitem__(self, place):
        return {"input_ids": self._ids[place], "labels": self._ids[place]}


def texts_for(ranks):
    return Texts(UPDATES * ACCUMULATION * ranks)


def plain_run(ranks, policy="alphadecay", updates=UPDATES, clip=CLIP, **options):
    """Our own loop in one process, on what so many ranks would see.

    Returns:
        The decay of each module and the weights at the end.
    """
    model, texts = tiny_model(), texts_for(ranks)
    optimizer = torch.optim.AdamW(param_groups(model, weight_decay=BASE), lr=RATE)
    decay = AlphaDecay(model, optimizer, policy=policy, weight_decay=BASE, **{**SETTINGS, **options})
    per_update = ACCUMULATION * ranks
    for update in range(updates):
        for place in range(per_update * update, per_update * (update + 1)):
            sample = {name: ids[None] for name, ids in texts[place].items()}
            (model(**sample).loss / per_update).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        decay.step()
        optimizer.step()
        optimizer.zero_grad()
    return decays_of(decay), {name: p.detach().clone() for name, p in model.named_parameters()}


def decays_of(decay):
    return {name: module.weight_decay for name, module in decay.modules.items()}


def serve_ranks_without_gpus():
    """Let accelerate take ranks on CPUs as it takes ranks on GPUs; with ``use_cpu`` it knows DDP alone."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    if dist.get_world_size() > 1:
        PartialState._prepare_backend = lambda self, *_, **__: ("gloo", DistributedType.MULTI_GPU)
