"""transformers' Trainer with one line more: the decays of our own loop, on every engine that it has."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments

from alphadecay_dist import UserError
from alphadecay_dist.decay.policies import POLICIES
from alphadecay_dist.integrations.transformers import AlphaDecayCallback
from tests.integrations.hosts import (
    ACCUMULATION,
    BASE,
    CLIP,
    RATE,
    SETTINGS,
    UPDATES,
    ZERO,
    Texts,
    decays_of,
    muon,
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
        save_steps=5,
        report_to=[],
        disable_tqdm=True,
        **ENGINES[engine],
        **{"save_strategy": "steps", **options},
    )


def one_line(arguments, texts, **given):
    trainer = InOrder(tiny_model(), arguments, train_dataset=texts)
    return trainer, AlphaDecayCallback(trainer, **given)


def two_arguments(arguments, texts, make=None, **given):
    decay = AlphaDecayCallback(**given)
    optimizer = decay.optimizer(make) if make else decay.optimizer(torch.optim.AdamW, lr=RATE)
    trainer = InOrder(
        tiny_model(), arguments, train_dataset=texts, optimizer_cls_and_kwargs=optimizer, callbacks=[decay]
    )
    return trainer, decay


def with_muon(arguments, texts, **given):
    return two_arguments(arguments, texts, muon, **given)


def trained(engine, folder, policy="alphadecay", *, resumed=False, updates=UPDATES, clip=CLIP, made=one_line):
    """Decays and weights, and the history that was logged."""
    if engine not in ("plain", "ddp"):
        serve_ranks_without_gpus()
    texts = texts_for(dist.get_world_size())
    trainer, callback = made(arguments(engine, folder, updates, clip), texts, policy=policy, **SETTINGS)
    trainer.train(resume_from_checkpoint=resumed or None)
    _check_engine(engine, trainer)
    return (decays_of(callback.decay), weights_of(trainer.model)), trainer.state.log_history


def _check_engine(engine, trainer):
    assert trainer.accelerator.num_processes == dist.get_world_size()
    assert trainer.is_deepspeed_enabled == engine.startswith("zero")
    parameter = next(trainer.model.parameters())
    assert isinstance(parameter, DTensor) == (engine == "fsdp2")
    assert hasattr(parameter, "ds_id") == (engine == "zero3")


def check(engine, folder, policy, expected, clip, made=one_line):
    whole, history = trained(engine, Path(folder) / "whole", policy, clip=clip, made=made)
    if policy == "alphadecay":
        steps = [line["step"] for line in history if "alpha/q" in line]
        assert steps == [0, 3, 6, 9]
        assert [line["weight_decay/down"] for line in history if "weight_decay/down" in line]
    parts = Path(folder) / "parts"
    trained(engine, parts, policy, updates=5, clip=clip, made=made)
    again, _ = trained(engine, parts, policy, resumed=True, clip=clip, made=made)
    require_same(again, whole)
    require_same(whole, zero_run(3, clip) if expected is None else expected)


def check_policies(folder):
    matrices = {}
    for policy in POLICIES:
        found, _ = trained("plain", Path(folder) / policy, policy)
        require_same(found, plain_run(1, policy))
        matrices[policy] = found[1]["model.layers.1.mlp.down_proj.weight"]
    same = {policy for policy, own in matrices.items() if torch.equal(own, matrices["uniform"])}
    assert same == {"uniform", "monitor", "adamc"}, same  # without a schedule adamc is uniform


def test_every_policy_of_the_table_trains_as_in_our_own_loop(tmp_path):
    run_ranks(check_policies, 1, str(tmp_path))


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


@pytest.mark.parametrize(("engine", "ranks"), [("plain", 1), ("fsdp2", 2), ("zero2", 2)])
def test_two_arguments_of_the_trainer_are_as_good_as_one_line(tmp_path, engine, ranks):
    clip = 0 if engine == "zero2" else CLIP
    expected = plain_run(ranks, clip=clip, reduced_each=engine == "zero2")
    run_ranks(check, ranks, engine, str(tmp_path), "alphadecay", expected, clip, two_arguments)


@pytest.mark.parametrize(("engine", "ranks"), [("fsdp2", 2), pytest.param("ddp", 2, marks=pytest.mark.long)])
def test_muon_has_its_decays_and_is_resumed(tmp_path, engine, ranks):
    """Without clipping, whose sums round: Muon's products in bf16 make much of a last bit."""
    expected = plain_run(ranks, clip=0, optimizer_of=muon)
    run_ranks(check, ranks, engine, str(tmp_path), "alphadecay", expected, 0, with_muon)


def fsdp_on_cpus(folder):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        args = arguments("ddp", folder, 1, fsdp="full_shard auto_wrap", fsdp_config=FSDP2)
        trainer, _ = one_line(args, texts_for(dist.get_world_size()), **SETTINGS)
        trainer.train()
    return [str(own.message) for own in caught if str(own.message).startswith("accelerate: ")]


