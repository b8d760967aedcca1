"""What slurm/ decides and builds, without a SLURM."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import pytest

from tests.training.runs import ROOT

ENVIRONMENT = {
    "SLURM_JOB_ID": "45003",
    "SLURM_JOB_NAME": "1b.sbatch",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_JOB_NODELIST": "gpu[03-04]",
    "SLURM_GPUS_PER_NODE": "a100:8",
    "SLURM_CPUS_ON_NODE": "64",
    "SLURM_CPUS_PER_GPU": "8",
    "SLURM_NTASKS": "2",
    "REQUEUE_LIMIT": "50",
    "LOGS": "logs",
    "CPU_BIND": "cores",
    "CONTAINER": "",
    "CONTAINER_IMAGE": "",
    "CONTAINER_MOUNTS": "",
    "TRAIN_OPTIONS": "",
    "DOCTOR": "120",
}
RUNNING = {"JobState": "RUNNING", "Reason": "None", "PreemptTime": "None"}
ENDING = {"JobState": "COMPLETING", "Reason": "None", "PreemptTime": ""}
AT_LIMIT = {"JobState": "COMPLETING", "Reason": "TimeLimit", "PreemptTime": "None"}
PREEMPTED = {"JobState": "COMPLETING", "Reason": "None", "PreemptTime": "2026-11-21T17:26:06"}


@pytest.fixture(scope="module")
def parts():
    """The files of slurm/, which stand beside each other and not in a package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "slurm"))
        yield {name: importlib.import_module(name) for name in ("requeue", "launch", "job")}
    for name in ("requeue", "launch", "job"):
        del sys.modules[name]


def status(code, state="preempted"):
    return {"state": state, "step": 40, "exit_code": code, "reason": None}


@pytest.mark.parametrize(
    ("code", "told", "state", "again", "why"),
    [
        (0, status(0, "finished"), RUNNING, False, "done"),
        (0, status(0), RUNNING, False, "done"),  # train.stop_after
        (75, status(75), RUNNING, True, "back into the queue, 4 of at most 5 times"),
        (75, None, RUNNING, True, "back into the queue"),  # while it started
        (75, status(75), AT_LIMIT, True, "back into the queue"),
        (75, status(75), PREEMPTED, True, "back into the queue"),
        (75, status(75), ENDING, False, "left to it"),  # scancel, scontrol requeue, a dead node
        (137, status(75), RUNNING, True, "back into the queue"),  # a rank was late, srun killed it
        (140, None, RUNNING, True, "back into the queue"),  # SIGUSR2 before Python had begun
        (143, None, RUNNING, True, "back into the queue"),
        (2, None, RUNNING, False, "it would fail again"),
        (2, status(2, "failed"), AT_LIMIT, False, "it would fail again"),
        (1, status(1, "failed"), RUNNING, False, "fix what failed"),
        (137, status(None, "running"), RUNNING, False, "fix what failed"),  # out of memory
        (1, status(1, "failed"), ENDING, False, "left to it"),  # its node has died
    ],
)
def test_what_a_job_does_at_its_end(parts, code, told, state, again, why):
    found, line = parts["requeue"].decide(parts["requeue"].End(code, told, state, restarts=3, limit=5))
    assert found == again
    assert why in line


def test_a_failure_beside_a_silent_node_is_the_nodes(parts):
    end = parts["requeue"].End(1, status(1, "failed"), RUNNING, 3, 5, silent="n2: Unable to contact slurmd")
    assert parts["requeue"].decide(end)[0]


def test_so_is_a_check_that_misses_its_ranks(parts):
    end = parts["requeue"].End(2, None, RUNNING, 3, 5, silent="n2: Unable to contact slurmd")
    assert parts["requeue"].decide(end)[0]


@pytest.mark.parametrize(("seconds", "programs"), [("0", ["train.py"]), ("90", ["-m", "train.py"])])
def test_ranks_are_checked_before_they_train(parts, seconds, programs):
    job = parts["launch"].Job({**ENVIRONMENT, "DOCTOR": seconds})
    assert [program[0] for program in parts["job"].programs(job)] == programs


def test_a_job_comes_back_a_limited_number_of_times(parts):
    end = parts["requeue"].End(75, status(75), RUNNING, restarts=5, limit=5)
    again, line = parts["requeue"].decide(end)
    assert not again
    assert "REQUEUE_LIMIT=5 is reached" in line


