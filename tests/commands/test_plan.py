"""A job is planned without ranks: owners, bytes, memory, and what is said of them."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from alphadecay_dist import cli
from alphadecay_dist.commands.forecast import forecast, read_machine
from alphadecay_dist.engines.expected_layouts import Sharding
from tests.commands.plans import HERE, job_for
from tests.sharding.shapes import PUBLISHED, on_meta


def planned(capsys, *options):
    assert cli.main(["plan", *options, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def profile(tmp_path):
    path = tmp_path / "machine.json"
    path.write_text('{"gram": 1e14, "tridiagonal": 1e12, "bandwidth": 1e10, "update_seconds": 2}')
    return str(path)


def test_a_plan_says_that_a_policy_gathers_nothing(capsys, tmp_path, profile):
    recipe = tmp_path / "awd.yaml"
    for policy, first in (("awd", "policy awd: reads no spectra"), ("llr", "28 matrices on 2 of 2 ranks")):
        recipe.write_text(f"model: {{name: llama_demo}}\ndecay: {{policy: {policy}}}\n")
        assert cli.main(["plan", "--recipe", str(recipe), "--world_size", "2", "--machine", profile]) == 0
        assert capsys.readouterr().out.startswith(first)


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
@pytest.mark.parametrize("sharding", ["zero3", "fsdp1", "fsdp2"])
def test_memory_stays_within_its_budget_and_bytes_within_two_percent(sharding, world_size, budget):
    for name in PUBLISHED:
        job = job_for(on_meta(name))
        nbytes = {weight.name: 2 * weight.parameter.numel() for weight in job.weights}
        largest, total = max(nbytes.values()), sum(nbytes.values())
        given = {"default": None, "tight": 2 * largest, "half": total // 2}[budget]
        found = forecast(replace(job, budget=given), Sharding(sharding, world_size), HERE)
        assert found.schedule.peak.max() <= max(given or 256 * 2**20, 2 * largest)
        for rank in range(world_size):
            own = sum(nbytes[name] for name, owner in found.owners.items() if owner == rank)
            assert found.schedule.received[rank] <= 1.02 * own
            # Under FSDP1 a rank has a range of a block, and more of one weight than of another.
            share = (1.02 if sharding != "fsdp1" else 1.1) * total / world_size
            assert found.schedule.sent[rank] <= share + largest
        if budget == "default" and world_size >= 8:
            assert all(one.ahead for one in found.schedule.rounds[:-1])


class Experts(nn.Module):
    """Blocks with a stack of experts and a matrix, on meta."""

    def __init__(self, count, blocks, shape):
        super().__init__()
        self.layers = nn.ModuleList()
        for _ in range(blocks):
            block = nn.Module()
            block.proj = nn.Linear(*shape, bias=False, device="meta")
            block.experts = nn.Module()
            block.experts.up_proj = nn.Parameter(torch.empty(count, *shape, device="meta"))
            self.layers.append(block)


@pytest.mark.parametrize("budget", [None, 1, 4 * 2**20, 64 * 2**20])
@pytest.mark.parametrize(
    ("sharding", "world_size", "options"),
    [
        ("fsdp2", 3, {}),
        ("fsdp2", 64, {}),
        ("fsdp2", 64, {"replicas": 4}),
        ("fsdp1", 64, {}),
        ("zero3", 64, {}),
        ("zero1_masters", 5, {}),
    ],
)
def test_memory_stays_within_its_budget_where_few_ranks_hold_the_weights(
    sharding, world_size, options, budget
):
    # By dimension 0, 8 ranks of 64 have all the experts; the others own and hold nothing.
    job = job_for(Experts(8, 6, (512, 1024)), budget=budget)
    found = forecast(job, Sharding(sharding, world_size, **options), HERE)
    assert found.schedule.peak.max() <= max(budget or 256 * 2**20, 2 * 2 * 512 * 1024)
    assert found.schedule.received.sum() == found.schedule.sent.sum() > 0
    assert sorted(name for one in found.schedule.rounds for name in one.names) == sorted(found.owners)
    if budget == 64 * 2**20:
        assert all(one.ahead for one in found.schedule.rounds[:-1]), "what fits into a quarter is sent ahead"


@pytest.mark.parametrize("sharding", ["ddp", "zero0", "zero1", "zero2"])
def test_replicated_weights_move_nothing_and_need_no_bandwidth(capsys, tmp_path, sharding):
    path = tmp_path / "machine.json"
    path.write_text('{"gram": 1e12, "tridiagonal": 1e11, "update_seconds": 1}')
    options = ["--recipe", "llama_60m", "--world_size", "8", "--machine", str(path), "--sharding"]
    found = planned(capsys, *options, sharding)
    assert sum(found["bytes_received"]) == 0
    # The recipe computes in bf16: DDP's fp32 weights are rounded, one matrix at a time; ZeRO has bf16 ones.
    assert max(found["peak_bytes"]) == (512 * 1376 * 2 if sharding == "ddp" else 0)
    assert found["seconds"] == max(found["load_seconds"]) > 0
    assert found["share_of_training"] == found["seconds"] / 500
    found = planned(capsys, *options, "zero3")
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


@pytest.mark.parametrize("sharding", ["zero3", "fsdp2"])
def test_405b_on_4096_ranks_takes_seconds(capsys, profile, tmp_path, sharding):
    sizes = {"hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126}
    heads = {"num_attention_heads": 128, "num_key_value_heads": 8, "vocab_size": 128256}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **sizes, **heads}))
    options = ["--config", str(tmp_path), "--world_size", "4096", "--sharding", sharding]
    begin = time.process_time()
    assert cli.main(["plan", *options, "--machine", profile]) == 0
    assert time.process_time() - begin < 60  # 3 s on a free core
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"882 matrices on 882 of 4096 ranks, {sharding}"
    assert lines[4].startswith(
        "tuned: 98.96 % of 405,853,388,800 trained weights; not tuned: model.embed_tokens"
    )
    assert [line.split()[0] for line in lines[-3:]] == ["received,", "sent,", "peak,"]


RECIPE = """
model: {name: llama_60m}
train: {dtype: float32}
decay: {interval: 40, memory_budget: 8000000, preset: reference, farms_rows: 128}
engine: {name: fsdp2, replicate: 2}
"""


def test_a_plan_follows_the_settings_of_its_recipe(capsys, profile, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(RECIPE)
    common = ["--world_size", "8", "--machine", profile]
    found = planned(capsys, "--recipe", str(path), *common)
    plain = planned(capsys, "--recipe", "llama_60m", *common, "--sharding", "fsdp2")
    assert found["sharding"] == "fsdp2"
    left_out = set(plain["owners"]) - set(found["owners"])
    assert left_out == {"model.layers.0.self_attn.q_proj"}  # the head is not tuned in any case
    assert found["share_of_training"] == pytest.approx(found["seconds"] / (40 * 2))
    assert max(found["peak_bytes"]) <= 8_000_000 < max(plain["peak_bytes"])
    assert found["rounds"] > plain["rounds"]
    # An owner has the quarter of each matrix that its replica gave it; in fp32.
    total = 25_296_896 - 512 * 512
    assert sum(found["bytes_received"]) == pytest.approx(4 * total * 3 / 4, rel=0.01)
    # Windows of one size cost the same, whatever their matrix.
    assert len({round(load, 12) for load in found["load_seconds"]}) <= 2


def test_options_stand_above_the_recipe(capsys, profile, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(RECIPE)
    given = ["--dtype", "bfloat16", "--interval", "80", "--memory_budget", "100000000", "--replicas", "1"]
    common = ["--recipe", str(path), "--world_size", "8", "--machine", profile]
    own, found = planned(capsys, *common), planned(capsys, *common, *given)
    assert found["share_of_training"] == pytest.approx(found["seconds"] / (80 * 2))
    assert found["rounds"] < own["rounds"]
    assert sum(found["bytes_received"]) == pytest.approx(
        sum(own["bytes_received"]) / 2 * (7 / 8) / (3 / 4), rel=0.01
    )
    assert planned(capsys, *common, "--sharding", "zero3")["sharding"] == "zero3"


def test_a_plan_counts_the_work_of_heads(capsys, profile, tmp_path):
    path = tmp_path / "own.yaml"
    common = ["--world_size", "8", "--machine", profile]
    found = []
    for heads in ("false", "true"):
        path.write_text(f"model: {{name: llama_60m}}\ndecay: {{heads: {heads}}}\n")
        found.append(planned(capsys, "--recipe", str(path), *common))
    whole, cut = found
    assert sum(cut["load_seconds"]) < sum(whole["load_seconds"])
    assert sum(cut["bytes_received"]) == pytest.approx(sum(whole["bytes_received"]), rel=0.1)


def test_windows_that_do_not_fit_are_refused_as_by_a_run(capsys, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(RECIPE.replace("farms_rows: 128", "farms_rows: 1024"))
    assert cli.main(["plan", "--recipe", str(path), "--world_size", "8"]) == 2
    assert "proj: " in capsys.readouterr().err


def test_masters_are_planned_in_fp32(capsys, profile):
    options = ["--recipe", "llama_60m", "--world_size", "8", "--machine", profile, "--sharding"]
    masters, shards = planned(capsys, *options, "zero2_masters"), planned(capsys, *options, "zero3")
    assert sum(masters["bytes_received"]) == 2 * sum(shards["bytes_received"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--world_size", "8"], "either --recipe NAME or --config PATH"),
        (["--recipe", "lama_1b", "--world_size", "8"], "did you mean 'llama_1b'"),
        (["--recipe", "llama_1b", "--world_size", "0"], "world_size: found 0"),
        (["--recipe", "llama_1b", "--world_size", "8", "--replicas", "3"], "replicas: found 3"),
        (["--recipe", "llama_1b", "--world_size", "8", "--replicas", "2"], "replicas: found 2 with zero3"),
        (["--recipe", "llama_1b", "--world_size", "8", "--replicas", "0"], "replicas: found 0"),
        (["--recipe", "llama_1b", "--world_size", "8", "--tensor_parallel", "2"], "tensor_parallel: found 2"),
        (["--recipe", "llama_1b", "--world_size", "8", "--interval", "0"], "interval: found 0"),
        (["--recipe", "llama_1b", "--world_size", "8", "--memory_budget", "0"], "memory_budget: found 0"),
        (
            ["--recipe", "llama_1b", "--world_size", "8", "--machine", "nowhere.json"],
            "--machine nowhere.json: no such file",
        ),
        (["--recipe", "llama_1b", "--world_size", "8", "--bandwidth", "fast"], "--bandwidth: found 'fast'"),
        (["--recipe", "demo", "--world_size", "2", "--update_seconds", "0"], "--update_seconds: found 0.0"),
        (["--recipe", "llama_1b", "--world_size", "8", "--memory_budget", "x"], "--memory_budget: found 'x'"),
        (["--config", "nowhere", "--world_size", "8"], "--config nowhere: no such file"),
    ],
)
def test_mistakes_are_one_line(capsys, options, words):
    assert cli.main(["plan", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_a_plan_says_what_it_assumed_and_who_owns_what(capsys, profile):
    command = ["plan", "--recipe", "llama_60m", "--world-size", "12", "--machine", profile]
    assert cli.main([*command, "--bandwidth", "200Gb/s"]) == 0
    text = capsys.readouterr().out
    assert "1e+05 Gflop/s in products, 1e+03 Gflop/s in tridiagonalisation, given in " in text
    assert "25 GB/s into each rank" in text
    assert "2 s an update, a refresh every 500 updates" in text
    owned = [line for line in text.splitlines() if line.startswith("  rank ")]
    assert len(owned) == 8
    assert "  and 4 ranks more; --json names each matrix's owner" in text
    found = planned(capsys, *command[1:])
    assert [int(line.split()[2]) for line in owned] == [
        list(found["owners"].values()).count(rank) for rank in range(8)
    ]
    assert found["assumed"]["bandwidth"] == 1e10


def test_a_plan_says_that_it_measured_this_machine(capsys):
    assert cli.main(["plan", "--recipe", "llama_60m", "--world_size", "2"]) == 0
    text = capsys.readouterr().out
    assert "measured here, on " in text
    assert "at least" not in text
    assert "--machine FILE gives the job's" in text
    assert "assumed of the network: nothing; give --bandwidth, as in 25GB/s" in text
    assert "give --update_seconds for its share" in text


def test_owners_are_those_of_a_run_on_such_devices_whatever_their_rates(tmp_path):
    job, sharding, owners = job_for(on_meta("llama_1b")), Sharding("zero3", 16), []
    path = tmp_path / "machine.json"
    for gram, device in ((1e12, "cpu"), (1e15, "cpu"), (1e12, "cuda"), (1e15, None)):
        path.write_text(
            json.dumps({"gram": gram, "tridiagonal": 2e11, **({"device": device} if device else {})})
        )
        owners.append(dict(forecast(job, sharding, read_machine(path)).owners))
    assert owners[0] == owners[1]
    assert owners[2] == owners[3]
    assert owners[1] != owners[2]


def test_units_are_taken_wherever_bytes_are_given(capsys, tmp_path):
    path = tmp_path / "machine.json"
    path.write_text('{"gram": 1e14, "tridiagonal": 1e12, "bandwidth": "10GB/s"}')
    plain = tmp_path / "plain.json"
    plain.write_text('{"gram": 1e14, "tridiagonal": 1e12, "bandwidth": 1e10}')
    common = ["--recipe", "llama_1b", "--world_size", "8"]
    units = planned(capsys, *common, "--memory_budget", "64MiB", "--machine", str(path))
    numbers = planned(capsys, *common, "--memory_budget", str(2**26), "--machine", str(plain))
    assert units["seconds"] == numbers["seconds"]
    assert units["rounds"] == numbers["rounds"] > planned(capsys, *common, "--machine", str(path))["rounds"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"gram": 1, "tridiagonal": 1, "bandwidth": "fast"}',
        '{"gram": 1, "tridiagonal": 1, "origin": "x"}',
        '{"gram": 1, "tridiagonal": 1, "device": "tpu"}',
        '{"gram": 1, "tridiagonal": 1, "update_seconds": 0}',
        '{"gram": 1}',
        '{"gram": 0, "tridiagonal": 1}',
        '{"gram": 1, "tridiagonal": 1, "x": 2}',
    ],
)
def test_a_profile_that_is_none_is_refused(capsys, tmp_path, text):
    path = tmp_path / "machine.json"
    path.write_text(text)
    assert cli.main(["plan", "--recipe", "llama_60m", "--world_size", "2", "--machine", str(path)]) == 2
    assert "machine.json" in capsys.readouterr().err
