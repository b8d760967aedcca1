"""The benchmark scripts run; what they measure is looked at by people."""

from __future__ import annotations

import argparse
import importlib
import math
import subprocess
import sys
from pathlib import Path

import pytest

from alphadecay_dist import AlphaDecay, param_groups
from tests.training.runs import tiny_options

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PARTS = (
    "check",
    "doctor",
    "spectra",
    "interval",
    "exchange",
    "groups",
    "muon",
    "train256",
    "train2048",
    "zero",
    "zero_train",
)


def run(script, *options):
    command = [sys.executable, str(BENCHMARKS / script), "--device", "cpu", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.launcher
def test_a_refresh_is_timed():
    header, _, row = run("refresh.py", "--sizes", "60m", "--repeats", "1")[-3:]
    found = dict(zip(cells(header), cells(row), strict=True))
    assert found["matrices"] == "56"
    assert float(found["alpha error, ours"]) < 1e-5


@pytest.mark.launcher
def test_the_cost_of_an_interval_follows_from_an_update_and_a_refresh():
    sizes = ("--shape", "tiny", "--batch", "1", "--seq", "16", "--repeats", "1", "--lag", "2")
    header, _, *rows = map(cells, run("interval.py", *sizes)[-6:])
    found = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert list(found) == ["Uniform", "released", "ours", "ours with a lag"]
    update = float(found["Uniform"]["update, s"])
    for name, row in found.items():
        assert float(row["update, s"]) > 0
        for interval in (500, 100, 50, 10) if name != "Uniform" else ():
            expected = 1 + float(row["refresh, s"]) / interval / update
            assert float(row[str(interval)]) == pytest.approx(expected, rel=0.05)
        assert (row["1"] == "-") == (row["1, as a loop"] == "-") == (name == "ours with a lag")
    assert all(float(found[name]["10, as a loop"]) > 0 for name in found)
    assert float(found["released"]["training stands still, s"]) > 0


@pytest.mark.launcher
def test_muon_on_owners_moves_less_and_ends_where_the_gathered_one_does():
    header, _, row = map(cells, run("muon.py", "--sizes", "tiny", "--repeats", "1")[-3:])
    found = dict(zip(header, row, strict=True))
    assert all(float(found[name]) > 0 for name in ("gathered, s", "owners, s", "ratio"))
    assert 0 < float(found["owners, MB"]) <= float(found["gathered, MB"])


@pytest.mark.launcher
def test_a_sample_is_timed_against_a_refresh():
    header, _, row = map(
        cells, run("condition.py", "--shape", "tiny", "--batch", "1", "--seq", "16", "--tuned")[-3:]
    )
    found = dict(zip(header, row, strict=True))
    assert all(float(found[name]) > 0 for name in ("refresh, s", "step() alone, s", "update, s"))
    assert all(math.isfinite(float(found[name])) for name in ("sample / refresh, beside it", "alone"))


@pytest.fixture
def script(monkeypatch):
    """A benchmark's module, by its name."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


def test_the_released_algorithms_loop_writes_the_decays_of_the_reference_preset(script):
    interval = script("interval")
    args = argparse.Namespace(shape="tiny", batch=1, seq=16, accumulate=2, device="cpu")
    ours = interval.Training(args, lambda model: param_groups(model, weight_decay=interval.BASE))
    made = []

    def groups(model):
        made.append(interval.Released(model))
        return made[0].groups()

    released = interval.Training(args, groups)
    for training in (ours, released):
        training.update()
    made[0].refresh(released.optimizer)
    bounds = {"min_ratio": interval.MIN_RATIO, "max_ratio": interval.MAX_RATIO}
    decay = AlphaDecay(ours.model, ours.optimizer, weight_decay=interval.BASE, preset="reference", **bounds)
    expected = {name: module.weight_decay for name, module in decay.refresh().modules.items()}
    names = {
        id(parameter): name.removesuffix(".weight") for name, parameter in released.model.named_parameters()
    }
    *own, rest = released.optimizer.param_groups
    found = {names[id(group["params"][0])]: group["weight_decay"] for group in own}
    assert len(set(found.values())) == len(found) == 13
    assert found == pytest.approx({name: expected[name] for name in found}, rel=1e-4)
    assert rest["weight_decay"] == interval.BASE
    assert {"model.layers.0.self_attn.q_proj", "lm_head"} <= {names[id(weight)] for weight in rest["params"]}


@pytest.mark.launcher
def test_solvers_are_timed():
    lines = run("solvers.py", "--sizes", "64", "96", "--repeats", "1")
    assert cells(lines[2]) == ["ms a matrix", "N = 64", "N = 96"]
    assert all(float(cell) > 0 for line in lines[4:] for cell in cells(line)[1:])


@pytest.mark.launcher
def test_the_exchange_is_timed_and_moves_a_wth():
    lines = run("exchange.py", "--sizes", "tiny", "--ranks", "2", "--repeats", "1")
    assert len(lines) == 4 + 4
    assert all(float(cells(line)[8]) == 2.0 for line in lines[4:])


@pytest.mark.launcher
def test_updates_with_many_groups_and_with_two_are_timed():
    sizes = ("--matrices", "4", "--width", "64", "--rows", "4", "--repeats", "2")
    lines = run("groups.py", "--engine", "zero3", "--ranks", "2", *sizes)
    assert len(lines) == 4 + 2
    assert all(float(cell) > 0 for line in lines[4:] for cell in cells(line)[3:])


@pytest.mark.launcher
def test_the_check_for_gpus_passes_on_gloo():
    lines = run("nccl_check.py", "--ranks", "2", "--no_timing")
    assert len(lines) == 1 + 17 + 1
    assert all("bit-identical" in line for line in lines[1:-1])
    assert lines[-1] == "another plan on one rank: refused by all"


@pytest.mark.launcher
def test_throughput_is_told_for_both_policies(tmp_path):
    options = [*tiny_options(tmp_path, train__steps=8), "--decay.interval=4", "--decay.apply=auto"]
    command = [sys.executable, str(BENCHMARKS / "throughput.py"), "--repeats", "1", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()[-6:]
    assert [cells(line)[0] for line in lines[1:3]] == ["uniform", "alphadecay"]
    assert all(float(cells(line)[2].replace(",", "")) > 0 for line in lines[1:3])
    assert "of a window of 500 updates" in lines[4]


@pytest.mark.launcher
def test_saving_is_timed_both_ways(tmp_path):
    options = tiny_options(tmp_path, train__steps=6, checkpoint__every=2)
    command = [sys.executable, str(BENCHMARKS / "saving.py"), "--repeats", "1", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [cells(line) for line in done.stdout.splitlines()[-2:]]
    assert [row[:2] for row in rows] == [["false", "2"], ["true", "2"]]
    assert all(float(row[3]) > 0 for row in rows)


@pytest.mark.launcher
@pytest.mark.long
def test_updates_are_timed_alone_and_beside_a_busy_process(tmp_path):
    sizes = ("--repeats", "1", "--updates", "3")
    rows = [cells(line) for line in run("busy.py", *sizes, *tiny_options(tmp_path))[-3:]]
    assert [row[0] for row in rows] == ["raw torch loop", "trainer, before", "trainer, now"]
    assert all(float(cell) > 0 for row in rows for cell in row[1:])
    assert rows[-1][2] == rows[-1][4] == "1.00"


@pytest.fixture
def ranks(script):
    return script("ranks")


def test_a_row_that_fails_is_a_line(ranks):
    assert ranks.outcome("fsdp2", lambda: "| fsdp2 | 1 |") == "| fsdp2 | 1 |"
    assert ranks.outcome("fsdp2", lambda: str(int("x"))).startswith("fsdp2: failed: invalid literal")


@pytest.mark.parametrize("row", ["zero1", "ZeRO-3 GatheredParameters"])
def test_rows_without_deepspeed_are_skipped(ranks, row, monkeypatch):
    assert ranks.outcome(row, lambda: "run") == "run"
    monkeypatch.setitem(sys.modules, "deepspeed", None)  # as where it is not installed
    assert ranks.outcome(row, lambda: "run") == f"{row}: skipped: no deepspeed"


def gpu(*options):
    command = ["bash", str(BENCHMARKS / "gpu.sh"), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.launcher
def test_a_part_for_gpus_writes_its_file(tmp_path):
    done = gpu("groups", "--device", "cpu", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    machine, _, command, *rest = (tmp_path / "groups.txt").read_text().splitlines()
    assert "torch" in machine
    assert command.startswith("$ python3 benchmarks/groups.py --device cpu --ranks 2")
    assert [cells(line)[0] for line in rest[-4:]] == ["fsdp2", "fsdp2", "ddp", "ddp"]


@pytest.mark.parametrize(
    ("options", "said"),
    [((), "give --out DIR"), (("--fast",), "unknown option --fast"), (("wings",), "unknown part wings")],
)
def test_a_mistake_in_the_options_of_gpus_is_a_line(options, said, tmp_path):
    out = ("--out", str(tmp_path)) if "wings" in options else ()
    done = gpu(*options, *out, "--device", "cpu")
    assert done.returncode == 2
    assert said in done.stderr


def test_the_page_names_every_part():
    page = (BENCHMARKS.parent / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert all(f"`{part}`" in page for part in PARTS)
    assert f"all=({' '.join(PARTS)})" in (BENCHMARKS / "gpu.sh").read_text()
