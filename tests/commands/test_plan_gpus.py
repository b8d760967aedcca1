"""A plan for GPUs that are not at hand, and for what a DeepSpeed JSON says."""

from __future__ import annotations

import json

import pytest

from alphadecay_dist import cli
from alphadecay_dist.commands.forecast import job_of_recipe
from alphadecay_dist.commands.gpus import MEASURED, machine_of, table
from alphadecay_dist.sharding.ownership import TRIDIAGONAL
from alphadecay_dist.sharding.planning import costs_of
from alphadecay_dist.training.config import load_config
from alphadecay_dist.training.utilization import PEAKS, peak_flops

COMMON = ("--recipe", "llama_60m", "--world_size", "16")


def planned(capsys, *options):
    assert cli.main(["plan", *COMMON, *options, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_gpu_that_is_not_at_hand_is_planned_by_its_data_sheet(capsys):
    found = planned(capsys, "--sharding", "zero3", "--profile", "h100", "--link", "400gb")
    rates, job = found["assumed"]["rates"], job_of_recipe(load_config("llama_60m"))
    assert rates == {"gram": 67e12, "tridiagonal": 2 * 3.35e12}
    assert found["assumed"]["bandwidth"] == 400e9 / 8
    costs = costs_of(job.weights, rates["gram"] / rates["tridiagonal"], None)
    assert sum(found["load_seconds"]) == pytest.approx(sum(costs.values()) / 67e12)
    longest = max(found["load_seconds"]) + max(found["bytes_received"]) / 50e9
    assert found["seconds"] == pytest.approx(longest)
    slow = sum(costs_of(job.weights, TRIDIAGONAL["cuda"], None).values()) / 67e12 / 16
    assert found["estimated"][0] > slow > 10 * found["seconds"]
    update = job.flops / (0.4 * PEAKS["H100"] * 16)
    assert found["assumed"]["update_seconds"] == pytest.approx(update)
    assert found["share_of_training"] == pytest.approx(longest / (job.interval * update))
    assert found["estimated"][1] == pytest.approx(found["estimated"][0] / (job.interval * update))


def test_a_plan_by_a_data_sheet_names_it_and_what_was_assumed(capsys):
    options = ["plan", *COMMON, "--sharding", "zero3", "--profile", "mi300x", "--link", "xgmi"]
    assert cli.main(options) == 0
    text = capsys.readouterr().out
    assert "refresh: at least " in text
    assert "the most that the data sheet of mi300x allows" in text
    assert "448 GB/s into each rank" in text
    assert "source: AMD Instinct MI300X data sheet: single precision 163.4 TFLOPS, 5.3 TB/s" in text
    assert "refresh, with tridiagonalisation 1000 times slower than products, which is an estimate: " in text
    assert "2 flops a byte of memory traffic" in text
    assert "flops at 40% of 1307 Tflop/s a rank in bfloat16" in text
    assert cli.main([*options, "--update_seconds", "2"]) == 0
    text = capsys.readouterr().out
    assert "2 s an update" in text
    assert "40%" not in text


@pytest.mark.parametrize("name", table()["gpus"])
def test_every_gpu_has_a_peak_a_link_and_a_source(capsys, name):
    gpu = table()["gpus"][name]
    assert peak_flops(gpu["device_name"], "bfloat16") > gpu["fp32"] > gpu["memory"]
    assert "data sheet" in gpu["source"]
    (link,) = gpu["links"]
    assert machine_of(name, link).bandwidth > machine_of(name, "400gb").bandwidth
    with pytest.raises(SystemExit):
        cli.main(["plan", "--help"])
    told = capsys.readouterr().out
    assert {name, link, MEASURED, *table()["ports"]} <= set(told.replace(",", " ").replace(":", " ").split())


@pytest.mark.parametrize(
    ("file", "more", "sharding"),
    [
        ("zero1", (), "zero1"),
        ("zero2", (), "zero2"),
        ("zero2", ("--sharding", "zero2_masters"), "zero2_masters"),
        ("zero3", ("--sharding", "zero3"), "zero3"),
        ("zero3_offload", (), "zero3"),
    ],
)
def test_the_sharding_is_that_of_a_deepspeed_json(capsys, file, more, sharding):
    options = ("--deepspeed", f"ds_configs/{file}.json", "--profile", "a100", "--link", "nvlink")
    found, named = planned(capsys, *options, *more), planned(capsys, *options[2:], "--sharding", sharding)
    assert found["sharding"] == sharding
    assert found == named


def test_batches_in_a_deepspeed_json_tell_its_world_size(capsys, tmp_path):
    path, link = tmp_path / "ds.json", ("--profile", "a100", "--link", "100gb")
    batches = {"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 4}
    path.write_text(json.dumps({"train_batch_size": 128, **batches, "zero_optimization": {"stage": 3}}))
    assert planned(capsys, "--deepspeed", str(path), *link)["sharding"] == "zero3"
    path.write_text(json.dumps({"train_batch_size": 64, **batches, "zero_optimization": {"stage": 3}}))
    assert cli.main(["plan", *COMMON, "--deepspeed", str(path), *link]) == 2
    assert "found train_batch_size 64, expected 2 * 4 * 16 ranks" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--profile", "v100"], "--profile: found 'v100', expected measured or a100, h100, h200, mi300x"),
        (["--profile", "h100", "--link", "xgmi"], "--link: found 'xgmi', expected one of nvlink, 100gb"),
        (["--machine", "m.json", "--link", "nvlink"], "--link: found 'nvlink' without a GPU's profile"),
        (["--machine", "m.json", "--profile", "h100"], "--machine: found with --profile h100"),
        (["--bandwidth", "1e9", "--link", "100gb"], "--bandwidth: found with --link 100gb"),
        (["--deepspeed", "m.json"], "optimizer' section, expected none"),
        (["--deepspeed", "mics.json"], "found mics_shard_size, expected none: MiCS cannot be planned"),
        (["--deepspeed", "nowhere.json"], "--deepspeed nowhere.json: no such file"),
        (
            ["--deepspeed", "ds_configs/zero2.json", "--sharding", "fsdp2"],
            "--sharding: found fsdp2, expected zero2 with --deepspeed ds_configs/zero2.json",
        ),
    ],
)
def test_what_cannot_be_planned_is_named(capsys, tmp_path, options, words):
    path = tmp_path / "m.json"
    own = {"optimizer": {}} if "--deepspeed" in options else {"gram": 1e12, "tridiagonal": 1e11}
    path.write_text(json.dumps(own))
    (tmp_path / "mics.json").write_text('{"zero_optimization": {"stage": 3, "mics_shard_size": "auto"}}')
    options = [str(tmp_path / own) if own == "mics.json" else own for own in options]
    given = [str(path) if option == "m.json" else option for option in options]
    assert cli.main(["plan", *COMMON, *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
