"""Lightning with a callback: the decays of our own loop, with accumulation and after a resume."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from alphadecay_dist import AlphaDecay, UserError, attach, param_groups
from alphadecay_dist.integrations.lightning import AlphaDecayCallback
from tests.integrations.hosts import (
    ACCUMULATION,
    BASE,
    RATE,
    SETTINGS,
    UPDATES,
    decays_of,
    plain_run,
    require_same,
    texts_for,
    tiny_model,
    weights_of,
)
from tests.models import Blocks
from tests.multirank import run_ranks

pytestmark = [pytest.mark.ranks, pytest.mark.launcher, pytest.mark.filterwarnings("ignore")]


class Model(LightningModule):
    """A user's module."""

    def __init__(self, sharded=False):
        super().__init__()
        self._sharded = sharded
        self.net = tiny_model()

    def configure_model(self):
        if self._sharded and not isinstance(next(self.net.parameters()), DTensor):
            mesh = self.device_mesh["data_parallel"]
            for layer in self.net.model.layers:
                fully_shard(layer, mesh=mesh)
            fully_shard(self.net, mesh=mesh)

    def training_step(self, batch, batch_idx):
        return self.net(**batch).loss

    def validation_step(self, batch, batch_idx):
        return self.net(**batch).loss

    def configure_optimizers(self):
        return torch.optim.AdamW(param_groups(self, weight_decay=BASE), lr=RATE)


class ByHand(Model):
    """One that steps two optimizers itself, with tuned weights in both."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self._losses = []

    def configure_optimizers(self):
        groups = param_groups(self, weight_decay=BASE)
        return [torch.optim.AdamW(groups[::2], lr=RATE), torch.optim.AdamW(groups[1::2], lr=RATE)]

    def training_step(self, batch, batch_idx):
        self._losses.append(super().training_step(batch, batch_idx))
        if len(self._losses) == ACCUMULATION:  # one backward: DDP would reduce in each
            self.manual_backward(sum(self._losses) / ACCUMULATION)
            self._losses = []
            one_first = batch_idx % (2 * ACCUMULATION) == 1  # now one is first, now the other
            for optimizer in self.optimizers() if one_first else reversed(self.optimizers()):
                optimizer.step()
                optimizer.zero_grad()


class Samples:
    """A rank's samples in their order, and where in them a run is: Lightning saves and loads that."""

    def __init__(self):
        self._texts, self._at = texts_for(dist.get_world_size()), 0

    def __len__(self):
        return len(self._texts) // dist.get_world_size()

    def __iter__(self):
        while self._at < len(self):
            place = self._at * dist.get_world_size() + dist.get_rank()
            self._at += 1
            yield {name: ids[None] for name, ids in self._texts[place].items()}

    def state_dict(self):
        return {"at": self._at}

    def load_state_dict(self, state):
        self._at = state["at"]


def strategy_for(engine):
    if engine == "ddp":
        return DDPStrategy(process_group_backend="gloo", cluster_environment=TorchElasticEnvironment())
    strategy = ModelParallelStrategy(data_parallel_size=dist.get_world_size(), tensor_parallel_size=1)
    strategy.cluster_environment = TorchElasticEnvironment()
    return strategy


def fit(
    engine, folder, updates=UPDATES, checkpoint=None, by_hand=False, clip=None, validated=None, **options
):
    callback = AlphaDecayCallback(weight_decay=BASE, **{**SETTINGS, **options})
    trainer = Trainer(
        accelerator="cpu",
        devices=dist.get_world_size(),
        strategy=strategy_for(engine) if engine != "plain" else "auto",
        max_steps=updates * (2 if by_hand else 1),
        accumulate_grad_batches=1 if by_hand else ACCUMULATION,
        gradient_clip_val=clip,
        callbacks=[callback],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    model = ByHand() if by_hand else Model(sharded=engine == "fsdp2")
    if validated is not None:
        trainer.validate(model, Samples(), ckpt_path=validated, verbose=False, weights_only=False)
    trainer.fit(model, Samples(), ckpt_path=checkpoint)
    assert isinstance(next(model.parameters()), DTensor) == (engine == "fsdp2")
    assert trainer.world_size == dist.get_world_size()
    return trainer, (decays_of(callback.decay), weights_of(model))


def check(engine, folder, by_hand, expected):
    _, whole = fit(engine, folder, by_hand=by_hand)
    require_same(whole, expected)
    trainer, _ = fit(engine, folder, updates=5, by_hand=by_hand)
    checkpoint = f"{folder}/five.ckpt"
    trainer.save_checkpoint(checkpoint)
    _, again = fit(engine, folder, checkpoint=checkpoint, by_hand=by_hand)
    require_same(again, expected)


@pytest.mark.parametrize(
    ("engine", "ranks", "by_hand"),
    [("plain", 1, False), ("plain", 1, True), ("ddp", 2, False), ("ddp", 2, True), ("fsdp2", 2, False)],
)
def test_lightning_has_the_decays_of_our_own_loop_and_resumes_them(tmp_path, engine, ranks, by_hand):
    expected = plain_run(ranks, clip=0, reduced_each=engine == "fsdp2")
    run_ranks(check, ranks, engine, str(tmp_path), by_hand, expected)


def test_lightnings_wrapper_of_an_optimizer_stands_for_it():
    model = Blocks()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=BASE)
    attach(model, LightningOptimizer(optimizer))
    AlphaDecay(model, [LightningOptimizer(optimizer)], weight_decay=BASE, cautious=True, **SETTINGS).refresh()
    assert len({group["weight_decay"] for group in optimizer.param_groups}) == 4  # the rest has the base
    before = model.blocks[0][0].weight.detach().clone()
    model(torch.ones(4, 64)).backward()
    model.blocks[0][0].weight.grad.zero_()
    optimizer.step()  # the hooks are the optimizer's own
    decay = optimizer.param_groups[0]["weight_decay"]
    torch.testing.assert_close(model.blocks[0][0].weight, before * (1 - RATE * decay))


def validated_before(folder):
    trainer, (decays, _) = fit("plain", folder, updates=4)
    trainer.save_checkpoint(f"{folder}/four.ckpt")
    validated, (again, _) = fit("plain", folder, updates=1, validated=f"{folder}/four.ckpt")
    assert "1 updates counted, last refresh before update 0" in repr(validated.callbacks[0].decay)
    assert again != decays  # of the weights that were loaded, which are new ones


def refused(folder):
    with pytest.raises(UserError, match=r"policy: 'adadecay' reads gradients, which Lightning clips later"):
        fit("plain", folder, clip=1.0, policy="adadecay")
    with pytest.raises(UserError, match=r"optimizer\.step\(closure\): not with policy 'llr'"):
        fit("plain", folder, policy="llr")


def each_of(functions, folder):
    for function in functions:
        function(folder)


def test_what_would_come_too_late_is_refused_and_validated_weights_begin_anew(tmp_path):
    run_ranks(each_of, 1, (refused, validated_before), str(tmp_path))
