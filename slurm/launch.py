"""What a start of a SLURM job runs: its geometry, its ranks' variables, srun's command."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path

FIRST_PORT, PORTS = 10000, 20000  # below those that Linux gives to clients
LAST_RANKS = 60  # seconds that ranks have after the first one's end; srun then ends them


class Mistake(Exception):  # noqa: N818 (the user's)
    """Of the user, or of the site's settings: one line, exit code 2."""


class Job:
    """This start of the job, as SLURM's variables tell it."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        array, task = (environment.get(f"SLURM_ARRAY_{name}") for name in ("JOB_ID", "TASK_ID"))
        # An array's last task has the array's own id, which would stand for all of its tasks.
        self.id = f"{array}_{task}" if array else environment["SLURM_JOB_ID"]
        self.cell = task
        self.restarts = int(environment.get("SLURM_RESTART_COUNT", "0"))
        if not environment["REQUEUE_LIMIT"].isdigit():
            raise Mistake(f"REQUEUE_LIMIT={environment['REQUEUE_LIMIT']}: expected a number of requeues")
        self.limit = int(environment["REQUEUE_LIMIT"])
        if not environment["DOCTOR"].isdigit():
            raise Mistake(f"DOCTOR={environment['DOCTOR']}: expected seconds, or 0 for no check")
        self.doctor = int(environment["DOCTOR"])
        self.nodes = int(environment["SLURM_JOB_NUM_NODES"])
        self.hosts = environment["SLURM_JOB_NODELIST"]
        gpus = int(environment["SLURM_GPUS_PER_NODE"].rpartition(":")[2])  # "a100:8" names the kind as well
        self.local_ranks = gpus or int(environment.get("SLURM_NTASKS_PER_NODE", "1"))
        self.cores = max(1, int(environment["SLURM_CPUS_ON_NODE"]) // self.local_ranks)
        name = environment["SLURM_JOB_NAME"].removesuffix(".sbatch")
        self.logs = Path(environment["LOGS"]) / f"{name}-{self.id}"
        self.port = environment.get("MASTER_PORT") or str(
            FIRST_PORT + int(environment["SLURM_JOB_ID"]) % PORTS
        )

    def rank_variables(self, address: str) -> dict[str, str]:
        """What every task inherits; slurm/rank.sh adds what differs from task to task."""
        dropped = ("SLURM_CPUS_PER_GPU", "SLURM_NTASKS", "SLURM_NPROCS", "SLURM_NTASKS_PER_NODE")
        return {
            **{key: value for key, value in self.environment.items() if key not in dropped},
            "MASTER_ADDR": address,
            "MASTER_PORT": self.port,
            "LOCAL_WORLD_SIZE": str(self.local_ranks),
        }

    def srun(self, tasks_a_node: int, *options: str) -> list[str]:
        """The step's command as far as its options."""
        return [
            "srun",
            f"--nodes={self.nodes}",
            f"--ntasks={self.nodes * tasks_a_node}",
            f"--ntasks-per-node={tasks_a_node}",
            "--distribution=block",  # rank 0 on the first node, and a node's ranks in a row
            *options,
        ]

    def launch(self, arguments: list[str]) -> list[str]:
        """The command that runs ``python ARGUMENTS`` as all ranks."""
        options = [
            f"--cpus-per-task={self.cores}",
            f"--cpu-bind={self.environment['CPU_BIND']}",
            f"--output={self.logs}/rank-%4t.log",
            "--open-mode=append",
            "--kill-on-bad-exit=0",  # it would kill those that say 2 or 75 a moment after the first
            f"--wait={LAST_RANKS}",
        ]
        return [
            *self.srun(self.local_ranks, *options),
            *contained(self.environment, ["bash", "slurm/rank.sh", *arguments]),
        ]


def contained(environment: dict[str, str], command: list[str]) -> list[str]:
    """What follows srun's options: the command, in the site's container if it has one."""
    kind, image = environment["CONTAINER"], environment["CONTAINER_IMAGE"]
    if not kind:
        return command
    mounts = ",".join(filter(None, [f"{os.getcwd()}:{os.getcwd()}", environment["CONTAINER_MOUNTS"]]))
    if not image:
        raise Mistake(f"CONTAINER={kind} without CONTAINER_IMAGE: name the image in slurm/cluster.env")
    if kind == "pyxis":
        options = [f"--container-image={image}", f"--container-mounts={mounts}"]
        return [*options, f"--container-workdir={os.getcwd()}", *command]
    if kind == "apptainer":
        return ["apptainer", "exec", "--nv", "--bind", mounts, "--pwd", os.getcwd(), image, *command]
    raise Mistake(f"CONTAINER={kind}: expected pyxis, apptainer or nothing, in slurm/cluster.env")


def last_option(arguments: list[str], name: str) -> str | None:
    """The last value of ``--name X`` or ``--name=X``, with dashes or underscores, as train.py takes it."""
    found = None
    for place, word in enumerate(arguments):
        option, equals, value = word.partition("=")
        if option.replace("-", "_") != f"__{name}":
            continue
        if equals:
            found = value
        elif place + 1 < len(arguments):
            found = arguments[place + 1]
    return found


def with_output(arguments: list[str]) -> tuple[list[str], Path]:
    """The trainer's arguments with its output directory said, and that directory."""
    named = last_option(arguments, "output_dir")
    folder = Path(named or Path("runs") / Path(last_option(arguments, "recipe") or "demo").stem)
    return (arguments if named else [*arguments, f"--output_dir={folder}"]), folder


def trainer_options(job: Job, arguments: list[str]) -> list[str]:
    """The trainer's options: the site's, those of an array task's cell, those of the command line."""
    site = shlex.split(job.environment["TRAIN_OPTIONS"])
    if arguments[:1] != ["--table"]:
        return [*site, *arguments]
    if job.cell is None or len(arguments) < 2:
        raise Mistake(
            "expected a table and an array: sbatch --array=$(alphadecay table TABLE --array) "
            "slurm/table.sbatch TABLE"
        )
    reading = ["bash", "slurm/rank.sh", "-m", "alphadecay_dist.cli", "table", arguments[1]]
    command = ["srun", "--nodes=1", "--ntasks=1", "--cpus-per-task=1", "--overlap"]
    command += contained(job.environment, [*reading, "--cell", job.cell])
    done = subprocess.run(command, env=job.rank_variables(""), stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise Mistake(f"table {arguments[1]}: see above")
    return [*site, *json.loads(done.stdout), *arguments[2:]]
