"""The command on ranks of which one is not well."""

from __future__ import annotations

import os
import time

import pytest

from alphadecay_dist.doctor import clock, examine, folder, links, measures
from alphadecay_dist.errors import UserError
from alphadecay_dist.training.options import Options
from alphadecay_dist.training.preflight import resolve
from tests.doctor.ranks import doctor

pytestmark = [pytest.mark.ranks, pytest.mark.launcher]  # the command itself, on forked ranks


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_healthy_ranks_are_well(tmp_path, world_size):
    done = doctor(tmp_path, world_size)
    assert set(done.codes.values()) == {0}, done.printed
    assert done.found["well"]
    lines = done.printed[0].splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["node", "n0"]
    ranks = "1 rank on 1 node is" if world_size == 1 else f"all {world_size} ranks on 1 node are"
    assert lines[-1].startswith(f"{ranks} well")
    assert all(printed == "" for rank, printed in done.printed.items() if rank)
    assert len(done.found["links"]) == world_size * (world_size - 1) // 2
    assert all(link["rate"] > 1e6 for link in done.found["links"])
    assert all(abs(rank["clock"][0]) < 0.5 for rank in done.found["ranks"])
    assert os.listdir(tmp_path / "run") == []  # nothing is left


def other_version():
    versions = measures.versions()
    measures.versions = lambda: versions | {"torch": "2.12.1"}


def other_clock():
    clock.now = lambda: time.time() - 75


def slow_transfers():
    exchange = links.exchange

    def late(*args):
        time.sleep(0.2)
        return exchange(*args)

    links.exchange = late


def full_disk():
    folder.free_bytes = lambda _: 2**20


def other_folder():
    """The path leads to another directory here, as a local disk's does."""
    real = examine.look_at

    def elsewhere(path, needed, ranks):
        (path.parent / "elsewhere").mkdir()
        return real(path.parent / "elsewhere", needed, ranks)

    examine.look_at = elsewhere
    impatient()


def impatient():
    folder.PATIENCE = 1.0


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (other_version, "torch"),
        (other_clock, "clock"),
        (full_disk, "disk"),
        (slow_transfers, "bandwidth between nodes"),
    ],
)
def test_the_node_that_is_not_well_is_named(tmp_path, spoil, what):
    fraction = 0.1 if spoil is slow_transfers else 0.0  # the ranks share two cores: their rates are noise
    done = doctor(tmp_path, 4, f"--link_fraction={fraction}", spoils={2: spoil}, nodes=True)
    assert set(done.codes.values()) == {2}, done.printed
    assert (what, ["n2"], [2]) in done.problems()
    assert done.printed[0].splitlines()[-1].endswith("nodes bad: n2")


def test_a_directory_that_is_not_shared_is_told_of_the_rank_that_has_another(tmp_path):
    done = doctor(tmp_path, 3, spoils={0: impatient, 1: other_folder})
    assert set(done.codes.values()) == {2}, done.printed
    assert ("output directory", ["n0"], [1]) in done.problems()
    assert f"found another {tmp_path / 'elsewhere'}, expected rank 0's files in" in done.printed[0]


def test_a_slow_rank_of_one_machine_is_warned_of_alone(tmp_path):
    done = doctor(tmp_path, 4, "--link_fraction=0.1", spoils={3: slow_transfers})
    assert set(done.codes.values()) == {0}, done.printed
    assert ("bandwidth within a node", ["n0"], [3]) in done.problems()


@pytest.mark.kills
@pytest.mark.parametrize("absent", [1, 0])
def test_a_rank_that_does_not_come_is_named_in_time(tmp_path, absent):
    done = doctor(tmp_path, 2, "--timeout=3", absent=(absent,))
    ((rank, code),) = done.codes.items()
    assert code == 2
    assert done.seconds < 40
    told = {
        1: "1 of 2 ranks did not come within 3 s: 1; on n0, where other ranks came",
        0: "rank 1 on n0 found no rank 0 at 127.0.0.1",
    }
    assert f"alphadecay doctor: error: {told[absent]}" in done.printed[rank]
    assert len(done.printed[rank].splitlines()) == 1


def hanging_check():
    measures.shared_memory = lambda: time.sleep(1000)


def failing_device():
    def broken(_):
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered")

    versions = measures.versions()
    measures.versions = lambda: versions | {"CUDA driver": "535.1"}
    measures.device_of = broken


def failing_check():
    def broken(*_):
        raise RuntimeError("connection reset")

    links.exchange = broken


@pytest.mark.kills
@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (hanging_check, "not done within 10 s: rank 1 on n1 at '/dev/shm'"),
        (failing_device, "rank 1 on n1: device: RuntimeError: CUDA error: uncorrectable ECC error"),
        (failing_check, "rank 1 on n1: bandwidth: RuntimeError: connection reset"),
    ],
)
def test_a_check_that_hangs_or_fails_on_one_rank_ends_all(tmp_path, spoil, line):
    done = doctor(tmp_path, 3, "--timeout=10", spoils={1: spoil}, nodes=True)
    assert set(done.codes.values()) == {2}, done.printed
    assert line in done.printed[0]
    assert ("n1 (rank 1): CUDA driver: found 535.1" in done.printed[0]) == (spoil is failing_device)
    assert done.seconds < 60


def dies():
    measures.shared_memory = lambda: os._exit(9)


@pytest.mark.kills
def test_a_rank_that_dies_in_a_check_is_named(tmp_path):
    done = doctor(tmp_path, 2, "--timeout=30", spoils={1: dies}, nodes=True)
    assert done.codes == {0: 2, 1: 9}, done.printed
    assert "rank 1 on n1: ended or hangs altogether" in done.printed[0].splitlines()[0]


@pytest.mark.kills
def test_when_rank_0_dies_the_others_say_so_themselves(tmp_path):
    done = doctor(tmp_path, 2, "--timeout=30", spoils={0: dies}, nodes=True)
    assert done.codes == {0: 9, 1: 2}, done.printed
    assert "rank 1 on n1" in done.printed[1]


def unreadable_recipe():
    def refused(_):
        raise UserError("recipe r.yaml: no such file")

    examine.resolve = refused


def test_a_mistake_in_what_was_given_is_told_once(tmp_path):
    done = doctor(tmp_path, 2, "--train.stepz=3")
    assert done.codes == {0: 2, 1: 2}
    assert "alphadecay doctor: error: unknown key train.stepz; did you mean 'steps'?" in done.printed[0]
    assert done.printed[1] == ""


def test_a_mistake_of_one_node_names_it(tmp_path):
    done = doctor(tmp_path, 2, spoils={1: unreadable_recipe}, nodes=True)
    assert done.codes == {0: 2, 1: 2}
    assert "n1 (rank 1): options: found recipe r.yaml: no such file" in done.printed[0]
    assert "1 of 2 nodes bad: n1" in done.printed[0]


def test_what_checkpoints_need_is_what_a_run_writes(tmp_path):
    options = Options("demo", ("checkpoint.every=10", "checkpoint.keep=2"), None, None, str(tmp_path))
    checked = resolve(options)
    weights = sum(p.numel() for p in checked.shapes.parameters())
    assert examine.needed_bytes(checked) == 3 * 12 * weights
    for step in (10, 20):
        (tmp_path / "checkpoints" / f"step-{step:08}").mkdir(parents=True)
    assert examine.needed_bytes(checked) == 12 * weights
