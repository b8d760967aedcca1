"""The node that is named is the one that is bad."""

from __future__ import annotations

from dataclasses import replace

import pytest

from alphadecay_dist.doctor.findings import Limits
from alphadecay_dist.doctor.judge import bad_nodes, judge, judge_places
from tests.doctor.drawn import GIB, findings, places, spoiled, unlike

HEALTHY = findings(3, 2)
DEVICE, FOLDER = HEALTHY[0].device, HEALTHY[0].folder


def test_healthy_nodes_have_no_problem():
    assert judge(HEALTHY, Limits()) == []
    assert judge_places([finding.place for finding in HEALTHY]) == []


@pytest.mark.parametrize(
    ("fields", "what", "found"),
    [
        ({"clock": (-75.0, 0.002)}, "clock", "-75 s"),
        ({"folder": replace(FOLDER, free=44 * GIB)}, "disk", "44 GiB free"),
        ({"folder": replace(FOLDER, shared=False)}, "output directory", "another /shared/runs"),
        ({"data": "data.source c4: no sample within 84 s"}, "data", "no sample"),
        ({"folder": replace(FOLDER, fault="Read-only file system")}, "output directory", "Read-only"),
        (
            {"device": replace(DEVICE, fault="9 of 65536 elements are wrong", identity="GPU-9")},
            "compute",
            "9 of 65536",
        ),
    ],
)
def test_a_bad_node_is_named_with_what_was_found(fields, what, found):
    (problem,) = judge(spoiled(HEALTHY, [2], **fields), Limits())
    assert (problem.bad, problem.nodes, problem.ranks, problem.what) == (True, ("n2",), (2,), what)
    assert found in problem.found


@pytest.mark.parametrize(("name", "expected"), [("torch", "2.13.0"), ("recipe", "4711"), ("NCCL", None)])
def test_a_node_with_another_version_is_named(name, expected):
    (problem,) = judge(unlike(HEALTHY, 3, **{name: "2.12.1"}), Limits())
    assert (problem.bad, problem.nodes, problem.ranks, problem.what) == (True, ("n2",), (3,), name)
    assert (problem.found, problem.expected) == ("2.12.1", f"{expected}, as on 5 of 6 ranks")


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"clock": (1.5, 0.002)}, "clock"),
        ({"shared_memory": 64 * 2**20}, "/dev/shm"),
        ({"shared_memory": None}, "/dev/shm"),
        ({"folder": replace(FOLDER, locked="No locks available")}, "flock"),
        ({"device": replace(DEVICE, free=40 * GIB, identity="GPU-9")}, "GPU memory"),
        ({"kernel": "5.15.0"}, "kernel"),
        ({"device": replace(DEVICE, name="A100", identity="GPU-9")}, "device"),
    ],
)
def test_what_slows_or_endangers_a_run_is_warned_of(fields, what):
    (problem,) = judge(spoiled(HEALTHY, [4], **fields), Limits())
    assert (problem.bad, problem.nodes, problem.what) == (False, ("n3",), what)
    assert bad_nodes([problem]) == []


def test_a_clock_known_less_exactly_than_it_is_off_is_no_evidence():
    assert judge(spoiled(HEALTHY, [2], clock=(1.5, 0.8)), Limits()) == []


def test_more_threads_than_cores_are_warned_of_by_node():
    crowded = replace(HEALTHY[0].processor, threads=5)
    (problem,) = judge(spoiled(HEALTHY, [2, 3], processor=crowded), Limits())
    assert (problem.bad, problem.nodes, problem.ranks) == (False, ("n2",), (2, 3))
    assert problem.found == "10 threads of 2 ranks on 8 cores"


def test_ranks_that_share_a_gpu_are_bad():
    (problem,) = judge(spoiled(HEALTHY, [0, 1], device=DEVICE), Limits())
    assert (problem.bad, problem.nodes, problem.ranks, problem.what) == (True, ("n1",), (0, 1), "GPU")


def test_of_two_ranks_that_differ_the_first_is_what_is_expected():
    (problem,) = judge(unlike(findings(2, 1), 1, torch="2.12.1"), Limits())
    assert (problem.nodes, problem.found, problem.expected) == (
        ("n2",),
        "2.12.1",
        "2.13.0, as on 1 of 2 ranks",
    )


def test_ranks_without_a_gpu_or_with_too_few_cannot_join():
    at = places(2, 2)
    (problem,) = judge_places([*at[:2], *(replace(place, device="cpu", gpus=0) for place in at[2:])])
    assert (problem.bad, problem.nodes, problem.ranks, problem.what) == (True, ("n2",), (2, 3), "GPU")
    (problem,) = judge_places([*at[:3], replace(at[3], gpus=1)])
    assert (problem.nodes, problem.ranks, problem.found) == (("n2",), (3,), "LOCAL_RANK 1 of 1 GPUs seen")


def test_a_node_that_cannot_read_the_recipe_is_named():
    at = places(2, 1)
    (problem,) = judge_places([at[0], replace(at[1], mistake="recipe r.yaml: no such file")])
    assert (problem.nodes, problem.found) == (("n2",), "recipe r.yaml: no such file")
