"""Which node, rank or link is slow."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alphadecay_dist.doctor.findings import BETWEEN, WITHIN, Limits
from alphadecay_dist.doctor.judge import bad_nodes
from alphadecay_dist.doctor.judge_links import judge_links
from alphadecay_dist.doctor.pairs import rounds, tournament
from tests.doctor.drawn import links, places


@given(st.integers(1, 9), st.integers(1, 9))
def test_each_rank_is_in_one_pair_of_a_round_and_meets_others_of_its_kind(nodes, ranks):
    at = places(nodes, ranks)
    met = Counter()
    for kind, pairs in rounds(at):
        assert max(Counter(rank for pair in pairs for rank in pair).values()) == 1
        for a, b in pairs:
            assert (at[a].node == at[b].node) == (kind == WITHIN)
            met[kind, min(a, b), max(a, b)] += 1
    assert all(count == 1 for count in met.values())
    partners = Counter(rank for kind, *pair in met if kind == BETWEEN for rank in pair)
    if nodes > 1:
        assert all(partners[place.rank] >= min(2, max(nodes - 1, ranks - 1), 3) for place in at)


@given(st.integers(0, 12))
def test_in_a_tournament_each_meets_each_once(players):
    met = [frozenset(pair) for facing in tournament(range(players)) for pair in facing]
    assert len(met) == len(set(met)) == players * (players - 1) // 2


@given(st.integers(3, 20), st.integers(1, 8), st.data())
@settings(max_examples=50)
def test_a_node_with_slow_links_to_others_is_named_alone(nodes, ranks, data):
    bad = data.draw(st.integers(1, nodes))
    noise = data.draw(st.randoms(use_true_random=False))
    at = places(nodes, ranks)
    found = [replace(link, rate=link.rate * noise.uniform(0.8, 1.2)) for link in links(at, {f"n{bad}": 0.2})]
    problems = judge_links(found, at, Limits())
    assert bad_nodes(problems) == [f"n{bad}"]
    assert len(problems) == 1
    assert problems[0].what == "bandwidth between nodes"


@given(st.integers(1, 20), st.integers(1, 8), st.randoms(use_true_random=False))
@settings(max_examples=50)
def test_noise_is_no_problem(nodes, ranks, noise):
    at = places(nodes, ranks)
    found = [replace(link, rate=link.rate * noise.uniform(0.75, 1.25)) for link in links(at, {})]
    assert judge_links(found, at, Limits()) == []


def test_two_slow_nodes_of_six_are_both_named_and_no_other():
    at = places(6, 2)
    assert sorted(bad_nodes(judge_links(links(at, {"n2": 0.1, "n5": 0.2}), at, Limits()))) == ["n2", "n5"]


def test_a_slow_rank_is_named_by_its_links_within_and_between():
    at = places(2, 4)
    within, between = judge_links(links(at, {6: 0.3}), at, Limits())
    assert (within.nodes, within.ranks, within.what) == (("n2",), (6,), "bandwidth within a node")
    assert (between.nodes, between.ranks, between.what) == (("n2",), (6,), "bandwidth between nodes")
    assert within.found == "its links to several others: 30 GB/s"
    assert within.expected == "50 GB/s or more (0.5 of the median)"


def test_of_a_single_slow_link_both_ends_are_named():
    at = places(4, 2)
    (pair,) = [
        link.ranks for link in links(at, {}) if set(link.ranks) >= {0} and at[link.ranks[1]].node == "n3"
    ]
    (problem,) = judge_links(links(at, {pair: 0.1}), at, Limits())
    assert (problem.bad, problem.nodes, problem.ranks) == (True, ("n1", "n3"), pair)
    assert f"between rank 0 on n1 and rank {pair[1]} on n3" in problem.found


def test_a_node_that_is_slow_inside_is_named_with_all_its_ranks():
    at = places(3, 4)
    slow = dict.fromkeys(((a, b) for a in range(4, 8) for b in range(4, 8)), 0.1)
    problems = judge_links(links(at, slow), at, Limits())
    assert bad_nodes(problems) == ["n2"]
    assert {rank for problem in problems for rank in problem.ranks} == {4, 5, 6, 7}


def test_the_fraction_decides():
    at = places(4, 1)
    found = links(at, {"n3": 0.4})
    assert bad_nodes(judge_links(found, at, Limits(link_fraction=0.5))) == ["n3"]
    assert judge_links(found, at, Limits(link_fraction=0.3)) == []


@pytest.mark.parametrize("nodes", [1, 2])
def test_one_link_has_nothing_to_be_compared_with(nodes):
    at = places(nodes, 2 // nodes)
    assert judge_links(links(at, {(0, 1): 0.01}), at, Limits()) == []


def test_ranks_that_share_a_machine_without_gpus_are_warned_of_alone():
    at = [replace(place, machine="one", device="cpu") for place in places(4, 1)]
    (problem,) = judge_links(links(at, {"n3": 0.1}), at, Limits())
    assert (problem.bad, problem.nodes) == (False, ("n3",))
