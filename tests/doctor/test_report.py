from __future__ import annotations

import json

import pytest

from alphadecay_dist.doctor.findings import Limits
from alphadecay_dist.doctor.judge import judge
from alphadecay_dist.doctor.judge_links import judge_links
from alphadecay_dist.doctor.report import closing_line, problem_lines, table, write_json
from alphadecay_dist.doctor.roll_call import missing, spans
from alphadecay_dist.errors import UserError
from tests.doctor.drawn import findings, links, places, spoiled, unlike

HEALTHY, AT = findings(2, 4), places(2, 4)
LINKS = links(AT, {})


def test_ranks_that_are_alike_are_one_line_a_node_and_columns_are_aligned():
    lines = table(HEALTHY, LINKS, []).splitlines()
    assert len(lines) == 3
    assert [line.split()[:2] for line in lines] == [["node", "ranks"], ["n1", "0-3"], ["n2", "4-7"]]
    for title in ("device", "clock", "within", "between", "state"):
        column = lines[0].index(title)
        assert all(line[column - 1] == " " and line[column] != " " for line in lines)
    assert "4 x H100" in lines[1]
    assert "100 GB/s" in lines[1]
    assert "20 GB/s" in lines[1]
    assert lines[1].endswith("well")


def test_what_is_wrong_stands_in_the_table_and_below_it():
    bad = spoiled(unlike(HEALTHY, 5, torch="2.12.1"), [0, 1, 2, 3], shared_memory=2**20)
    problems = judge(bad, Limits())
    assert [line.split()[-1] for line in table(bad, LINKS, problems).splitlines()] == [
        "state",
        "warned",
        "BAD",
    ]
    assert problem_lines(problems) == [
        "BAD   n2 (rank 5): torch: found 2.12.1, expected 2.13.0, as on 7 of 8 ranks; "
        "install the same on every node",
        "warn  n1 (ranks 0-3): /dev/shm: found 0.000977 GiB free, expected 1 GiB or more; "
        "clear it, or give the container more (--shm-size)",
    ]
    assert closing_line(AT, problems) == "1 of 2 nodes bad: n2"


@pytest.mark.parametrize(
    ("nodes", "ranks", "line"),
    [
        (1, 1, "1 rank on 1 node is well"),
        (1, 4, "all 4 ranks on 1 node are well"),
        (2, 4, "all 8 ranks on 2 nodes are well"),
    ],
)
def test_the_closing_line_of_healthy_nodes(nodes, ranks, line):
    assert closing_line(places(nodes, ranks), []) == line


def test_json_has_all_findings_links_and_problems(tmp_path):
    bad = links(places(4, 1), {"n3": 0.1})
    problems = judge_links(bad, places(4, 1), Limits())
    write_json(tmp_path / "found.json", findings(4, 1), bad, problems)
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["well"], found["bad_nodes"]) == (False, ["n3"])
    assert [rank["place"]["rank"] for rank in found["ranks"]] == [0, 1, 2, 3]
    assert len(found["links"]) == 6
    assert found["problems"][0]["what"] == "bandwidth between nodes"
    with pytest.raises(UserError, match=r"--json .*cannot be written"):
        write_json(tmp_path / "none" / "found.json", findings(4, 1), bad, problems)


def test_spans():
    assert [spans(ranks) for ranks in ([], [3], [0, 1, 2, 5, 7, 8])] == ["", "3", "0-2, 5, 7-8"]


def test_missing_ranks_are_told_with_their_hosts(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "n1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    came = [place for place in places(4, 2) if place.rank in (0, 1, 2, 6, 7)]
    told = missing([3, 4, 5], came, 8, ["n1", "n2", "n3", "n4"], 120)
    assert told == (
        "3 of 8 ranks did not come within 120 s: 3-5; on n2, where other ranks came; no rank came from n3; "
        "look at these ranks' logs, and whether their nodes reach n1:29500"
    )
    assert "no rank came" not in missing([3, 4, 5], came, 8, [], 120)
