"""``train.py`` in forked processes that nobody has joined, each with the variables of a launcher."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.multirank import FORKS


def started(
    folder: Path, variables: Sequence[Mapping[str, object]], argvs: Sequence[Sequence[str]]
) -> list[tuple[int | None, str]]:
    """Run the trainer in a process each; returns exit codes and all that they printed.

    Args:
        folder: for their output.
        variables: of each process, in its environment.
        argvs: its options.
    """
    processes = []
    for number, (own, argv) in enumerate(zip(variables, argvs, strict=True)):
        environment = {name: str(value) for name, value in own.items()}
        arguments = (environment, str(folder / f"printed.{number}"), list(argv))
        processes.append(FORKS.Process(target=_main, args=arguments))
        processes[-1].start()
    for process in processes:
        process.join(90)
        process.kill()
        process.join()
    return [
        (process.exitcode, (folder / f"printed.{number}").read_text())
        for number, process in enumerate(processes)
    ]


def _main(environment: dict[str, str], output: str, argv: list[str]) -> None:
    import train

    os.environ.update(environment)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os._exit(train.main(argv))


def in_a_new_process(code, folder, **environment):
    """Run code with wandb's tracker at hand, no key and no home, and nothing to type on."""
    lines = (
        "import sys, pathlib",
        "from alphadecay_dist.training.outputs import wandb_run",
        "from alphadecay_dist.training.outputs.trackers import start_trackers",
        "from alphadecay_dist.training.recipe import LoggingConfig",
        "folder = pathlib.Path(sys.argv[1])",
        "def started(mode, config={}, step=0):",
        "    return start_trackers(LoggingConfig(wandb=mode), folder, config, step)",
        code,
    )
    return subprocess.run(
        [sys.executable, "-c", "\n".join(lines), str(folder)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), **environment},
        timeout=120,
        check=True,
    )
