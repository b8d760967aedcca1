"""How a run ends: one line on rank 0, and an exit code on every rank."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from alphadecay_dist.errors import LaunchError, RunError, UserError

FAILURE, USER_ERROR, PREEMPTED = 1, 2, 75  # PREEMPTED: stopped early, to be started again


class Preempted(Exception):  # noqa: N818 (it is no error)
    """The run was asked to stop, and has; the text is the reason. The same command goes on with it."""


def exit_code_of(work: Callable[[], int | None], program: str = "train.py") -> int:
    """Run; what ends it early is said on rank 0. Other errors are left to raise, with their tracebacks.

    Args:
        work: gives the exit code; None is 0.
        program: what is running, as its line begins.
    """
    try:
        return work() or 0
    except Preempted as stop:
        return _say(program, f"stopped early: {stop}; the same command goes on", code_of(stop))
    except LaunchError as error:
        print(f"{program}: error: {error}", file=sys.stderr, flush=True)
        return code_of(error)
    except UserError as error:
        return say_error(program, error)
    except RunError as error:
        return _say(program, f"failed: {error}", code_of(error))


def leave(code: int) -> NoReturn:
    """End this process, when all is saved.

    Threads of data readers and of gloo now and then abort an orderly exit, with another code.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def say_error(program: str, error: UserError) -> int:
    """Say it on rank 0; returns the exit code."""
    return _say(program, f"error: {error}", code_of(error))


def code_of(error: BaseException) -> int:
    """The exit code of a run that an error ends."""
    if isinstance(error, Preempted):
        return PREEMPTED
    return USER_ERROR if isinstance(error, UserError) else FAILURE


def describe_error(error: BaseException) -> str:
    """An error as status.json tells it: its line, and of an unexpected one its type."""
    named = isinstance(error, Preempted | UserError | RunError)
    return str(error) if named else f"{type(error).__name__}: {error}"


def _say(program: str, line: str, code: int) -> int:
    if (os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0") == "0":
        print(f"{program}: {line}", file=sys.stderr, flush=True)
    else:
        time.sleep(2)  # a launcher kills the others at the first exit: let rank 0 speak first
    return code
