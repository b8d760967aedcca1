"""The forecast equals what a real run measures, and needs no ranks."""

from __future__ import annotations

import json

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

from alphadecay_dist import AlphaDecay, cli, param_groups
from alphadecay_dist.plan import Machine, forecast
from alphadecay_dist.sharding.inventory import tuned_weights
from alphadecay_dist.spectral import Rates
from tests.engines.tiny import TUNABLE, Uneven, engine_of
from tests.multirank import run_ranks
from tests.sharding.shapes import PUBLISHED, on_meta

# The ratio is that of tridiagonal_weight on a CPU: a power of ten.
HERE = Machine(Rates(1e11, 1e10), bandwidth=1e9, update_seconds=0.5)
ZERO = {"zero1": 1, "zero2": 2, "zero3": 3}


def check_measured(sharding, budget):
    """Owners, bytes and peaks of a refresh, and what was foretold of it."""
    size = dist.get_world_size()
    options = {"weight_decay": 0.1, "memory_budget": budget}
    if sharding in ZERO:
        engine, model, optimizer = engine_of(ZERO[sharding], TUNABLE)
        decay = AlphaDecay(model, optimizer, engine=engine, **options)
    else:
        model = Uneven(TUNABLE)
        sizes, names = ((2, size // 2), ("r", "s")) if sharding == "hsdp" else ((size,), ("s",))
        mesh = dist.init_device_mesh("cpu", sizes, mesh_dim_names=names)
        if sharding != "ddp":
            fully_shard(model, mesh=mesh)
        optimizer = torch.optim.SGD(param_groups(model, weight_decay=0.1), lr=0.1)
        decay = AlphaDecay(model, optimizer, **options)
    refresh = decay.refresh()
    owners = {name: module.owner for name, module in refresh.modules.items()}
    exchange = decay._exchange
    return owners, refresh.bytes_received, exchange.bytes_sent, exchange.peak_bytes


CASES = [(s, size) for s in ("ddp", "zero2", "zero3", "fsdp2") for size in (1, 3)]
CASES += [("zero3", 2), ("zero3", 4), ("fsdp2", 2), ("fsdp2", 4), ("hsdp", 2), ("hsdp", 4)]


@pytest.mark.slow
@pytest.mark.parametrize("budget", [None, 1])
@pytest.mark.parametrize(("sharding", "world_size"), CASES)
def test_a_forecast_is_what_a_refresh_measures(sharding, world_size, budget):
    with torch.device("meta"):
        weights = tuned_weights(Uneven(TUNABLE))
    hsdp = sharding == "hsdp"
    found = forecast(
        weights,
        world_size,
        "fsdp2" if hsdp else sharding,
        HERE,
        itemsize=4,
        replicas=2 if hsdp else 1,
        budget=budget,
    ).as_dict()
    measured = run_ranks(check_measured, world_size, sharding, budget)
    for rank, (owners, received, sent, peak) in enumerate(measured):
        assert owners == found["owners"]
        assert list(received) == found["bytes_received"]
        assert sent == found["bytes_sent"][rank]
        assert peak == found["peak_bytes"][rank]


def planned(capsys, *options):
    assert cli.main(["plan", *options, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def profile(tmp_path):
    path = tmp_path / "machine.json"
    path.write_text('{"gram": 1e14, "tridiagonal": 1e12, "bandwidth": 1e10, "update_seconds": 2}')
    return str(path)


@pytest.mark.parametrize("sharding", ["zero3", "fsdp2"])
def test_a_plan_of_a_recipe(capsys, profile, sharding):
    options = ["--recipe", "llama_1b", "--world_size", "16", "--sharding", sharding, "--machine", profile]
    found = planned(capsys, *options)
    total = 2 * 24 * (4 * 2048**2 + 3 * 2048 * 5461)
    assert found["matrices"] == 168
    assert set(found["owners"].values()) == set(range(16))
    assert sum(found["bytes_received"]) == sum(found["bytes_sent"]) < total
    assert sum(found["bytes_received"]) == pytest.approx(total * 15 / 16, rel=0.01)
    # What is asked of every exchange: an owner receives no more than its matrices, and sends its part of all.
    sizes = {"q": 2048**2, "k": 2048**2, "v": 2048**2, "o": 2048**2}
    for rank in range(16):
        own = [name for name, owner in found["owners"].items() if owner == rank]
        owned = sum(2 * sizes.get(name.split(".")[-1][0], 2048 * 5461) for name in own)
        assert found["bytes_received"][rank] <= 1.02 * owned
        assert found["bytes_sent"][rank] <= 1.02 * total / 16 + 2 * 2048 * 5461
        assert found["peak_bytes"][rank] <= 256 * 2**20
    assert found["imbalance"] < 1.10
    longest = max(found["load_seconds"]) + max(found["bytes_received"]) / 1e10
    assert found["seconds"] == pytest.approx(longest)
    assert found["share_of_training"] == pytest.approx(longest / 1000)


@pytest.mark.parametrize("budget", ["default", "tight", "half"])
@pytest.mark.parametrize("world_size", [2, 3, 8, 64])
@pytest.mark.parametrize("sharding", ["zero3", "fsdp2"])
def test_memory_stays_within_its_budget_and_bytes_within_two_percent(sharding, world_size, budget):
    for name in PUBLISHED:
        weights = tuned_weights(on_meta(name))
        nbytes = {weight.name: 2 * weight.parameter.numel() for weight in weights}
        largest, total = max(nbytes.values()), sum(nbytes.values())
        given = {"default": None, "tight": 2 * largest, "half": total // 2}[budget]
        found = forecast(weights, world_size, sharding, HERE, itemsize=2, budget=given)
        # Rows and flat pieces are not quite even: the last rank's is shorter.
        assert found.traffic.peak.max() <= 1.02 * max(given or 256 * 2**20, 2 * largest)
        for rank in range(world_size):
            own = sum(nbytes[name] for name, owner in found.plan.owners.items() if owner == rank)
            assert found.traffic.received[rank] <= 1.02 * own
            assert found.traffic.sent[rank] <= 1.02 * total / world_size + largest
        if budget == "default" and world_size >= 8:
            assert all(found.traffic.ahead[:-1])


def test_replicated_weights_move_nothing(capsys):
    found = planned(capsys, "--recipe", "llama_60m", "--world_size", "8", "--sharding", "zero1")
    assert sum(found["bytes_received"]) == sum(found["peak_bytes"]) == 0
    assert found["seconds"] is found["share_of_training"] is None


def test_replicas_share_the_work_and_stay_among_themselves(capsys):
    one = planned(capsys, "--recipe", "llama_60m", "--world_size", "8", "--sharding", "fsdp2")
    options = ["--recipe", "llama_60m", "--world_size", "8", "--sharding", "fsdp2", "--replicas", "4"]
    hsdp = planned(capsys, *options)
    assert set(hsdp["owners"].values()) == set(range(8))
    # An owner has half of each matrix already, not an eighth.
    assert sum(hsdp["bytes_received"]) == pytest.approx(
        sum(one["bytes_received"]) * (1 / 2) / (7 / 8), rel=0.01
    )


def test_405b_on_4096_ranks(capsys, tmp_path):
    sizes = {"hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126}
    heads = {"num_attention_heads": 128, "num_key_value_heads": 8, "vocab_size": 128256}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **sizes, **heads}))
    options = ["--config", str(tmp_path), "--world_size", "4096", "--sharding", "zero3"]
    assert cli.main(["plan", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "882 matrices on 882 of 4096 ranks, zero3"
    assert [line.split()[0] for line in lines[-3:]] == ["received,", "sent,", "peak,"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--world_size", "8"], "either --recipe NAME or --config PATH"),
        (["--recipe", "lama_1b", "--world_size", "8"], "did you mean 'llama_1b'"),
        (["--recipe", "llama_1b", "--world_size", "0"], "world_size: found 0"),
        (["--recipe", "llama_1b", "--world_size", "8", "--replicas", "3"], "replicas: found 3"),
        (["--recipe", "llama_1b", "--world_size", "8", "--replicas", "2"], "replicas: found 2 with zero3"),
        (["--recipe", "llama_1b", "--world_size", "8", "--machine", "nowhere.json"], "no machine profile"),
        (["--config", "nowhere", "--world_size", "8"], "--config nowhere"),
    ],
)
def test_mistakes_are_one_line(capsys, options, words):
    assert cli.main(["plan", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"gram": 1}', '{"gram": 0, "tridiagonal": 1}', '{"gram": 1, "tridiagonal": 1, "x": 2}'],
)
def test_a_profile_that_is_none_is_refused(capsys, tmp_path, text):
    path = tmp_path / "machine.json"
    path.write_text(text)
    assert cli.main(["plan", "--recipe", "llama_60m", "--world_size", "2", "--machine", str(path)]) == 2
    assert "machine.json" in capsys.readouterr().err
