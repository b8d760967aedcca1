"""Training jobs on a real SLURM of two nodes: through signals, requeues, limits and dead nodes."""

from __future__ import annotations

import os
import sys

import pytest

from tests.slurm.cluster import wait_until
from tests.slurm.jobs import TWO_NODES, Job, updates
from tests.training.runs import ROOT, left_behind, tiny_options, train_on

pytestmark = pytest.mark.slurm

ZERO2 = ["--deepspeed", "ds_configs/zero2.json"]


def losses(run):
    return [(line["step"], line["loss"]) for line in run["metrics"]]


def test_zero2_on_two_nodes_comes_back_from_signals_and_requeues(tmp_path, cluster):
    """SIGUSR2 as before a time limit, then ``scontrol requeue``; the losses are the unbroken run's."""
    output = tmp_path / "run"
    options = tiny_options(tmp_path, train__steps=120, checkpoint__every=20)
    job = Job(cluster, tmp_path, TWO_NODES, [*ZERO2, "--output_dir", str(output), *options], DOCTOR="60")
    job.until(lambda: updates(output) >= 3)
    assert "all 2 ranks on 2 nodes are well" in job.printed()
    job.signal("--signal=USR2", "--batch")
    job.until(lambda: len(job.lines("rendezvous")) == 2)
    before = updates(output)
    job.until(lambda: updates(output) >= before + 3)
    cluster.run("scontrol", "requeue", job.id)
    assert job.over() == "COMPLETED", job.printed()
    first, second, third = job.lines("ended")
    assert "preempted" in first
    assert "SIGUSR2" in first
    assert "back into the queue, 1 of" in first
    assert "left to it" in second
    assert third.endswith("finished at update 120: done")
    assert [line.count(f"from {output}/checkpoints/") for line in job.lines("rendezvous")] == [0, 1, 1]
    assert losses(left_behind(output)) == losses(train_on(2, "2", tmp_path / "unbroken", options))


def test_fsdp2_comes_back_after_a_node_has_died(tmp_path, cluster):
    """The node with rank 1 dies; SLURM requeues the job, which waits until the node is there again."""
    output = tmp_path / "run"
    options = tiny_options(tmp_path, train__steps=100, checkpoint__every=20)
    job = Job(cluster, tmp_path, TWO_NODES, ["--output_dir", str(output), *options])
    job.until(lambda: updates(output) >= 25)
    cluster.fail_node("n2")
    job.until(lambda: job.state == "PENDING")
    assert "DUE TO NODE FAILURE" in job.log()
    cluster.start_node("n2")
    assert job.over() == "COMPLETED", job.printed()
    assert [f"from {output}/checkpoints/step-" in line for line in job.lines("rendezvous")] == [False, True]
    assert losses(left_behind(output)) == losses(train_on(2, "fsdp2", tmp_path / "unbroken", options))


def test_a_preempted_job_comes_back_until_it_is_cancelled(tmp_path, cluster):
    """A job of a partition before its own takes the nodes: SLURM sends SIGTERM alone, to the tasks alone."""
    output = tmp_path / "run"
    job = Job(
        cluster,
        tmp_path,
        TWO_NODES,
        ["--output_dir", str(output), *tiny_options(tmp_path, train__steps=100000)],
    )
    job.until(lambda: updates(output) >= 3)
    urgent = ["--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null"]
    cluster.run("sbatch", *urgent, "--wrap", "true")
    job.until(lambda: len(job.lines("rendezvous")) == 2)
    (end,) = job.lines("ended")
    assert "preempted" in end
    assert "SIGTERM" in end
    before = updates(output)
    job.until(lambda: updates(output) > before + 3)
    job.signal()
    assert job.over() == "CANCELLED"
    job.until(lambda: len(job.lines("ended")) == 2)
    assert job.lines("ended")[1].endswith("cancelled, or requeued by SLURM: left to it")
    assert job.facts()["Restarts"] == "1"


