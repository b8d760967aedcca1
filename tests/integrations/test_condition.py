"""The spectral condition in other trainers, as docs/spectral_condition.md shows it: of whole updates."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator

from alphadecay_dist import SpectralCondition
from alphadecay_dist.integrations.transformers import AlphaDecayCallback
from tests.integrations.hosts import (
    ACCUMULATION,
    SETTINGS,
    decays_of,
    serve_ranks_without_gpus,
    texts_for,
    tiny_model,
)
from tests.integrations.test_transformers import InOrder, arguments
from tests.multirank import run_ranks

pytestmark = [pytest.mark.ranks, pytest.mark.launcher]

PAGE = (Path(__file__).parents[2] / "docs" / "spectral_condition.md").read_text(encoding="utf-8")
_, CODE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def expected(ranks):
    """Nuclear rank and norm of each matrix's gradient in the first update, of all micro-batches and ranks."""
    model, texts = tiny_model(), texts_for(ranks)
    count = ACCUMULATION * ranks
    for place in range(count):
        (model(**{name: ids[None] for name, ids in texts[place].items()}).loss / count).backward()
    found = {}
    for name, own in model.named_parameters():
        if own.ndim == 2:
            singular = torch.linalg.svdvals(own.grad.double())
            squares = singular.square().sum()
            found[name.removesuffix(".weight")] = float(singular.sum() ** 2 / squares), float(squares.sqrt())
    return found


def require(matrices, wanted):
    assert matrices.keys() == wanted.keys()
    for name, numbers in wanted.items():
        assert (matrices[name]["nr"], matrices[name]["grad_norm"]) == pytest.approx(numbers, rel=1e-5), name
        assert matrices[name]["status"] == "ok"


def in_the_trainer(engine, folder, wanted):
    """Beside the policy, which it must not displace."""
    if engine != "plain":
        serve_ranks_without_gpus()
    os.chdir(folder)
    names = {}
    exec(CODE, names)
    args = arguments(engine, folder, 3, 0.0, save_strategy="no")
    trainer = InOrder(tiny_model(), args, train_dataset=texts_for(dist.get_world_size()))
    policy = AlphaDecayCallback(trainer, **SETTINGS)
    trainer.add_callback(names["Condition"]())
    trainer.train()
    assert len(set(decays_of(policy.decay).values())) > 2
    dist.barrier()
    lines = [json.loads(line) for line in Path("runs/mine/condition.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 2]
    require(lines[0]["matrices"], wanted)


@pytest.mark.parametrize(
    ("engine", "ranks"), [("fsdp2", 2), ("zero2", 2), pytest.param("plain", 1, marks=pytest.mark.long)]
)
def test_the_trainer_samples_as_the_page_shows_it(tmp_path, engine, ranks):
    run_ranks(in_the_trainer, ranks, engine, str(tmp_path), expected(ranks))


def in_accelerate(wanted):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATION)
    ranks, model = dist.get_world_size(), tiny_model()
    optimizer = torch.optim.AdamW(model.parameters())
    model, optimizer = accelerator.prepare(model, optimizer)
    condition, samples, texts = SpectralCondition(model, every=2), [], texts_for(ranks)
    for micro in range(3 * ACCUMULATION):
        with accelerator.accumulate(model):
            sample = texts[micro * ranks + dist.get_rank()]
            accelerator.backward(model(**{name: ids[None] for name, ids in sample.items()}).loss)
            samples.append(condition.step(boundary=accelerator.sync_gradients))
            optimizer.step()
            optimizer.zero_grad()
    assert [own and own.step for own in samples] == [None, 0, None, None, None, 2]
    require(samples[1].as_dict()["matrices"], wanted)


def test_accelerates_loop_samples_at_its_boundaries():
    run_ranks(in_accelerate, 2, expected(2))
