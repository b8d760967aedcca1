"""A tiny LLaMA, texts of equal length, and our own loop on them; hosts on ranks without GPUs.

Alpha feels the last bit of a weight, so decays are compared at 1e-6 with a loop that sums gradients in the
host's order. Only backward under ZeRO-3 adds in an order of its own: there our loop runs on DeepSpeed too.
"""

from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist
import transformers as hf
from torch.distributed.tensor import DTensor
from torch.utils.data import Dataset

from alphadecay_dist import AlphaDecay, ShardedMuon, param_groups
from alphadecay_dist.decay.policies import MATRIX_RATE, POLICIES
from alphadecay_dist.optimizers.pair import MuonWithAdamW
from tests.models import LAYERS, LLAMA

UPDATES, ACCUMULATION, INTERVAL = 12, 2, 3
BASE, RATE, CLIP = 0.1, 1e-3, 1.0
SETTINGS = {"interval": INTERVAL, "min_ratio": 0.5, "max_ratio": 3.0}
LENGTH = 16
ZERO = {
    "train_micro_batch_size_per_gpu": 1,
    "gradient_accumulation_steps": ACCUMULATION,
    "zero_force_ds_cpu_optimizer": False,
}


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


def adamw(groups):
    return torch.optim.AdamW(groups, lr=RATE)


def muon(groups):
    """Muon for the matrices of the policy, AdamW for the rest."""
    sides = [[own for own in groups if (own["module"] == "untuned") == rest] for rest in (False, True)]
    return MuonWithAdamW(ShardedMuon(sides[0], lr=10 * RATE), adamw(sides[1]))


def plain_run(ranks, policy="alphadecay", *, clip=CLIP, reduced_each=False, optimizer_of=adamw):
    """Our own loop in one process, on what so many ranks would see.

    Args:
        ranks: whose gradients are averaged.
        policy: of the decays.
        clip: norm to which gradients are clipped; 0 is none.
        reduced_each: average over the ranks after each micro-batch, not after the last one.
        optimizer_of: makes it of param groups.

    Returns:
        The decay of each module and the weights at the end.
    """
    model, texts = tiny_model(), texts_for(ranks)
    apart = POLICIES[policy].moves == MATRIX_RATE
    optimizer = optimizer_of(param_groups(model, weight_decay=BASE, matrices_apart=apart))
    decay = AlphaDecay(model, optimizer, policy=policy, weight_decay=BASE, **SETTINGS)
    for update in range(UPDATES):
        places = range(update * ACCUMULATION * ranks, (update + 1) * ACCUMULATION * ranks)
        found = [_gradients(model, texts[place]) for place in places]
        by_rank = [found[rank::ranks] for rank in range(ranks)]
        first = zip(*by_rank, strict=True) if reduced_each else by_rank
        sums = [[sum(own) for own in zip(*some, strict=True)] for some in first]
        for parameter, *gradients in zip(model.parameters(), *sums, strict=True):
            parameter.grad = sum(gradients) / len(places)
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip or float("inf"))
        decay.step()
        optimizer.step()
    return decays_of(decay), {name: p.detach().clone() for name, p in model.named_parameters()}


def _gradients(model, sample):
    """Of one micro-batch on one rank."""
    model.zero_grad()
    model(**{name: ids[None] for name, ids in sample.items()}).loss.backward()
    return [parameter.grad for parameter in model.parameters()]


def zero_run(stage, clip=CLIP):
    """Our own loop on DeepSpeed, on ranks: as :func:`plain_run`."""
    import deepspeed

    model, ranks = tiny_model(), dist.get_world_size()
    optimizer = torch.optim.AdamW(param_groups(model, weight_decay=BASE), lr=RATE)
    config = {**ZERO, "zero_optimization": {"stage": stage}, "gradient_clipping": clip}
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    decay = AlphaDecay(engine, optimizer, weight_decay=BASE, **SETTINGS)
    texts = texts_for(ranks)
    for micro in range(UPDATES * ACCUMULATION):
        sample = texts[micro * ranks + dist.get_rank()]
        engine.backward(engine(**{name: ids[None] for name, ids in sample.items()}).loss)
        decay.step()
        engine.step()
    return decays_of(decay), weights_of(model)


def weights_of(model):
    """The whole weights, on every rank, whatever holds them. Collective."""
    return {name: _whole(parameter) for name, parameter in model.named_parameters()}


def _whole(parameter):
    if isinstance(parameter, DTensor):
        return parameter.full_tensor().detach()
    if hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()
    return parameter.detach().clone()


def require_same(found, expected):
    """Decays and weights as expected; a decay that did not reach the weights is seen at these tolerances."""
    decays, weights = ({name.removeprefix("net."): own for name, own in part.items()} for part in found)
    none = {name for name, own in expected[0].items() if own is None}  # a policy that only watches has none
    assert {name for name, own in decays.items() if own is None} == none
    # A host that clips by the shards' norms sums in another order, and Adam spreads what that rounds off.
    assert {**decays, **dict.fromkeys(none, 0.0)} == pytest.approx(
        {**expected[0], **dict.fromkeys(none, 0.0)}, rel=2e-5
    )
    for name, weight in expected[1].items():
        torch.testing.assert_close(
            weights[name], weight, rtol=1e-5, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}"
        )


def decays_of(decay):
    return {name: module.weight_decay for name, module in decay.modules.items()}


def serve_ranks_without_gpus():
    """Let accelerate take ranks on CPUs as it takes ranks on GPUs; with ``use_cpu`` it knows DDP alone."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    if dist.get_world_size() > 1:
        PartialState._prepare_backend = lambda self, *_, **__: ("gloo", DistributedType.MULTI_GPU)
