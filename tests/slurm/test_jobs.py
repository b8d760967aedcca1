"""Training jobs on a real SLURM of two nodes: through signals, requeues, limits and dead nodes."""

from __future__ import annotations

import pytest

from tests.slurm.jobs import TWO_NODES, Job, updates
from tests.training.runs import left_behind, tiny_options, train_on

pytestmark = pytest.mark.slow

ZERO2 = ["--deepspeed", "ds_configs/zero2.json"]


def losses(run):
    return [(line["step"], line["loss"]) for line in run["metrics"]]


def test_zero2_on_two_nodes_comes_back_from_signals_and_requeues(tmp_path, cluster):
    """SIGUSR2 to the tasks, then ``scontrol requeue``; the losses are the unbroken run's, bit for bit."""
    output = tmp_path / "run"
    options = tiny_options(tmp_path, train__steps=200, checkpoint__every=20)
    job = Job(cluster, tmp_path, TWO_NODES, [*ZERO2, "--output_dir", str(output), *options])
    job.until(lambda: updates(output) >= 3)
    job.signal("--signal=USR2")
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
    assert third.endswith("finished at update 200: done")
    assert [line.count(f"from {output}/checkpoints/") for line in job.lines("rendezvous")] == [0, 1, 1]
    assert losses(left_behind(output)) == losses(train_on(2, "2", tmp_path / "unbroken", options))
