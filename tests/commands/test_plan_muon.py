"""What a plan says of Muon is what its steps move, and its state."""

from __future__ import annotations

import json

import pytest
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

from alphadecay_dist import cli, param_groups
from alphadecay_dist.commands.muon_plan import forecast_muon
from alphadecay_dist.engines.expected_layouts import Sharding
from alphadecay_dist.optimizers.native import for_sharded_weights
from alphadecay_dist.training.config import load_config
from alphadecay_dist.training.muon import muon_settings
from tests.commands.plans import job_for
from tests.engines.tiny import TUNABLE, Uneven
from tests.multirank import run_ranks

BUDGETS = (None, 30_000)
SHAPES = [*TUNABLE, *TUNABLE]
MODULES = "layers.[0-8].up"  # AdamW has the last one


def recipe_of(budget):
    overrides = ["optimizer.name=muon", f"optimizer.muon_modules={MODULES}"]
    return load_config("demo", [*overrides, f"decay.memory_budget={budget}"] if budget else overrides)


def check_step(settings, replicas):
    """Bytes and peaks of the first step of each budget, and the bytes of the state that it leaves."""
    ranks, found = dist.get_world_size(), []
    shape = (ranks,) if replicas == 1 else (replicas, ranks // replicas)
    mesh = dist.init_device_mesh("cpu", shape, mesh_dim_names=("a", "b")[: len(shape)])
    model = fully_shard(Uneven(SHAPES), mesh=mesh)
    for parameter in model.parameters():
        parameter.grad = parameter.detach().clone()
    for own in settings:
        optimizer = for_sharded_weights(model, param_groups(model, weight_decay=0.1), own)
        optimizer.step()
        ((place, _),) = optimizer._muon._places
        states = [moment for state in optimizer.state.values() for moment in state.values() if moment.ndim]
        held = sum(moment.to_local().nbytes for moment in states)
        found.append((*place.bytes_received, place._exchange.peak_bytes, held))
    return found


@pytest.mark.ranks
@pytest.mark.parametrize(("ranks", "replicas"), [(4, 2), pytest.param(3, 1, marks=pytest.mark.long)])
def test_a_plan_of_muon_is_what_its_steps_move(ranks, replicas):
    recipes = [recipe_of(budget) for budget in BUDGETS]
    settings = [muon_settings(own.optimizer, memory_budget=own.decay.memory_budget) for own in recipes]
    measured = run_ranks(check_step, ranks, settings, replicas)
    for place, (recipe, budget) in enumerate(zip(recipes, BUDGETS, strict=True)):
        found = forecast_muon(
            recipe, job_for(Uneven(SHAPES), budget=budget), Sharding("fsdp2", ranks, replicas)
        ).as_dict()
        rows = [own[place] for own in measured]
        exchange = found["exchange"]
        assert [row[0] for row in rows] == exchange["bytes_received"]
        assert [row[1] for row in rows] == exchange["bytes_returned"]
        assert [row[2] for row in rows] == exchange["peak_bytes"]
        assert sum(row[3] for row in rows) == replicas * found["state_bytes"]
        assert (exchange["rounds"] > 1) == (budget is not None)


def test_a_plan_says_what_muon_costs(tmp_path, capsys):
    recipe, machine = tmp_path / "muon.yaml", tmp_path / "machine.json"
    recipe.write_text("model: {name: llama_demo}\noptimizer: {name: muon}\n")
    machine.write_text('{"gram": 1e14, "tridiagonal": 1e12, "bandwidth": 1e10}')
    plan = ["plan", "--recipe", str(recipe), "--world_size", "2", "--machine", str(machine), "--sharding"]
    for sharding, words in {
        "fsdp2": "Muon in an update: 28 matrices on 2 ranks, 1 rounds",
        "ddp": "Muon in an update, 28 matrices: every rank orthogonalises all of them",
        "zero2": "Muon in an update, 28 matrices: DeepSpeed's own",
    }.items():
        assert cli.main([*plan, sharding]) == 0
        printed = capsys.readouterr().out
        assert words in printed
        assert "state of one model: " in printed
    recipe.write_text("model: {name: llama_demo}\n")
    assert cli.main([*plan, "fsdp2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["muon"] is None
