"""Which rank a process is, by its launcher's variables."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
import torch

from alphadecay_dist.engines import rank_variables
from alphadecay_dist.engines.process_group import join
from alphadecay_dist.engines.rank_variables import FAMILIES, settle_rank
from alphadecay_dist.errors import LaunchError, UserError

TORCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": 4, "OMPI_COMM_WORLD_LOCAL_SIZE": 4}


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """No launcher's variables, neither before nor after."""
    mpi = [name for f in FAMILIES for name in (f.rank, f.size, *f.local_rank, *f.local_size)]
    for name in (*TORCH, *mpi, "SLURM_STEP_NUM_TASKS", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def settled(monkeypatch, **variables):
    """Torch's variables after settling with these."""
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    settle_rank()
    return {name: os.environ[name] for name in TORCH if name in os.environ}


@pytest.mark.parametrize(
    "variables",
    [
        {"OMPI_COMM_WORLD_RANK": 2, "OMPI_COMM_WORLD_LOCAL_RANK": 2, **OPEN_MPI},
        {
            "MV2_COMM_WORLD_RANK": 2,
            "MV2_COMM_WORLD_SIZE": 4,
            "MV2_COMM_WORLD_LOCAL_RANK": 2,
            "MV2_COMM_WORLD_LOCAL_SIZE": 4,
        },
        {"PMI_RANK": 2, "PMI_SIZE": 4, "MPI_LOCALRANKID": 2, "MPI_LOCALNRANKS": 4},
        {"PMI_RANK": 2, "PMI_SIZE": 4},
        {"OMPI_COMM_WORLD_RANK": 2, "OMPI_COMM_WORLD_SIZE": 4, "OMPI_COMM_WORLD_LOCAL_RANK": 2},
    ],
)
def test_ranks_of_mpi_on_one_node(monkeypatch, variables):
    found = settled(monkeypatch, **variables)
    port = int(found.pop("MASTER_PORT"))
    assert 10000 <= port < 30000
    assert found == {
        "RANK": "2",
        "LOCAL_RANK": "2",
        "WORLD_SIZE": "4",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "127.0.0.1",
    }
    assert settled(monkeypatch) == {**found, "MASTER_PORT": str(port)}  # settled once, it stays


def test_ranks_of_mpi_on_several_nodes_need_the_host_of_rank_0(monkeypatch):
    variables = {"OMPI_COMM_WORLD_RANK": 3, "OMPI_COMM_WORLD_LOCAL_RANK": 1, **OPEN_MPI}
    variables["OMPI_COMM_WORLD_LOCAL_SIZE"] = 2
    with pytest.raises(UserError, match=r"MASTER_ADDR: not set with Open MPI's ranks on several nodes") as e:
        settled(monkeypatch, **variables)
    assert not isinstance(e.value, LaunchError)  # rank 0 sees it as well, and says it
    assert os.environ["RANK"] == "3"
    for name in TORCH:
        monkeypatch.delenv(name, raising=False)
    found = settled(monkeypatch, MASTER_ADDR="n1", **variables)
    assert found == {
        "RANK": "3",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "4",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "n1",
        "MASTER_PORT": "29500",
    }


def test_a_local_rank_that_differs_says_of_several_nodes_by_itself(monkeypatch):
    with pytest.raises(LaunchError, match="MASTER_ADDR: not set"):
        settled(monkeypatch, PMI_RANK=3, PMI_SIZE=4, MPI_LOCALRANKID=1)


def test_one_process_of_mpi_is_alone_and_torchs_variables_stand_above_mpis(monkeypatch):
    assert settled(monkeypatch, OMPI_COMM_WORLD_RANK=0, OMPI_COMM_WORLD_SIZE=1) == {}
    torchs = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "n1", "MASTER_PORT": "1234"}
    assert settled(monkeypatch, OMPI_COMM_WORLD_SIZE=4, **torchs) == torchs


TWO_RANKS = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29500}


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"RANK": 0}, "WORLD_SIZE: not set with RANK 0, expected the number of ranks"),
        ({"RANK": "a"}, "RANK: found 'a', expected a number from 0 on"),
        ({"RANK": "-1", **TWO_RANKS}, "RANK: found '-1'"),
        ({"RANK": 0, **TWO_RANKS, "WORLD_SIZE": "two"}, "WORLD_SIZE: found 'two'"),
        ({"RANK": 2, **TWO_RANKS}, "RANK: found 2 with WORLD_SIZE 2, expected 0 to 1"),
        ({"RANK": 0, **TWO_RANKS, "LOCAL_RANK": "x"}, "LOCAL_RANK: found 'x'"),
        (
            {"RANK": 0, **TWO_RANKS, "LOCAL_RANK": 4, "LOCAL_WORLD_SIZE": 2},
            "LOCAL_RANK: found 4 with 2 ranks",
        ),
        ({"RANK": 0, "WORLD_SIZE": 2}, "MASTER_ADDR: not set with RANK 0, expected the host of rank 0"),
        ({"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "n1"}, "MASTER_PORT: not set"),
        ({"RANK": 0, **TWO_RANKS, "MASTER_PORT": "http"}, "MASTER_PORT: found 'http'"),
        ({"RANK": 0, **TWO_RANKS, "MASTER_PORT": 70000}, "MASTER_PORT: found 70000"),
        ({"WORLD_SIZE": 2}, "RANK: not set with WORLD_SIZE 2"),
        ({"WORLD_SIZE": 0}, "WORLD_SIZE: found 0, expected the number of ranks"),
        ({"PMI_RANK": 1}, "PMI_SIZE: not set with PMI_RANK"),
        ({"PMI_RANK": "x", "PMI_SIZE": 2}, "PMI_RANK: found 'x'"),
        ({"SLURM_STEP_NUM_TASKS": 4}, "RANK: not set in one of 4 tasks of a SLURM step"),
    ],
)
def test_variables_that_are_wrong_are_refused(monkeypatch, variables, words):
    with pytest.raises(UserError) as caught:
        settled(monkeypatch, **variables)
    assert words in str(caught.value)


def test_a_port_that_is_taken_and_a_host_that_is_none_are_refused(monkeypatch):
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        for name, value in {
            "RANK": 0,
            "WORLD_SIZE": 1,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }.items():
            monkeypatch.setenv(name, str(value))
        with pytest.raises(LaunchError, match=f"MASTER_PORT: {port} is taken on .*, expected a free port"):
            join(torch.device("cpu"))
    monkeypatch.setenv("MASTER_ADDR", "no-such-host.invalid")
    with pytest.raises(UserError, match=r"MASTER_ADDR: found 'no-such-host.invalid', which is no host here"):
        join(torch.device("cpu"))


@pytest.mark.launcher
def test_a_shell_around_a_rank_does_not_change_its_port():
    code = f"from {rank_variables.__name__} import *; settle_rank(); print(os.environ['MASTER_PORT'])"
    variables = {k: v for k, v in os.environ.items() if k not in TORCH}
    ports = []
    for rank, command in enumerate(([], ["bash", "-c", '"$@"; exit $?', "wrapper"])):
        ranks = {"PMI_RANK": str(rank), "PMI_SIZE": "2"}
        done = subprocess.run(
            [*command, sys.executable, "-c", code],
            env=variables | ranks,
            capture_output=True,
            text=True,
            check=True,
        )
        ports.append(done.stdout)
    assert ports[0] == ports[1]
