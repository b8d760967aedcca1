"""torchtitan's own containers and checkpoints: the decays of our own loop, and what loading demands."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from alphadecay_dist import UserError
from alphadecay_dist.integrations.torchtitan import TitanDecay
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
from tests.multirank import run_ranks

pytest.importorskip("torchtitan", reason="torchtitan is not installed (docs/hosts.md)")
pytestmark = [pytest.mark.ranks, pytest.mark.launcher]


class Metrics:
    """A sink of the trainer's metrics."""

    def __init__(self):
        self.logged = []

    def log(self, metrics, step):
        self.logged.append((step, metrics))


@dataclass
class Data:
    """Where in the data a run is, in its checkpoints."""

    at: int = 0

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


@dataclass
class Loop:
    """The parts of torchtitan's Trainer that this needs, in the order of its ``__init__`` and ``train_step``.

    Args:
        folder: of its checkpoints.
        spec: what a ``ModelSpec`` calls once the optimizers are made.
        exclude: from loading.
    """

    folder: str
    spec: SimpleNamespace
    exclude: tuple[str, ...] = ()
    step: int = 0
    data: Data = field(default_factory=Data)

    def __post_init__(self):
        from torchtitan.components.checkpoint import CheckpointManager
        from torchtitan.components.optimizer import (
            LRSchedulersContainer,
            OptimizersContainer,
            ParamGroupConfig,
        )

        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        self.model = tiny_model()
        for layer in self.model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        kwargs = {"lr": RATE, "weight_decay": BASE, "betas": (0.9, 0.999)}
        groups = [ParamGroupConfig(pattern=".*", optimizer_name="AdamW", optimizer_kwargs=kwargs)]
        config = OptimizersContainer.Config(param_groups=groups, implementation="for-loop")
        self.optimizers = config.build(model_parts=[self.model])
        if self.spec.post_optimizer_build_fn is not None:
            dims = SimpleNamespace(pp_enabled=False)
            self.spec.post_optimizer_build_fn(self.optimizers, [self.model], dims)
        schedule = LRSchedulersContainer.Config(warmup_steps=0, decay_ratio=0.0)
        self.lr_schedulers = schedule.build(optimizers=self.optimizers, training_steps=UPDATES)
        self.metrics_processor = SimpleNamespace(logger=Metrics())
        checkpoint = CheckpointManager.Config(
            enable=True,
            folder="checkpoint",
            interval=5,
            last_save_model_only=False,
            exclude_from_loading=list(self.exclude),
        )
        self.checkpointer = checkpoint.build(
            dataloader=self.data,
            model_parts=[self.model],
            optimizers=self.optimizers,
            lr_schedulers=self.lr_schedulers,
            states={"train_state": self},
            sd_adapter=None,
            base_folder=self.folder,
        )

    def train(self, updates=UPDATES):
        self.checkpointer.load(step=-1)
        texts, ranks, rank = texts_for(dist.get_world_size()), dist.get_world_size(), dist.get_rank()
        while self.step < updates:
            self.step += 1
            self.optimizers.zero_grad()
            for _ in range(ACCUMULATION):
                sample = texts[self.data.at * ranks + rank]
                (
                    self.model(**{name: ids[None] for name, ids in sample.items()}).loss / ACCUMULATION
                ).backward()
                self.data.at += 1
            self.optimizers.step()
            self.lr_schedulers.step()
            self.checkpointer.save(self.step, last_step=self.step == updates)

    @property
    def refreshed(self):
        return [step for step, metrics in self.metrics_processor.logger.logged if "alpha/q" in metrics]

    def state_dict(self):
        return {"step": self.step}

    def load_state_dict(self, state):
        self.step = state["step"]


def begun(folder, exclude=(), **options):
    """A run with AlphaDecay, as a user's script makes it, and what a user keeps of it."""
    decay, spec = TitanDecay(**SETTINGS, **options), SimpleNamespace(post_optimizer_build_fn=None)
    decay.add_to(spec)
    loop = Loop(folder, spec, exclude)
    decay.join(loop)
    return loop, decay


def trained(folder, updates=UPDATES):
    loop, decay = begun(folder)
    loop.train(updates)
    return loop, (decays_of(decay.decay), weights_of(loop.model))


def check(folder, expected):
    whole, found = trained(f"{folder}/whole")
    assert isinstance(next(whole.model.parameters()), DTensor)
    require_same(found, expected)
    assert whole.refreshed == [1, 4, 7, 10]
    trained(f"{folder}/parts", updates=5)
    resumed, found = trained(f"{folder}/parts")
    require_same(found, expected)
    assert resumed.refreshed == [7, 10]


def test_torchtitan_has_the_decays_of_our_own_loop_and_resumes_them(tmp_path):
    run_ranks(check, 2, str(tmp_path), plain_run(2, clip=0, reduced_each=True))


WITHOUT = SimpleNamespace(post_optimizer_build_fn=None)


def checkpoints_of_others(folder):
    """A run that began without AlphaDecay, goes on with it, and without it again."""
    Loop(folder, WITHOUT).train(5)
    with pytest.raises(CheckpointException, match="alphadecay"):
        trained(folder, updates=7)
    taken, decay = begun(folder, exclude=("alphadecay",))
    taken.train(7)
    assert taken.refreshed == [6, 7]  # as it begins, and by the calendar
    assert json.loads(decay.state_dict()["alphadecay"])["step"] == 7
    Loop(folder, WITHOUT).train(8)


def step_that_makes_states(folder):
    """The inner optimizers' hooks, by which this policy acts, see torchtitan's own step."""
    loop, decay = begun(folder, policy="llr")
    before = weights_of(loop.model)
    loop.optimizers.state_dict()
    assert all(optimizer.state for optimizer in loop.optimizers)
    for name, weight in weights_of(loop.model).items():
        assert torch.equal(weight, before[name])
    assert json.loads(decay.state_dict()["alphadecay"])["step"] == 0
    loop.train(2)
    assert json.loads(decay.state_dict()["alphadecay"])["step"] == 2


def others(folder):
    checkpoints_of_others(f"{folder}/others")
    step_that_makes_states(f"{folder}/states")


def test_checkpoints_of_others_load_and_the_step_that_makes_states_is_not_counted(tmp_path):
    run_ranks(others, 1, str(tmp_path))


def test_what_cannot_be_served_is_named():
    with pytest.raises(UserError, match="pipeline_parallel_degree: found pipeline stages"):
        TitanDecay(**SETTINGS).build([], [tiny_model()], SimpleNamespace(pp_enabled=True))
    with pytest.raises(UserError, match="join: found no optimizers"):
        TitanDecay(**SETTINGS).join(SimpleNamespace())
    model = tiny_model()
    named = list(model.named_parameters())
    halves = [
        {"params": [p for _, p in some], "param_names": [name for name, _ in some], "weight_decay": decay}
        for some, decay in ((named[:4], 0.1), (named[4:], 0.2))
    ]
    with pytest.raises(UserError, match=r"weight_decay: found \[0\.1, 0\.2\] in the param groups"):
        TitanDecay(**SETTINGS).build([torch.optim.AdamW(halves)], [model], SimpleNamespace(pp_enabled=False))
