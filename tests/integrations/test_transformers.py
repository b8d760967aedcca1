"""transformers' Trainer with one line more: the decays of our own loop, on every engine that it has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments

from alphadecay_dist import UserError
from alphadecay_dist.integrations.transformers import AlphaDecayCallback
from tests.integrations.hosts import (
    ACCUMULATION,
    BASE,
    CLIP,
    RATE,
    SETTINGS,
    UPDATES,
    decays_of,
    plain_run,
    serve_ranks_without_gpus,
    texts_for,
    tiny_model,
)
from tests.multirank import run_ranks

pytestmark = [pytest.mark.ranks, pytest.mark.launcher]

ZERO = {
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "zero_force_ds_cpu_optimizer": False,
}
FSDP2 = {
    "fsdp_version": 2,
    "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
    "reshard_after_forward": True,
}
ENGINES = {
    "plain": {"use_cpu": True},
    "ddp": {"use_cpu": True},
    "fsdp2": {"fsdp": "full_shard auto_wrap", "fsdp_config": FSDP2},
    "zero1": {"deepspeed": {**ZERO, "zero_optimization": {"stage": 1}}},
    "zero2": {"deepspeed": {**ZERO, "zero_optimization": {"stage": 2}}},
    "zero3": {"deepspeed": {**ZERO, "zero_optimization": {"stage": 3}}},
}


class InOrder(Trainer):
    """The samples in their order, so that a plain loop can take the same."""

    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(self.train_dataset)


def arguments(engine, folder, updates=UPDATES, **options):
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=ACCUMULATION,
        max_steps=updates,
        learning_rate=RATE,
        weight_decay=BASE,
        max_grad_norm=CLIP,
        lr_scheduler_type="constant",
        optim="adamw_torch",
        adam_beta2=0.999,
        logging_steps=1,
        save_strategy="steps",
        save_steps=5,
        report_to=[],
        disable_tqdm=True,
        **ENGINES[engine],
        **options,
    )


def trained(engine, folder, policy="alphadecay", *, resumed=False, updates=UPDATES, **options):
    """Decays, the history that was logged, and what tells the engine."""
    if engine not in ("plain", "ddp"):
        serve_ranks_without_gpus()
    ranks = dist.get_world_size()
    trainer = InOrder(tiny_model(), arguments(engine, folder, updates), train_dataset=texts_for(ranks))
    callback = AlphaDecayCallback(trainer, policy=policy, **{**SETTINGS, **options})
    trainer.train(resume_from_checkpoint=resumed or None)
    assert callback.decay is not None
    _check_engine(engine, trainer)
    return decays_of(callback.decay), trainer.state.log_history, _weight(trainer)


def _check_engine(engine, trainer):
    assert trainer.accelerator.num_processes == dist.get_world_size()
    assert trainer.is_deepspeed_enabled == engine.startswith("zero")
    parameter = next(trainer.model.parameters())
    assert isinstance(parameter, DTensor) == (engine == "fsdp2")
    assert hasattr(parameter, "ds_id") == (engine == "zero3")


def _weight(trainer):
    parameter = dict(trainer.model.named_parameters())["model.layers.0.mlp.down_proj.weight"]
    if isinstance(parameter, DTensor):
        return parameter.full_tensor().detach()
    if hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()
    return parameter.detach().clone()


def check(engine, folder, policy, expected, weights):
    decays, history, weight = trained(engine, Path(folder) / "whole", policy)
    for name, decay in expected.items():
        assert decays[name] == pytest.approx(decay, rel=1e-5), name
    torch.testing.assert_close(weight, weights["model.layers.0.mlp.down_proj.weight"], rtol=1e-4, atol=1e-6)
    if policy == "alphadecay":
        steps = [line["step"] for line in history if "alpha/q" in line]
        assert len(steps) == 4
        assert [line["weight_decay/down"] for line in history if "weight_decay/down" in line]
    parts = Path(folder) / "parts"
    trained(engine, parts, policy, updates=5)
    again, _, after = trained(engine, parts, policy, resumed=True)
    assert again == pytest.approx(decays, rel=1e-6)
    torch.testing.assert_close(after, weight, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("engine", "ranks"), [("plain", 1), ("ddp", 2), ("fsdp2", 2), ("zero1", 2), ("zero2", 2), ("zero3", 2)]
)
def test_the_trainer_has_the_decays_of_our_own_loop_and_resumes_them(tmp_path, engine, ranks):
    run_ranks(check, ranks, engine, str(tmp_path), "alphadecay", *plain_run(ranks))


@pytest.mark.parametrize(("engine", "ranks"), [("ddp", 2), ("zero2", 2)])
def test_a_policy_that_reads_gradients_is_never_one_update_late(tmp_path, engine, ranks):
    run_ranks(check, ranks, engine, str(tmp_path), "adadecay", *plain_run(ranks, "adadecay"))


def test_what_the_trainer_cannot_have_is_named(tmp_path):
    args = arguments("plain", tmp_path)
    optimizer = torch.optim.SGD(tiny_model().parameters(), lr=0.1)
    with pytest.raises(UserError, match=r"trainer: has an optimizer already; let AlphaDecayCallback"):
        AlphaDecayCallback(Trainer(tiny_model(), args, optimizers=(optimizer, None)), interval=3)
    with pytest.raises(UserError, match=r"trainer: found dict, expected a transformers\.Trainer"):
        AlphaDecayCallback({}, interval=3)
    with pytest.raises(UserError, match="restore_callback_states_from_checkpoint: found True"):
        AlphaDecayCallback.from_state({"args": {}, "attributes": {}})


def test_the_state_is_json_in_the_trainers_file(tmp_path):
    trainer = InOrder(tiny_model(), arguments("plain", tmp_path, updates=5), train_dataset=texts_for(1))
    AlphaDecayCallback(trainer, **SETTINGS)
    trainer.train()
    state = json.loads((tmp_path / "checkpoint-5" / "trainer_state.json").read_text())
    saved = state["stateful_callbacks"]["AlphaDecayCallback"]["attributes"]["saved"]
    assert json.loads(saved["alphadecay"])["step"] == 5


def test_what_is_named_gets_no_decay_and_stays(tmp_path):
    trainer = InOrder(tiny_model(), arguments("plain", tmp_path, updates=1), train_dataset=texts_for(1))
    AlphaDecayCallback(trainer, no_decay=["*norm*"], **SETTINGS)
    trainer.train()
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    groups = trainer.optimizer.optimizer.param_groups
    free = {names[id(own)] for group in groups if group["weight_decay"] == 0 for own in group["params"]}
    assert free == {name for name in names.values() if "norm" in name}
    assert len(free) == 5
