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
from tests.multirank import run_ranks

pytestmark = [pytest.mark.ranks, pytest.mark.launcher]

FSDP2 = {
    "fsdp_version": 2,
    "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
    "reshard_after_forward": True,
}
ENGINES = {
    "plain": {"use_cpu": True},
    "ddp": {"use_cpu": True},
    "fsdp2": {"fsdp": "full_shard auto_wrap", "fsdp_config": FSDP2},
    "zero1": {"deepspeed": {**ZERO, "gradient_clipping": "auto", "zero_optimization": {"stage": 1}}},
    "zero2": {"deepspeed": {**ZERO, "gradient_clipping": "auto", "zero_optimization": {"stage": 2}}},
    "zero3": {"deepspeed": {**ZERO, "gradient_clipping": "auto", "zero_optimization": {"stage": 3}}},
}


class InOrder(Trainer):
    """The samples in their order, so that a plain loop can take the same."""

    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(self.train_dataset)


def arguments(engine, folder, updates=UPDATES, clip=CLIP, **options):
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=ACCUMULATION,
        max_steps=updates,
        learning_rate=RATE,
        weight_decay=BASE,
        max_grad_norm=clip,
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


def trained(engine, folder, policy="alphadecay", *, resumed=False, updates=UPDATES, clip=CLIP):
    """Decays and weights, and the history that was logged."""
    if engine not in ("plain", "ddp"):
        serve_ranks_without_gpus()
    ranks = dist.get_world_size()
    trainer = InOrder(tiny_model(), arguments(engine, folder, updates, clip), train_dataset=texts_for(ranks))
    callback = AlphaDecayCallback(trainer, policy=policy, **SETTINGS)
    trainer.train(resume_from_checkpoint=resumed or None)
    _check_engine(engine, trainer)
    return (decays_of(callback.decay), weights_of(trainer.model)), trainer.state.log_history


def _check_engine(engine, trainer):
    assert trainer.accelerator.num_processes == dist.get_world_size()
    assert trainer.is_deepspeed_enabled == engine.startswith("zero")
    parameter = next(trainer.model.parameters())
    assert isinstance(parameter, DTensor) == (engine == "fsdp2")
    assert hasattr(parameter, "ds_id") == (engine == "zero3")


def check(engine, folder, policy, expected, clip):
    whole, history = trained(engine, Path(folder) / "whole", policy, clip=clip)
    if policy == "alphadecay":
        steps = [line["step"] for line in history if "alpha/q" in line]
        assert len(steps) == 4
        assert [line["weight_decay/down"] for line in history if "weight_decay/down" in line]
    parts = Path(folder) / "parts"
    trained(engine, parts, policy, updates=5, clip=clip)
    again, _ = trained(engine, parts, policy, resumed=True, clip=clip)
    require_same(again, whole)
    require_same(whole, zero_run(3, clip) if expected is None else expected)


@pytest.mark.parametrize(
    ("engine", "ranks"), [("plain", 1), ("ddp", 2), ("fsdp2", 2), ("zero1", 2), ("zero2", 2), ("zero3", 2)]
)
def test_the_trainer_has_the_decays_of_our_own_loop_and_resumes_them(tmp_path, engine, ranks):
    clip = 0 if engine in ("zero1", "zero2") else CLIP  # DeepSpeed adds the norms in another order
    expected = plain_run(ranks, clip=clip, reduced_each=engine == "zero2") if engine != "zero3" else None
    run_ranks(check, ranks, engine, str(tmp_path), "alphadecay", expected, clip)


@pytest.mark.parametrize(("engine", "ranks"), [("ddp", 2), ("zero2", 2)])
def test_a_policy_that_reads_gradients_is_never_one_update_late(tmp_path, engine, ranks):
    run_ranks(check, ranks, engine, str(tmp_path), "adadecay", plain_run(ranks, "adadecay"), CLIP)


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
