"""The examples of docs/hosts.md run as they are printed."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
import transformers
from accelerate import Accelerator
from torch import nn

from alphadecay_dist import AlphaDecay, attach, param_groups
from tests.integrations.hosts import BASE, texts_for, tiny_model
from tests.models import Blocks
from tests.multirank import run_ranks

pytestmark = [pytest.mark.ranks, pytest.mark.launcher]

PAGE = (Path(__file__).parents[2] / "docs" / "hosts.md").read_text(encoding="utf-8")
NO_TITAN = "torchtitan is not installed (docs/hosts.md)"
NO_MEGATRON = "megatron-core is not installed (the extra test has it)"
HOSTS, OPTIMIZERS = PAGE.split("\n## Optimizers that exist\n")
CODE, OF_OPTIMIZERS = (re.findall(r"```python\n(.*?)```", part, re.DOTALL) for part in (HOSTS, OPTIMIZERS))


def of_transformers(code, folder):
    args = transformers.TrainingArguments(
        output_dir=folder, max_steps=2, weight_decay=BASE, use_cpu=True, report_to=[], disable_tqdm=True
    )
    names = {"Trainer": transformers.Trainer, "model": tiny_model(), "args": args, "dataset": texts_for(1)}
    names["torch"] = torch
    exec(code, names)
    return {group["weight_decay"] for group in names["trainer"].optimizer.param_groups}


def batches():
    return [torch.randn(4, 64, generator=torch.Generator().manual_seed(n)) for n in range(4)]


def of_accelerate(code, folder):
    torch.manual_seed(0)
    names = {"accelerator": Accelerator(cpu=True), "model": Blocks(), "torch": torch}
    names |= {"param_groups": param_groups, "loader": batches()}
    exec(code, names)
    return {group["weight_decay"] for group in names["optimizer"].param_groups}


def of_lightning(code, folder):
    torch.manual_seed(0)
    options = {"accelerator": "cpu", "max_steps": 3, "logger": False, "enable_checkpointing": False}
    names = {
        "LightningModule": pl.LightningModule,
        "Trainer": pl.Trainer,
        "torch": torch,
        "loader": batches(),
    }
    loader = torch.utils.data.DataLoader(torch.stack(batches()), batch_size=None)
    names |= {"loader": loader, "param_groups": param_groups, "make_net": Blocks, "options": options}
    exec(code, names)
    return {group["weight_decay"] for group in names["trainer"].optimizers[0].param_groups}


def of_torchtitan(code, folder):
    from tests.integrations.test_torchtitan import Loop

    spec = SimpleNamespace(post_optimizer_build_fn=None)
    names = {"config": SimpleNamespace(model_spec=spec, build=lambda: Loop(folder, spec))}
    exec(code, names)
    (optimizer,) = names["trainer"].optimizers
    return {group["weight_decay"] for group in optimizer.param_groups}


def of_megatron(code, folder):
    torch.manual_seed(0)
    schedule = {"init_lr": 1e-3, "max_lr": 1e-3, "min_lr": 1e-3, "lr_warmup_steps": 0, "lr_decay_steps": 9}
    schedule |= {"lr_decay_style": "constant", "wd_incr_steps": 9, "wd_incr_style": "constant"}
    names = {"model": Blocks(), "torch": torch, "loader": batches(), "schedule": schedule}
    names |= {"param_groups": param_groups, "AlphaDecay": AlphaDecay}
    exec(code, names)
    return {group["weight_decay"] for group in names["optimizer"].param_groups}


@pytest.mark.parametrize(
    ("place", "run"),
    [
        (0, of_transformers),
        (1, of_transformers),
        (2, of_transformers),
        (3, of_accelerate),
        (4, of_lightning),
        pytest.param(
            5, of_torchtitan, marks=pytest.mark.skipif(not find_spec("torchtitan"), reason=NO_TITAN)
        ),
        pytest.param(6, of_megatron, marks=pytest.mark.skipif(not find_spec("megatron"), reason=NO_MEGATRON)),
    ],
    ids=lambda of: str(of)[:20],
)
def test_an_example_of_the_page_decays_each_matrix_by_its_own(tmp_path, place, run):
    (decays,) = run_ranks(run, 1, CODE[place], str(tmp_path))
    assert len(decays) > 2
    assert min(decays) == pytest.approx(BASE * 2 / 3)
    assert max(decays) == pytest.approx(BASE * 5)


def test_the_page_has_an_example_a_way():
    assert len(CODE) == 7


class Normed(Blocks):
    """With a norm before its blocks."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(64)

    def forward(self, batch):
        return super().forward(self.norm(batch))


def test_several_optimizers_as_the_page_shows_them():
    torch.manual_seed(0)
    names = {"model": Normed(), "torch": torch, "param_groups": param_groups, "loader": batches()}
    names |= {"AlphaDecay": AlphaDecay}
    exec(OF_OPTIMIZERS[0], names)
    muon, adamw = names["optimizers"]
    require_decays(muon.param_groups)
    assert [group["weight_decay"] for group in adamw.param_groups] == [BASE, 0]


def test_an_optimizer_that_exists_as_the_page_shows_it():
    torch.manual_seed(0)
    model = Normed()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=BASE)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)
    names = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "loader": batches()}
    exec(OF_OPTIMIZERS[1], names | {"AlphaDecay": AlphaDecay, "attach": attach})
    require_decays(optimizer.param_groups[:-1])
    assert len(OF_OPTIMIZERS) == 2


def require_decays(groups):
    decays = sorted(group["weight_decay"] for group in groups)
    assert decays[0] == pytest.approx(BASE * 2 / 3)
    assert decays[-1] == pytest.approx(BASE * 5)
    assert len(set(decays)) == 3
