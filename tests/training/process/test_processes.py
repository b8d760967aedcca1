"""Processes that a launcher other than torch's starts: one run together, or one refusal; never a run each."""

from __future__ import annotations

import socket

import pytest

from tests.training.processes import started
from tests.training.runs import ROOT, left_behind, tiny_options, train_on

pytestmark = [pytest.mark.ranks, pytest.mark.launcher]

ZERO2 = ["--deepspeed", str(ROOT / "ds_configs" / "zero2.json")]


def of_mpirun(rank, **more):
    names = {"OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_SIZE": 2, "OMPI_COMM_WORLD_LOCAL_RANK": rank}
    return {**names, "PMI_RANK": rank, "PMI_SIZE": 2, "OMP_NUM_THREADS": 1, **more}


def errors(text):
    assert "Traceback" not in text, text
    return [line for line in text.splitlines() if line.startswith("train.py: ")]


@pytest.mark.parametrize("engine", [[], ZERO2], ids=["fsdp2", "zero2"])
def test_two_processes_of_mpirun_are_two_ranks_of_one_run(tmp_path, engine):
    options = tiny_options(tmp_path, train__steps=4, decay__interval=2)
    argv = [*engine, "--output-dir", str(tmp_path / "run"), *options]
    done = started(tmp_path, [of_mpirun(0), of_mpirun(1)], [argv, argv])
    assert [code for code, _ in done] == [0, 0], done
    run = left_behind(tmp_path / "run")
    assert [line["step"] for line in run["metrics"]] == [1, 2, 3, 4]
    assert all(len(line["bytes_received"]) == 2 for line in run["decay"])
    expected = train_on(2, "2" if engine else "fsdp2", tmp_path / "expected", options)
    assert [line["loss"] for line in run["metrics"]] == [line["loss"] for line in expected["metrics"]]
    # The terminal shows each refresh once.
    shown = [
        line for line in done[0][1].replace("\r", "\n").splitlines() if line.startswith("refresh at update ")
    ]
    assert [line.partition(":")[0] for line in shown] == ["refresh at update 0", "refresh at update 2"]
    alphas = [module["alpha"] for module in run["decay"][0]["modules"].values()]
    assert f"{len(alphas)} matrices, alpha {min(alphas):.2f} to {max(alphas):.2f}, median " in shown[0]
    assert done[0][1].count(f"AlphaDecay: {len(alphas)} modules, ") == 1
    assert done[0][1].count("AlphaDecay: tuned: ") == 1
    assert "refresh at update" not in done[1][1]
    assert "AlphaDecay: " not in done[1][1]


def test_two_output_directories_or_recipes_are_refused_by_rank_0(tmp_path):
    options = tiny_options(tmp_path)
    argvs = [["--output_dir", str(tmp_path / name), *options] for name in ("a", "b")]
    done = started(tmp_path, [of_mpirun(0), of_mpirun(1)], argvs)
    assert [code for code, _ in done] == [2, 2], done
    (line,) = errors(done[0][1])
    assert f"--output_dir: rank 0 has '{tmp_path / 'a'}', rank 1 has '{tmp_path / 'b'}'" in line
    assert not errors(done[1][1])
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()


def test_ranks_on_several_nodes_without_a_host_are_refused_by_rank_0(tmp_path):
    argv = ["--output_dir", str(tmp_path / "run"), *tiny_options(tmp_path)]
    variables = [of_mpirun(rank, OMPI_COMM_WORLD_LOCAL_SIZE=1) for rank in (0, 1)]
    done = started(tmp_path, variables, [argv, argv])
    assert [code for code, _ in done] == [2, 2], done
    (line,) = errors(done[0][1])
    assert "MASTER_ADDR: not set" in line
    assert not errors(done[1][1])


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"RANK": 0}, "error: WORLD_SIZE: not set with RANK 0"),
        ({"RANK": "a"}, "error: RANK: found 'a'"),
        ({"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1"}, "is taken on"),
    ],
    ids=["rank alone", "no number", "taken port"],
)
def test_variables_that_are_wrong_are_one_line_and_exit_code_2(tmp_path, variables, words):
    argv = ["--output_dir", str(tmp_path / "run"), *tiny_options(tmp_path)]
    with socket.create_server(("", 0)) as taken:
        port = {"MASTER_PORT": taken.getsockname()[1]} if "WORLD_SIZE" in variables else {}
        ((code, text),) = started(tmp_path, [variables | port], [argv])
    assert code == 2, text
    (line,) = errors(text)
    assert words in line
    assert not (tmp_path / "run").exists()


def test_a_smaller_micro_batch_and_slow_bf16_are_said_in_a_line_each(tmp_path):
    options = tiny_options(tmp_path, train__micro_batch=7, train__steps=1, train__dtype="bfloat16")
    as_avx2 = {"ATEN_CPU_CAPABILITY": "avx2"}  # torch then uses no AVX-512, whatever the CPU has
    ((code, text),) = started(
        tmp_path, [as_avx2], [["--output_dir", str(tmp_path / "run"), *options, "--dry-run"]]
    )
    assert code == 0, text
    size, slow = [line for line in text.splitlines() if line.startswith(("micro-batches of", "train.dtype:"))]
    assert size.startswith("micro-batches of 6 sequences: train.micro_batch is 7")
    assert slow.startswith("train.dtype: bfloat16 is many times slower than float32 on this CPU")
