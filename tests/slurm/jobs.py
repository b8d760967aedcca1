"""Jobs of the test cluster: submit the scripts as a user does, and see what becomes of them."""

from __future__ import annotations

import copy
from pathlib import Path

from alphadecay_dist.training.outputs.run_files import METRICS, read_lines
from tests.slurm.cluster import Cluster, wait_until
from tests.training.runs import ROOT

TWO_NODES = ("--nodes=2", "--gpus-per-node=1", "--cpus-per-gpu=2")
OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED"}


class Job:
    """A job from its submission on.

    Args:
        cluster: where to.
        folder: for its logs.
        script: of slurm/.
        options: of sbatch.
        arguments: of the script.
        settings: of slurm/cluster.env, as the environment has them.
    """

    def __init__(
        self,
        cluster: Cluster,
        folder: Path,
        options: tuple[str, ...],
        arguments: list[str],
        *,
        script: str = "train",
        **settings: str,
    ) -> None:
        self.cluster, self.folder = cluster, folder
        number = "%A_%a" if script == "table" else "%j"
        words = ["sbatch", "--parsable", f"--output={folder}/job-{number}.out", *options]
        command = [*words, f"slurm/{script}.sbatch", *arguments]
        # One thread, as the forked ranks have that these runs are compared with; no check of healthy nodes.
        own = {"OMP_NUM_THREADS": "1", "DOCTOR": "0", "LOGS": str(folder / "logs"), "HF_HUB_OFFLINE": "1"}
        own |= settings
        self.id = cluster.run(*command, cwd=ROOT, **own).strip()

    def task(self, number: int) -> Job:
        """A task of this array."""
        task = copy.copy(self)
        task.id = f"{self.id}_{number}"
        return task

    @property
    def state(self) -> str:
        """As scontrol names it."""
        return self.facts()["JobState"]

    def facts(self) -> dict[str, str]:
        """``scontrol show job``."""
        words = self.cluster.run("scontrol", "show", "job", self.id, "--oneliner").split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def signal(self, *options: str) -> None:
        """``scancel OPTIONS JOB``."""
        self.cluster.run("scancel", *options, self.id)

    def until(self, condition, seconds: float = 150) -> None:
        """Wait; what the job has printed tells why it was in vain."""
        try:
            wait_until(condition, seconds)
        except AssertionError:
            raise AssertionError(f"{self.state} after {seconds} s\n{self.printed()}") from None

    def over(self, seconds: float = 150) -> str:
        """Wait for the end: its state."""
        self.until(lambda: self.state in OVER, seconds)
        return self.state

    def printed(self) -> str:
        """The job's own log, and the ends of its ranks'."""
        logs = [path.read_text()[-3000:] for path in sorted(self.folder.glob(f"logs/*-{self.id}*/*.log"))]
        return "\n".join([self.log(), *logs])

    def log(self) -> str:
        """The job's own log."""
        path = self.folder / f"job-{self.id}.out"
        return path.read_text() if path.is_file() else ""

    def lines(self, word: str) -> list[str]:
        """What slurm/job.py said of its starts (``rendezvous``) and their ends (``ended``)."""
        return [line for line in self.log().splitlines() if ", start " in line and word in line]


def updates(output: Path) -> int:
    """Updates that a run has finished."""
    path = output / METRICS
    return len(read_lines(path)) if path.is_file() else 0
