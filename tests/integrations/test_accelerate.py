"""accelerate's loop with two lines more: the decays of our own loop, with accumulation and after a resume."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from alphadecay_dist import UserError, attach, param_groups
from alphadecay_dist.integrations.accelerate import AcceleratedDecay
from tests.integrations.hosts import (
    ACCUMULATION,
    BASE,
    CLIP,
    RATE,
    SETTINGS,
    UPDATES,
    ZERO,
    decays_of,
    plain_run,
    require_same,
    serve_ranks_without_gpus,
    texts_for,
    tiny_model,
    weights_of,
    zero_run,
)
from tests.models import Blocks
from tests.multirank import run_ranks

pytestmark = [pytest.mark.ranks, pytest.mark.launcher]


def accelerator_for(engine):
    if engine in ("plain", "ddp"):
        return Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATION)
    serve_ranks_without_gpus()
    if engine == "fsdp2":
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
        )
        return Accelerator(fsdp_plugin=plugin, gradient_accumulation_steps=ACCUMULATION)
    config = {**ZERO, "gradient_clipping": CLIP, "zero_optimization": {"stage": int(engine[-1])}}
    return Accelerator(deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=config))


def of_groups(model):
    return [torch.optim.AdamW(param_groups(model, weight_decay=BASE), lr=RATE)]


def of_two(model):
    """Tuned weights in both of them."""
    groups = param_groups(model, weight_decay=BASE)
    return [torch.optim.AdamW(groups[::2], lr=RATE), torch.optim.AdamW(groups[1::2], lr=RATE)]


def of_another(model):
    """One that knew nothing of us."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=BASE)
    attach(model, optimizer)
    return [optimizer]


class Loop:
    """A user's loop."""

    def __init__(self, engine, policy, make):
        self.accelerator = accelerator_for(engine)
        model = tiny_model()
        loader = DataLoader(texts_for(dist.get_world_size()), batch_size=1)
        prepared = self.accelerator.prepare(model, loader, *make(model))
        self.model, self.loader, *self.optimizers = prepared
        self.decay = AcceleratedDecay(
            self.accelerator, self.model, self.optimizers, policy=policy, weight_decay=BASE, **SETTINGS
        )

    def train(self, batches):
        refreshed = []
        for batch in batches:
            with self.accelerator.accumulate(self.model):
                self.accelerator.backward(self.model(**batch).loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), CLIP)
                refresh = self.decay.step()
                for optimizer in self.optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
            refreshed += [refresh.step] if refresh else []
        return refreshed

    def found(self):
        model = self.accelerator.unwrap_model(self.model)
        return decays_of(self.decay.decay), weights_of(model)


def check(engine, folder, policy, make, expected):
    loop = Loop(engine, policy, make)
    parameter = next(loop.model.parameters())
    assert loop.accelerator.num_processes == dist.get_world_size()
    assert isinstance(parameter, DTensor) == (engine == "fsdp2")
    assert hasattr(parameter, "ds_id") == (engine == "zero3")
    batches = list(loop.loader)
    assert len(batches) == ACCUMULATION * UPDATES
    first = loop.train(batches[: ACCUMULATION * 5])
    saves = engine != "fsdp2" or len(loop.optimizers) == 1  # accelerate's own limit: an optimizer a model
    if saves:
        loop.accelerator.save_state(folder)
    assert first + loop.train(batches[ACCUMULATION * 5 :]) == [0, 3, 6, 9]
    whole = loop.found()
    if saves:
        loop.accelerator.load_state(folder)
        assert loop.train(batches[ACCUMULATION * 5 :]) == [6, 9]
        require_same(loop.found(), whole)
    require_same(whole, zero_run(3) if expected is None else expected)


@pytest.mark.parametrize(
    ("engine", "ranks", "policy", "make"),
    [
        ("plain", 1, "alphadecay", of_groups),
        ("ddp", 2, "adadecay", of_two),
        ("fsdp2", 2, "alphadecay", of_groups),
        ("fsdp2", 2, "alphadecay", of_two),
        ("zero2", 2, "adadecay", of_another),
        ("zero3", 2, "alphadecay", of_groups),
    ],
)
def test_the_loop_has_the_decays_of_our_own(tmp_path, engine, ranks, policy, make):
    expected = plain_run(ranks, policy) if engine != "zero3" else None
    run_ranks(check, ranks, engine, str(tmp_path), policy, make, expected)


def test_an_optimizer_and_a_schedule_may_be_attached_to_as_prepare_returned_them():
    accelerator = Accelerator(cpu=True)
    model = Blocks()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=BASE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, UPDATES)
    model, wrapped, wrapped_schedule = accelerator.prepare(model, optimizer, schedule)
    assert wrapped is not optimizer
    assert wrapped_schedule is not schedule
    attach(model, wrapped, schedulers=[wrapped_schedule])
    assert schedule.base_lrs == [RATE] * 4
    AcceleratedDecay(accelerator, model, wrapped, weight_decay=BASE, **SETTINGS).decay.refresh()
    accelerator.backward(model(torch.ones(4, 64)))
    wrapped.step()
    wrapped_schedule.step()
    assert len({group["weight_decay"] for group in optimizer.param_groups}) == 4  # the rest has the base
    assert len({group["lr"] for group in optimizer.param_groups}) == 1


def scale_losses(accelerator):
    """Let an accelerator on CPUs scale losses, as it does for fp16 on GPUs alone."""
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    accelerator.native_amp, accelerator.state._mixed_precision = True, "fp16"


@pytest.mark.parametrize("clipped", [True, False])
def test_a_policy_reads_gradients_without_the_loss_scale(clipped):
    model = Blocks()
    found = []
    for scaled in (False, True):
        accelerator = Accelerator(cpu=True)
        if scaled:
            scale_losses(accelerator)
        own = copy.deepcopy(model)
        optimizer = torch.optim.AdamW(param_groups(own, weight_decay=BASE), lr=RATE)
        own, optimizer = accelerator.prepare(own, optimizer)
        decay = AcceleratedDecay(accelerator, own, [optimizer], policy="awd", weight_decay=BASE)
        accelerator.backward(own(torch.ones(4, 64)))
        if clipped:
            accelerator.clip_grad_norm_(own.parameters(), 1e9)
        decay.step()
        optimizer.step()
        found.append(decays_of(decay.decay))
        AcceleratorState._reset_state(reset_partial_state=True)
    assert found[1] == pytest.approx(found[0], rel=0.02)  # fp16 rounds, and a scale is 1024


def fsdp_on_cpus():
    accelerator = Accelerator(cpu=True, fsdp_plugin=FullyShardedDataParallelPlugin(fsdp_version=2))
    model = tiny_model()
    optimizer = torch.optim.AdamW(param_groups(model, weight_decay=BASE), lr=RATE)
    with pytest.warns(UserWarning, match="accelerate: FSDP was asked for, but one process is running, as on"):
        AcceleratedDecay(accelerator, *accelerator.prepare(model, optimizer), weight_decay=BASE)


def test_a_warning_says_that_fsdp_was_asked_for_and_does_not_run():
    run_ranks(fsdp_on_cpus, 1)


def test_what_is_no_accelerator_is_named():
    with pytest.raises(UserError, match=r"accelerator: found LlamaForCausalLM, expected an accelerate"):
        AcceleratedDecay(tiny_model(), None, None, weight_decay=BASE)
