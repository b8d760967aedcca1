"""Each matrix has its own decay after every kind of load, or the load is refused on all ranks."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from deepspeed.checkpoint.ds_to_universal import main as to_universal
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from alphadecay_dist import AlphaDecay, UserError, param_groups
from tests.controllers import SETTINGS, decays_in, setup, update
from tests.engines.tiny import TUNABLE, Uneven, backward, engine_of
from tests.multirank import run_ranks

SHAPES = [*TUNABLE, (5, 3)]  # the last is not tuned
SQUARE = [(64, 64)] * 3


def trained(shapes=TUNABLE):
    model, optimizer, decay = setup(shapes)
    for number in range(2):
        update(model, optimizer, decay, number)
    return model, optimizer, decay


def test_an_optimizer_saved_without_names_leaves_each_matrix_its_own():
    model, optimizer, decay = trained()
    decays = decays_in(optimizer)
    plain = torch.optim.AdamW([{"params": [p]} for p in model.parameters()], weight_decay=0.7, lr=1e-3)
    optimizer.load_state_dict(plain.state_dict())
    decay.load_state_dict(decay.state_dict())
    assert decays_in(optimizer) == decays


def test_an_optimizer_saved_in_another_order_is_refused():
    """torch puts its moments by position: of matrices of one shape nothing else tells."""
    _, optimizer, decay = trained(SQUARE)
    model, *_ = trained(SQUARE)
    turned = torch.optim.AdamW(param_groups(model, weight_decay=0.1)[::-1], lr=1e-3)
    optimizer.load_state_dict(turned.state_dict())
    with pytest.raises(
        UserError, match=r"settings of 'layers\.2\.up' where 'layers\.0\.up' is.*another order"
    ):
        decay.refresh()
    with pytest.raises(UserError, match="another order"):
        decay.load_state_dict(decay.state_dict())


def test_what_dcp_loads_by_name_is_right_in_any_order():
    model, optimizer, decay = trained(SQUARE)
    state, decays = get_optimizer_state_dict(model, optimizer), decays_in(optimizer)
    own = decay.state_dict()

    other = Uneven(SQUARE)
    turned = torch.optim.AdamW(param_groups(other, weight_decay=0.1)[::-1], lr=1e-3)
    loaded = AlphaDecay(other, turned, interval=3, **SETTINGS)
    set_optimizer_state_dict(other, turned, state)
    loaded.load_state_dict(own)
    assert decays_in(turned) == decays
    assert [group["module"] for group in turned.param_groups] == [f"layers.{n}.up" for n in (2, 1, 0)]


def check_refused_on_all():
    """Only rank 1 loaded another order."""
    _, optimizer, decay = trained(SQUARE)
    if dist.get_rank() == 1:
        state = optimizer.state_dict()
        names = [group["module"] for group in state["param_groups"]]
        for group, name in zip(state["param_groups"], names[::-1], strict=True):
            group["module"] = name
        optimizer.load_state_dict(state)
    with pytest.raises(UserError, match="another order"):
        decay.refresh()


@pytest.mark.ranks
def test_what_one_rank_loaded_wrongly_is_refused_on_all():
    run_ranks(check_refused_on_all, 2)


def check_universal(apply, folder):
    """Saved, converted by DeepSpeed's own tool, and loaded by another engine, at stage 3."""

    def started():
        groups = functools.partial(param_groups, weight_decay=0.1, apply=apply)
        engine, model, optimizer = engine_of(3, SHAPES, torch.bfloat16, groups=groups)
        return engine, AlphaDecay(model, optimizer, engine=engine, interval=9, apply=apply, **SETTINGS)

    engine, decay = started()
    backward(engine)
    decay.step()
    engine.step()
    engine.save_checkpoint(folder, tag="saved")
    dist.barrier()
    if dist.get_rank() == 0:
        options = {"num_extract_workers": 1, "num_merge_workers": 1, "keep_temp_folder": False}
        to_universal(
            SimpleNamespace(
                input_folder=f"{folder}/saved",
                output_folder=f"{folder}/universal",
                strict=True,
                inject_missing_state=False,
                **options,
            )
        )
    dist.barrier()
    resumed, again = started()
    resumed._config.load_universal_checkpoint = True
    resumed.load_checkpoint(folder, tag="universal")
    again.load_state_dict(decay.state_dict())
    loaded = decays_in(resumed.optimizer)
    found = again.refresh()
    return decays_in(engine.optimizer), loaded, decays_in(resumed.optimizer), found, again.modules


@pytest.mark.ranks
def test_after_deepspeeds_universal_load_every_group_has_its_own_name_and_decay(tmp_path):
    saved, loaded, after, found, _ = run_ranks(check_universal, 2, "groups", str(tmp_path))[0]
    assert set(saved) == {*(f"layers.{number}.up" for number in range(5)), "untuned"}
    assert len(set(saved.values())) == 6
    assert loaded == saved
    assert after == {**{name: m.weight_decay for name, m in found.modules.items()}, "untuned": 0.1}


@pytest.mark.ranks
def test_and_so_have_the_two_groups_of_premultiply(tmp_path):
    saved, loaded, after, found, modules = run_ranks(check_universal, 2, "premultiply", str(tmp_path))[0]
    assert set(saved) == {"tuned", "untuned"}
    assert loaded == after == {"tuned": 0.0, "untuned": 0.1}
    assert {m.weight_decay for m in found.modules.values()} == {m.weight_decay for m in modules.values()}