def test_a_warning_says_that_ddp_runs_where_fsdp_was_asked_for(tmp_path):
    first, second = run_ranks(fsdp_on_cpus, 2, str(tmp_path))
    assert first == [
        "accelerate: FSDP was asked for, but DDP is running, as on CPUs (use_cpu=True, cpu=True): each rank "
        "holds all weights"
    ]
    assert second == []


def test_what_the_trainer_cannot_have_is_named(tmp_path):
    args = arguments("plain", tmp_path)
    optimizer = torch.optim.SGD(tiny_model().parameters(), lr=0.1)
    with pytest.raises(UserError, match=r"trainer: has an optimizer already; let AlphaDecayCallback"):
        AlphaDecayCallback(Trainer(tiny_model(), args, optimizers=(optimizer, None)), interval=3)
    with pytest.raises(UserError, match=r"trainer: found dict, expected a transformers\.Trainer"):
        AlphaDecayCallback({}, interval=3)
    alone = AlphaDecayCallback(interval=3).optimizer(torch.optim.AdamW)
    with pytest.raises(UserError, match="callbacks: found no AlphaDecayCallback, expected the one whose"):
        Trainer(tiny_model(), args, optimizer_cls_and_kwargs=alone).create_optimizer()
    with pytest.raises(UserError, match="optimizer: found Muon, which takes matrices alone, expected"):
        AlphaDecayCallback(interval=3).optimizer(torch.optim.Muon, lr=0.02)
    with pytest.raises(UserError, match="restore_callback_states_from_checkpoint: found True"):
        AlphaDecayCallback.from_state({"args": {}, "attributes": {}})


def test_the_state_is_json_in_the_trainers_file(tmp_path):
    trainer = InOrder(tiny_model(), arguments("plain", tmp_path, updates=5), train_dataset=texts_for(1))
    AlphaDecayCallback(trainer, **SETTINGS)
    trainer.train()
    state = json.loads((tmp_path / "checkpoint-5" / "trainer_state.json").read_text())
    saved = state["stateful_callbacks"]["AlphaDecayCallback"]["attributes"]["saved"]
    assert json.loads(saved["alphadecay"])["step"] == 5


class Asks(TrainerCallback):
    """Asks for a checkpoint behind the callbacks that were there before it."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save = state.global_step == 2


def saved_at(folder):
    """Updates that the state of each checkpoint counts, by its name; None where it has no state."""
    found = {}
    for path in sorted(folder.glob("checkpoint-*")):
        callbacks = json.loads((path / "trainer_state.json").read_text())["stateful_callbacks"]
        saved = callbacks["AlphaDecayCallback"]["attributes"]["saved"]
        found[path.name] = saved and json.loads(saved["alphadecay"])["step"]
    return found


@pytest.mark.parametrize(("lag", "asked"), [(0, 2), (1, None)])
def test_every_checkpoint_has_the_state_of_its_update(tmp_path, lag, asked):
    args = arguments("plain", tmp_path, updates=-1, save_strategy="epoch", num_train_epochs=2)
    trainer = InOrder(tiny_model(), args, train_dataset=Texts(8))
    AlphaDecayCallback(trainer, lag=lag, **SETTINGS)
    trainer.add_callback(Asks())
    trainer.train()
    assert saved_at(tmp_path) == {"checkpoint-2": asked, "checkpoint-4": 4, "checkpoint-8": 8}


def test_each_train_begins_anew_with_the_base_of_its_arguments(tmp_path):
    args = arguments("plain", tmp_path, updates=2, save_strategy="no")
    trainer = InOrder(None, args, train_dataset=Texts(4), model_init=tiny_model)
    callback = AlphaDecayCallback(trainer, **SETTINGS)
    trainer.train()
    first = callback.decay
    trainer.args.weight_decay = 2 * BASE  # as a search of hyperparameters does
    trainer.train()
    assert repr(callback.decay) == repr(first).replace(str(BASE), str(2 * BASE))
    assert decays_of(callback.decay) == pytest.approx({n: 2 * own for n, own in decays_of(first).items()})
    rest = [group["weight_decay"] for group in trainer.optimizer.param_groups if group["module"] == "untuned"]
    assert rest == [2 * BASE]


def test_what_is_named_gets_no_decay_and_stays(tmp_path):
    trainer = InOrder(tiny_model(), arguments("plain", tmp_path, updates=1), train_dataset=texts_for(1))
    AlphaDecayCallback(trainer, no_decay=["*norm*"], **SETTINGS)
    trainer.train()
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    groups = trainer.optimizer.optimizer.param_groups
    free = {names[id(own)] for group in groups if group["weight_decay"] == 0 for own in group["params"]}
    assert free == {name for name in names.values() if "norm" in name}
    assert len(free) == 5
