"""A SLURM of two nodes on this machine, in a directory of its own.

Two slurmd, a slurmctld and a munged run as children of this process and end with it. Each node claims 32
CPUs, and 8 GPUs that are none. By hand, ``python -m tests.slurm.cluster`` starts one and says what to export.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.ports import free_port, worker

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
NODES = ("n1", "n2")
CONFIG = """\
ClusterName=test
FirstJobId={first}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobcomp.txt
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
ReturnToService=2
SlurmdParameters=config_overrides
SlurmdTimeout=10
KillWait=30
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
GresTypes=gpu
{nodes}
PartitionName=debug Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
"""
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=32 SocketsPerBoard=1 "
    "CoresPerSocket=32 ThreadsPerCore=1 RealMemory=8000 Gres=gpu:8 State=UNKNOWN"
)
GPUS = "NodeName=n[1-2] Name=gpu File={folder}/gpu[0-7]\n"


def why_not() -> str | None:
    """Why no cluster can be started here; None where it can."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if missing:
        return f"SLURM is not installed (no {', '.join(missing)})"
    return None if os.geteuid() == 0 else "a cluster of SLURM is started by root alone"


class Cluster:
    """The cluster's daemons, and its commands.

    Args:
        folder: an empty directory with a short path, for a socket's name is at most 107 bytes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **{
                key: value
                for key, value in os.environ.items()
                if not key.startswith(("SLURM_", "SBATCH_", "CLUSTER_ENV"))
            },
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{Path(sys.executable).parent}:{_path()}",
        }
        self._configuration = self.environment["SLURM_CONF"]
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._reaper = subprocess.Popen(
            [sys.executable, "-m", "tests.slurm.cluster", self._configuration],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def start(self) -> None:
        """Start all daemons, and wait until both nodes take jobs."""
        for name in ("state", *(f"spool/{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "jobcomp.txt").touch()
        host = socket.gethostname().partition(".")[0]
        nodes = "\n".join(NODE.format(name=name, host=host, port=free_port()) for name in NODES)
        (self.folder / "slurm.conf").write_text(
            CONFIG.format(
                folder=self.folder,
                first=1 + 2000 * worker(),  # a job has a port by its number
                host=host,
                port=free_port(),
                user=getpass.getuser(),
                nodes=nodes,
            )
        )
        (self.folder / "gres.conf").write_text(GPUS.format(folder=self.folder))
        for number in range(8):  # SLURM wants a device a GPU, and only names it: these are /dev/null
            os.mknod(self.folder / f"gpu{number}", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        (self.folder / "munge.key").write_bytes(os.urandom(128))
        (self.folder / "munge.key").chmod(0o600)
        names = {"--socket": "socket", "--key-file": "key", "--pid-file": "pid", "--log-file": "log"}
        places = [f"{option}={self.folder}/munge.{name}" for option, name in names.items()]
        self._daemon("munged", "--foreground", "--force", *places, f"--seed-file={self.folder}/munge.seed")
        wait_until((self.folder / "munge.socket").exists, 10)
        self._daemon("slurmctld", "-D")
        for node in NODES:
            self.start_node(node)
        wait_until(lambda: self._idle() == set(NODES), 60)

    def start_node(self, node: str) -> None:
        """Start a node's slurmd."""
        self._daemon(node, "-D", "-N", node, program="slurmd")

    def fail_node(self, node: str) -> None:
        """Let a node die at once: its slurmd, the daemons of its steps, then their tasks."""
        self._daemons[node].kill()
        self._daemons[node].wait()
        tasks = [
            process
            for process in _processes(self._configuration)
            if _variable(process, "SLURMD_NODENAME") == node
        ]
        parents = {_parent(task) for task in tasks} - set(tasks)
        for process in [*parents, *tasks]:
            _kill(process)

    def stop(self) -> None:
        """End the daemons, and all that they have started."""
        for daemon in reversed(self._daemons.values()):
            daemon.kill()
            daemon.wait()
        self._reaper.communicate()

    def run(self, *command: object, cwd: Path | None = None, **variables: str) -> str:
        """A command of SLURM: its output.

        Raises:
            AssertionError: it failed.
        """
        done = subprocess.run(
            [str(part) for part in command],
            env=self.environment | variables,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout

    def _idle(self) -> set[str]:
        with contextlib.suppress(AssertionError):
            lines = self.run("sinfo", "--noheader", "--Node", "--format=%N %T").splitlines()
            return {name for name, state in map(str.split, lines) if state == "idle"}
        return set()

    def _daemon(self, name: str, *options: str, program: str | None = None) -> None:
        path = shutil.which(program or name, path=_path())
        with (self.folder / f"{name}.out").open("ab") as output:
            self._daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", str(path), *options],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )


def reap(configuration: str) -> None:
    """Wait until nobody holds the other end of stdin, then end all that a cluster has started.

    Its daemons end with their parent, however that ends; the tasks of its jobs would not.
    """
    sys.stdin.read()
    while left := _processes(configuration):
        for process in left:
            _kill(process)
        time.sleep(0.1)
    shutil.rmtree(Path(configuration).parent, ignore_errors=True)


@contextlib.contextmanager
def running() -> Iterator[Cluster]:
    """A cluster; nothing of it is left at the end."""
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="slurm-")))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def wait_until(condition: Callable[[], object], seconds: float) -> None:
    """Wait for a condition.

    Raises:
        AssertionError: it did not come true in time.
    """
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.2)


def _processes(configuration: str) -> list[int]:
    """All processes of a cluster: they have its configuration's path in their environment."""
    found = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [process for process in found if _variable(process, "SLURM_CONF") == configuration]


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"  # where daemons lie


def _variable(process: int, name: str) -> str | None:
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{process}/environ").read_bytes().split(b"\0"):
            key, _, value = entry.decode(errors="replace").partition("=")
            if key == name:
                return value
    return None


def _parent(process: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return process


def _kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def _until_interrupted() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with running() as started, contextlib.suppress(KeyboardInterrupt):
        print(f"export SLURM_CONF={started.environment['SLURM_CONF']}", flush=True)
        signal.pause()


if __name__ == "__main__":
    if sys.argv[1:]:
        reap(sys.argv[1])
    else:
        _until_interrupted()
