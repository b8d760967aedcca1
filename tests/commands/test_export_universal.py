"""DeepSpeed loads the universal checkpoint that we write, at every stage, and trains on from it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import deepspeed
import pytest
import torch
import torch.distributed as dist

from alphadecay_dist import AlphaDecay, param_groups
from alphadecay_dist.checkpoint.reader import newest
from alphadecay_dist.checkpoint.restore import stored_tensors
from alphadecay_dist.commands.formats import export_universal, trained
from alphadecay_dist.engines.zero.state import ZeroState
from alphadecay_dist.training.config import config_from_dict
from alphadecay_dist.training.data.batches import TrainingData, micro_batch, open_data
from alphadecay_dist.training.data.sentencepiece_tokenizer import SentencePieceTokenizer
from alphadecay_dist.training.optimizer import learning_rate
from alphadecay_dist.training.tasks.language import model as models
from tests.checkpoint.ranks import cut
from tests.multirank import run_ranks
from tests.training.runs import final_weights, tiny_options, train_on

pytestmark = [pytest.mark.ranks, pytest.mark.launcher]

DONE, END = 7, 12  # a refresh between them
PAGE = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
((LOADS, RESTORES),) = (code.splitlines() for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))


def engine_of(config, stage):
    """Built as in the README, but for what the checkpoint and the run decide."""
    settings = {
        "train_batch_size": config.train.global_batch,
        "train_micro_batch_size_per_gpu": micro_batch(config.train, dist.get_world_size()),
        "gradient_clipping": config.train.clip,
        "zero_optimization": {"stage": stage},
        "checkpoint": {"load_universal": True},
        "bf16": {"enabled": config.train.dtype == "bfloat16"},
    }
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled
    deepspeed.init_distributed(verbose=False)
    model_config = models.read_model_config(config.model.name, config.train.seq_len)
    with deepspeed.zero.Init(config_dict_or_path=settings, enabled=stage == 3):
        model = models.build_model(model_config, config.train)
    models.fill_tables(model)
    optimizer = torch.optim.AdamW(param_groups(model, weight_decay=config.decay.weight_decay), lr=1.0)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    decay = AlphaDecay(model, optimizer, engine=engine, settings=config.decay)
    return engine, decay


def check_loaded(engine, checkpoint):
    """Weights and moments are those of the checkpoint, bit for bit."""
    parts, tensors = ZeroState(engine).parts(), stored_tensors(checkpoint)
    assert {part.kind for part in parts} == {"weight", "exp_avg", "exp_avg_sq"}
    for part in parts:
        assert torch.equal(part.values, cut(tensors[part.name][part.kind].read(), part.index)), part.name
    assert ZeroState(engine).scalars() == checkpoint.manifest.scalars


def data_after(checkpoint, config):
    source, _ = open_data(config.data)
    tokenizer = SentencePieceTokenizer((checkpoint.folder.parents[1] / "tokenizer.model").read_bytes())
    data = TrainingData(source, tokenizer, config.data, config.train, dist.get_rank(), dist.get_world_size())
    data.load(checkpoint.state()["lanes"])
    return data


def make_update(engine, decay, batches):
    """One update as the trainer makes it; the loss, over all ranks."""
    sums = torch.tensor([0.0, sum(batch.targets for batch in batches)], dtype=torch.float64)
    dist.all_reduce(sums)
    scale = (dist.get_world_size() / sums[1]).float()
    total = torch.zeros((), dtype=torch.float64)
    for number, batch in enumerate(batches):
        if number:
            engine.step()
        loss = engine(batch.input_ids, batch.labels)
        engine.backward(loss * scale, scale_wrt_gas=False)
        total += loss.detach()
    decay.step()
    engine.step()
    dist.all_reduce(total)
    return float(total / sums[1])


def go_on(run, exported, stage, resumed):
    """In a rank: load what was exported, and make the updates of the resumed run; their losses."""
    checkpoint = newest(Path(run) / "checkpoints")
    config = config_from_dict(checkpoint.state()["config"])
    engine, decay = engine_of(config, stage)
    names = {"engine": engine, "decay": decay, "json": json, "Path": Path}
    exec(LOADS.replace("DIR", exported), names)
    counters = {id(state["step"]) for state in engine.optimizer.optimizer.state.values()}
    assert (len(counters) == 1) == (stage == 3), "DeepSpeed shares one, and decay.load_state_dict mends it"
    exec(RESTORES.replace("DIR", exported), names)
    check_loaded(engine, checkpoint)
    assert engine.global_steps == DONE
    groups = engine.optimizer.param_groups
    assert {group["lr"] for group in groups} == {learning_rate(DONE, config.train.steps, config.optimizer)}
    assert {tuple(group["betas"]) for group in groups} == {config.optimizer.betas}
    data, losses = data_after(checkpoint, config), []
    for step in range(DONE + 1, END + 1):
        for group in engine.optimizer.param_groups:
            group["lr"] = learning_rate(step, config.train.steps, config.optimizer)
        losses.append(make_update(engine, decay, data.next_update()))
    weights = final_weights(Path(resumed))
    for part in ZeroState(engine).parts():
        if part.kind == "weight":
            assert torch.equal(part.values, cut(weights[part.name], part.index)), part.name
    return losses


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """For a dtype: options of a run under FSDP2, its directory after 7 updates, and what is exported."""
    runs = {}

    def of(dtype):
        if dtype not in runs:
            folder = tmp_path_factory.mktemp(dtype)
            options = tiny_options(folder, data__pack=True, train__dtype=dtype)
            train_on(2, "fsdp2", folder / "run", [*options, f"--train.stop_after={DONE}"])
            export_universal(trained(folder / "run"), folder / "exported")
            runs[dtype] = options, folder / "run", folder / "exported"
        return runs[dtype]

    return of


@pytest.mark.parametrize(
    ("stage", "dtype", "world_size"),
    [(1, "bfloat16", 2), (2, "float32", 2), (3, "float32", 3), (3, "bfloat16", 2)],
)
def test_deepspeed_goes_on_bit_for_bit_as_the_trainer_does(tmp_path, stopped, stage, dtype, world_size):
    options, run, exported = stopped(dtype)
    resumed = shutil.copytree(run, tmp_path / "resumed")
    lines = train_on(world_size, str(stage), resumed, [*options, f"--train.stop_after={END}"])["metrics"]
    losses = run_ranks(go_on, world_size, str(run), str(exported), stage, str(resumed))
    assert losses == [[line["loss"] for line in lines[DONE:]]] * world_size