def test_a_rank_a_gpu_and_its_share_of_the_cores(parts):
    job = parts["launch"].Job(ENVIRONMENT)
    command = job.launch(["train.py", "--recipe", "demo"])
    assert {"--nodes=2", "--ntasks=16", "--ntasks-per-node=8", "--cpus-per-task=8"} <= set(command)
    assert "--output=logs/1b-45003/rank-%4t.log" in command
    assert command[-5:] == ["bash", "slurm/rank.sh", "train.py", "--recipe", "demo"]
    variables = job.rank_variables("10.0.0.3")
    assert variables.items() >= {"MASTER_ADDR": "10.0.0.3", "MASTER_PORT": "15003"}.items()
    assert variables["LOCAL_WORLD_SIZE"] == "8"
    assert not {"SLURM_CPUS_PER_GPU", "SLURM_NTASKS"} & set(variables)  # srun would read them


def test_without_gpus_as_many_ranks_as_sbatch_was_told(parts):
    job = parts["launch"].Job({**ENVIRONMENT, "SLURM_GPUS_PER_NODE": "0", "SLURM_NTASKS_PER_NODE": "3"})
    assert (job.local_ranks, job.cores) == (3, 21)


def test_a_task_of_an_array_goes_by_its_own_name(parts):
    """The last task has the array's id, by which scontrol would requeue all of them."""
    array = {"SLURM_ARRAY_JOB_ID": "45003", "SLURM_ARRAY_TASK_ID": "7"}
    assert parts["launch"].Job({**ENVIRONMENT, **array}).id == "45003_7"


@pytest.mark.parametrize(
    ("kind", "before"),
    [
        (
            "pyxis",
            [
                "--container-image=image",
                "--container-mounts=HERE:HERE,/data:/data",
                "--container-workdir=HERE",
            ],
        ),
        (
            "apptainer",
            ["apptainer", "exec", "--nv", "--bind", "HERE:HERE,/data:/data", "--pwd", "HERE", "image"],
        ),
    ],
)
def test_a_container_is_in_cluster_env_alone(parts, kind, before):
    site = {"CONTAINER": kind, "CONTAINER_IMAGE": "image", "CONTAINER_MOUNTS": "/data:/data"}
    command = parts["launch"].Job({**ENVIRONMENT, **site}).launch(["train.py"])
    here = [word.replace("HERE", os.getcwd()) for word in before]
    assert command[-len(here) - 3 :] == [*here, "bash", "slurm/rank.sh", "train.py"]


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ({"CONTAINER": "pyxis"}, "CONTAINER=pyxis without CONTAINER_IMAGE"),
        ({"CONTAINER": "docker", "CONTAINER_IMAGE": "i"}, "CONTAINER=docker: expected pyxis, apptainer"),
        ({"REQUEUE_LIMIT": "often"}, "REQUEUE_LIMIT=often: expected a number"),
    ],
)
def test_a_mistake_in_cluster_env_is_named(parts, site, message):
    with pytest.raises(parts["launch"].Mistake, match=message):
        parts["launch"].Job({**ENVIRONMENT, **site}).launch(["train.py"])


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [
        ([], "runs/demo"),
        (["--recipe", "llama_1b"], "runs/llama_1b"),
        (["--recipe=my/own.yaml"], "runs/own"),
        (["--output_dir", "a", "--recipe=llama_1b", "--output_dir=b"], "b"),
        (["--output_dir=a", "--output-dir", "b"], "b"),
        (["--output-dir=a-b", "--recipe", "llama_1b"], "a-b"),
    ],
)
def test_the_output_directory_is_the_trainers(parts, arguments, folder):
    found, path = parts["launch"].with_output(arguments)
    assert path == Path(folder)
    assert parts["launch"].last_option(found, "output_dir") == folder


def test_the_sites_options_come_before_the_command_lines(parts):
    job = parts["launch"].Job({**ENVIRONMENT, "TRAIN_OPTIONS": "--data.prepared='/my data'"})
    assert parts["launch"].trainer_options(job, ["--a.b=1"]) == ["--data.prepared=/my data", "--a.b=1"]


def test_a_table_needs_an_array(parts):
    with pytest.raises(parts["launch"].Mistake, match="sbatch --array="):
        parts["launch"].trainer_options(parts["launch"].Job(ENVIRONMENT), ["--table", "slurm/table.yaml"])


def test_scontrols_answers_are_read(parts):
    text = "JobId=3 JobName=a JobState=COMPLETING Reason=TimeLimit Dependency=(null)"
    assert parts["job"].field(text, "Reason") == "TimeLimit"
    assert not parts["job"].field(text, "PreemptTime")


def test_the_last_line_of_a_log_is_that_after_the_progress_bar(parts, tmp_path):
    log = tmp_path / "rank-0000.log"
    log.write_text("begun\ntraining: 3%\rtraining: 5%\rtrain.py: error: what it was\n\n")
    assert parts["job"].last_line(log) == "train.py: error: what it was"
    assert "No such file" in parts["job"].last_line(tmp_path / "none")