def test_at_the_time_limit_up_to_the_requeue_limit(tmp_path, cluster):
    """A limit of which SLURM tells by SIGTERM alone; a second sbatch goes on, on two ranks."""
    output = tmp_path / "run"
    arguments = ["--output_dir", str(output), *tiny_options(tmp_path, train__steps=100000)]
    limit = ("--time=1", "--signal=B:URG@1")  # nobody listens to that one
    job = Job(cluster, tmp_path, limit, arguments, REQUEUE_LIMIT="1")
    job.until(lambda: len(job.lines("rendezvous")) == 2, 200)
    assert "DUE TO TIME LIMIT" in job.log()
    before = updates(output)
    job.until(lambda: updates(output) > before + 3)
    job.signal("--signal=USR2")
    assert job.over() == "FAILED"
    assert job.facts()["ExitCode"] == "75:0"
    first, second = job.lines("ended")
    assert "(SIGTERM): back into the queue, 1 of at most 1 times" in first
    assert "(SIGUSR2): not requeued: REQUEUE_LIMIT=1 is reached" in second
    stop = updates(output) + 5
    two_ranks = ("--gpus-per-node=2",)
    job = Job(cluster, tmp_path, two_ranks, [*arguments, f"--train.stop_after={stop}"])
    assert job.over() == "COMPLETED", job.printed()
    assert f"from {output}/checkpoints/step-" in job.lines("rendezvous")[0]
    assert [line["step"] for line in left_behind(output)["metrics"]] == list(range(1, stop + 1))


def test_what_cannot_succeed_ends_in_seconds_and_for_good(tmp_path, cluster):
    arguments = ["--output_dir", str(tmp_path / "run"), *tiny_options(tmp_path), "--train.step=3"]
    recipe = Job(cluster, tmp_path, (), arguments)
    settings = Job(cluster, tmp_path, (), [], CONTAINER="pyxis")
    assert (settings.over(20), recipe.over(60)) == ("FAILED", "FAILED")
    for job in (recipe, settings):
        assert (job.facts()["ExitCode"], job.facts()["Restarts"]) == ("2:0", "0")
    assert "not requeued: it would fail again" in recipe.log()
    assert "with 2 (train.py: error: unknown key train.step; did you mean 'steps'?" in recipe.log()
    assert "CONTAINER=pyxis without CONTAINER_IMAGE" in settings.log()


def test_a_node_that_is_not_well_is_named_before_any_training(tmp_path, cluster):
    """On n2 nothing starts; SLURM itself finds nothing wrong with it."""
    broken = tmp_path / "bin" / "python"
    broken.parent.mkdir()
    broken.write_text(f'#!/bin/sh\n[ "$SLURMD_NODENAME" = n2 ] && exit 1\nexec {sys.executable} "$@"\n')
    broken.chmod(0o755)
    path = f"{broken.parent}:{os.environ['PATH']}"
    arguments = ["--output_dir", str(tmp_path / "run"), *tiny_options(tmp_path)]
    job = Job(cluster, tmp_path, TWO_NODES, arguments, DOCTOR="20", PATH=path)
    assert job.over() == "FAILED"
    (end,) = job.lines("ended")
    assert "1 of 2 ranks did not come within 20 s: 1; no rank came from n2" in end
    assert "not requeued" in end
    assert not (tmp_path / "run").exists()


def test_a_dead_node_is_told_from_a_failure_of_the_run(tmp_path, cluster):
    """What slurm/job.py asks before it calls a failed run failed: does every node of the job still answer?"""
    code = (
        "import os, sys; sys.path.insert(0, 'slurm'); from job import silent_node; from launch import Job; "
        "print('found', silent_node(Job(dict(os.environ))))"
    )
    ask = f'{sys.executable} -c "{code}"'
    variables = {"LOGS": "logs", "REQUEUE_LIMIT": "1", "CPU_BIND": "none", "TRAIN_OPTIONS": "", "DOCTOR": "0"}
    wrap = f"{ask}; touch {tmp_path}/asked; while [ ! -e {tmp_path}/dead ]; do sleep 0.1; done; {ask}"
    words = ["sbatch", "--parsable", f"--output={tmp_path}/out", *TWO_NODES, "--no-requeue"]
    cluster.run(*words, "--wrap", wrap, cwd=ROOT, **variables)
    wait_until((tmp_path / "asked").exists, 60)
    cluster.fail_node("n2")
    (tmp_path / "dead").touch()
    wait_until(lambda: (tmp_path / "out").read_text().count("found") == 2, 60)
    cluster.start_node("n2")
    answers = [line for line in (tmp_path / "out").read_text().splitlines() if line.startswith("found")]
    assert answers[0] == "found None"
    assert "failed on node n2" in answers[1]
