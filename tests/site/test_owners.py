"""The bytes of docs/concepts/owners.md are those that `alphadecay plan` prints."""

from __future__ import annotations

import json
import re

import pytest

from alphadecay_dist import cli
from tests.site import DOCS

PAGE = (DOCS / "concepts" / "owners.md").read_text(encoding="utf-8")
ROW = re.compile(
    r"^\| `(\w+)( --replicas 2)?` \| .*? \| ([\d.]+) MiB \| ([\d.]+) MiB \| ([\d.]+) MiB \| (\d+) \|$", re.M
)
ROWS = ROW.findall(PAGE)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "".join(row[:2]))
def test_a_row_is_what_plan_prints(row, capsys):
    sharding, replicas, received, sent, peak, rounds = row
    options = f"plan --recipe llama_1b --world_size 8 --profile h100 --sharding {sharding}{replicas} --json"
    assert cli.main(options.split()) == 0
    plan = json.loads(capsys.readouterr().out)
    most = [max(plan[key]) / 2**20 for key in ("bytes_received", "bytes_sent", "peak_bytes")]
    assert [f"{number:.4g}" for number in most] == [received, sent, peak]
    assert plan["rounds"] == int(rounds)
    assert plan["matrices"] == 168


def test_every_sharding_has_its_row():
    assert [row[0] for row in ROWS] == ["ddp", "zero3", "zero2_masters", "fsdp1", "fsdp2", "fsdp2"]
    comparison = (DOCS / "concepts" / "zero_or_fsdp.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^\| traffic of a refresh.*$", comparison, re.MULTILINE)
    by_name = {"".join(row[:2]): row[2] for row in ROWS}
    assert re.findall(r"([\d.]+) MiB", line) == [by_name["zero3"], by_name["fsdp2"]]
