"""One start of a SLURM job: launch a task a rank, pass signals on, and go back into the queue, or not.

slurm/train.sbatch turns into this process. It runs on the job's first node outside of any container, so it
needs nothing but Python's standard library, and knows of a run what that leaves behind.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from launch import Job, Mistake, trainer_options, with_output  # beside this file
from requeue import MISTAKE, STOPPED, End, decide, ended_by_others

PROBE = 60  # seconds in which a node is to answer


def main(arguments: list[str]) -> int:
    """One start, from its first line to its last; the exit code is that of the ranks."""
    asked = Asked(bool(os.environ.pop("ASKED_TO_STOP", "")))
    try:
        job = Job(dict(os.environ))
        options, folder = with_output(trainer_options(job, arguments))
        commands = [job.launch(program + options) for program in programs(job)]
        job.logs.mkdir(parents=True, exist_ok=True)
    except (Mistake, OSError) as error:
        print(f"slurm/job.py: error: {error}", file=sys.stderr)
        return MISTAKE
    address = first_address(job.hosts)
    shape = f"{job.nodes} x {job.local_ranks} ranks on {job.hosts}, {job.cores} cores a rank"
    say(job, f"{shape}, rendezvous {address}:{job.port}, {origin(folder)}; logs: {job.logs}")
    before, began = written(folder), time.monotonic()
    variables = job.rank_variables(address)
    code = next(filter(None, (asked.run(command, variables) for command in commands)), 0)
    seconds = time.monotonic() - began
    return finish(job, code, read_status(folder) if written(folder) != before else None, seconds)


def programs(job: Job) -> list[list[str]]:
    """What the ranks run one after the other, as long as all goes well; both take the trainer's options."""
    check = ["-m", "alphadecay_dist.cli", "doctor", f"--timeout={job.doctor}"]
    return [check, ["train.py"]] if job.doctor else [["train.py"]]


def finish(job: Job, code: int, status: dict[str, Any] | None, seconds: float) -> int:
    """Decide, say it, and go back into the queue if that is the decision."""
    end = End(code, status, job_state(job), job.restarts, job.limit)
    if end.failed:
        silent = silent_node(job)
        if silent:
            say(
                job,
                f"a node does not answer ({silent}): waiting until SLURM gives it up and requeues the job",
            )
            wait_for_slurm(job)
        end = End(code, status, job_state(job), job.restarts, job.limit, silent)
    again, why = decide(end)
    say(job, f"ended after {seconds:.0f} s with {code}{_words(job, code, status)}: {why}")
    if again:
        done = subprocess.run(["scontrol", "requeue", job.id], check=False)
        if done.returncode:
            say(job, "SLURM did not take it back; the same sbatch goes on")
    return code


def _words(job: Job, code: int, status: dict[str, Any] | None) -> str:
    """What the run says of its end: its status, or where it has not come so far rank 0's last line."""
    if status is not None:
        reason = f" ({status['reason']})" if status["reason"] else ""
        return f", {status['state']} at update {status['step']}{reason}"
    return "" if code in (0, STOPPED) else f" ({last_line(job.logs / 'rank-0000.log')})"


class Asked:
    """What SLURM asks of this process, and the step that it is passed on to."""

    def __init__(self, already: bool) -> None:
        self._asked = already
        self._step: subprocess.Popen[bytes] | None = None
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, self._pass_on)

    def run(self, command: list[str], environment: dict[str, str]) -> int:
        """Run the step to its end, unless a stop was asked for before.

        Returns:
            The exit code as a shell would give it.
        """
        if self._asked:
            return STOPPED
        # In a session of its own: SIGTERM to the job's processes would make srun kill the ranks at once.
        self._step = subprocess.Popen(command, env=environment, start_new_session=True)
        if self._asked:
            self._pass_on(signal.SIGUSR2, None)
        code = self._step.wait()
        return code if code >= 0 else 128 - code

    def _pass_on(self, _number: int, _frame: FrameType | None) -> None:
        self._asked = True
        if self._step is not None:
            self._step.send_signal(signal.SIGUSR2)  # srun gives it to every task


def silent_node(job: Job) -> str | None:
    """What SLURM says of a node of this job that does not answer; None while all do."""
    if job.nodes == 1:
        return None
    command = [*job.srun(1, "--overlap", "--cpus-per-task=1"), "true"]
    variables = job.rank_variables("")
    try:
        done = subprocess.run(
            command, env=variables, stderr=subprocess.PIPE, text=True, timeout=PROBE, check=False
        )
    except subprocess.TimeoutExpired:
        return f"nothing within {PROBE} s"
    return done.stderr.partition("\n")[0] if done.returncode else None


def wait_for_slurm(job: Job) -> None:
    """Let SLURM give a silent node up: it then requeues the job, and not to that node."""
    found = re.search(r"^SlurmdTimeout\s*=\s*(\d+)", output_of("scontrol", "show", "config"), re.MULTILINE)
    end = time.monotonic() + (int(found.group(1)) if found else 300) + PROBE
    while time.monotonic() < end and not ended_by_others(job_state(job)):
        time.sleep(2)


def job_state(job: Job) -> dict[str, str]:
    """How SLURM sees the job now."""
    text = output_of("scontrol", "show", "job", job.id, "--oneliner")
    return {name: field(text, name) for name in ("JobState", "Reason", "PreemptTime")}


def first_address(hosts: str) -> str:
    """Where rank 0 listens: the address by which SLURM itself knows the job's first node."""
    first = output_of("scontrol", "show", "hostnames", hosts).split()[0]
    return field(output_of("scontrol", "show", "node", first, "--oneliner"), "NodeAddr") or first


def output_of(*command: str) -> str:
    """What one of SLURM's commands prints; nothing where it fails."""
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout


def field(text: str, name: str) -> str:
    """A value in scontrol's ``Name=value ...``; empty where it is not there."""
    return next((word[len(name) + 1 :] for word in text.split() if word.startswith(f"{name}=")), "")


def origin(folder: Path) -> str:
    """What the start finds in the output directory; whether a checkpoint is whole is the trainer's to see."""
    checkpoints = folder / "checkpoints"
    try:
        latest = (checkpoints / "latest").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return f"from the beginning in {folder}"
    return f"from {checkpoints / latest}"


def read_status(folder: Path) -> dict[str, Any] | None:
    """The run's status.json, None where there is none."""
    try:
        status = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return status if isinstance(status, dict) else None


def written(folder: Path) -> tuple[int, int] | None:
    """What changes whenever status.json is written: it is replaced each time."""
    try:
        status = (folder / "status.json").stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def last_line(log: Path) -> str:
    """The last line of a log that says something."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").split("\n")
    except OSError as error:
        return str(error)
    return next((line for line in reversed(lines) if line.strip()), "none")


def say(job: Job, text: str) -> None:
    """A line of the job's own log."""
    print(f"{time.strftime('%F %T')} job {job.id}, start {job.restarts}: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
