"""Whether a job that ended goes back into the queue: exit code, status.json and SLURM's own view decide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MISTAKE, STOPPED = 2, 75  # exit codes of train.py: see docs/reliability.md
# A rank that had not yet come to listen: SIGINT, SIGUSR2, SIGTERM ended it, and there was nothing to save.
SIGNALLED = (128 + 2, 128 + 12, 128 + 15)


@dataclass(frozen=True)
class End:
    """How a start ended.

    Attributes:
        code: srun's exit code, the highest of all ranks'.
        status: the run's status.json, None where this start has not written it.
        state: ``JobState``, ``Reason`` and ``PreemptTime`` of ``scontrol show job``.
        restarts: starts before this one.
        limit: how many there may be.
        silent: what SLURM says of a node that does not answer, if there is one.
    """

    code: int
    status: dict[str, Any] | None
    state: dict[str, str]
    restarts: int
    limit: int
    silent: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether the run was asked to stop. Where srun has to kill a rank its code is not 75."""
        said = self.status is not None and self.status.get("exit_code") == STOPPED
        return said or self.code == STOPPED or self.code in SIGNALLED

    @property
    def failed(self) -> bool:
        """Whether the run, or the check before it, ended by itself and not well."""
        return self.code != 0 and not self.stopped and not ended_by_others(self.state)


def decide(end: End) -> tuple[bool, str]:
    """Whether to requeue, and how the job's last line says it."""
    if end.code == 0:
        return False, "done"
    if ended_by_others(end.state):
        return False, "cancelled, or requeued by SLURM: left to it"
    if end.failed and not end.silent:
        advice = (
            "it would fail again" if end.code == MISTAKE else "fix what failed, and the same sbatch goes on"
        )
        return False, f"not requeued: {advice}"
    if end.restarts >= end.limit:
        return False, f"not requeued: REQUEUE_LIMIT={end.limit} is reached; the same sbatch goes on"
    return True, f"back into the queue, {end.restarts + 1} of at most {end.limit} times"


def ended_by_others(state: dict[str, str]) -> bool:
    """Whether the job is already being ended: by scancel, by scontrol requeue or after a node's failure.

    At the time limit, and where SLURM preempts a job by cancelling it, it is being ended as well, and has to
    come back by itself.
    """
    if state.get("JobState") == "RUNNING":
        return False
    preempted = state.get("PreemptTime", "None") not in ("None", "")
    return state.get("Reason") != "TimeLimit" and not preempted
