"""Differences between methods, seed by seed, against scipy's; and the page that shows them."""

from __future__ import annotations

import json
import random

import pytest
import yaml
from scipy import stats

from alphadecay_dist import cli
from alphadecay_dist.commands.cells import read_table
from alphadecay_dist.commands.paired import critical, method_axis, paired
from alphadecay_dist.training.config import to_yaml
from alphadecay_dist.training.outputs.run_files import RunFiles
from tests.commands.page.browser import Tab

METHODS = {"uniform": {"decay.policy": "uniform"}, "alphadecay": {}, "mean": {"decay.normalize": "mean"}}
SEEDS = [0, 1, 2]
LOST = ("mean", "0.3", "1")  # failed


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table of one's own: three methods, two decays, three seeds; one cell failed."""
    folder = tmp_path_factory.mktemp("table")
    axes = {"method": METHODS, "decay.weight_decay": [0.1, 0.3], "train.seed": SEEDS}
    path = folder / "table.yaml"
    path.write_text(yaml.safe_dump({"recipe": "demo", "output": str(folder), "axes": axes}, sort_keys=False))
    draw = random.Random(0)
    for cell in read_table(str(path)):
        files = RunFiles(cell.folder)
        files.text("config.yaml", to_yaml(cell.config()))
        if tuple(cell.place.values()) == LOST:
            files.status("failed", 3, 1, "update 4: loss nan")
            continue
        files.append("eval.jsonl", {"step": 300, "loss": 1.0, "perplexity": 50 + draw.random()})
        files.status("finished", 300, 0)
    return path


def perplexities(table, method, decay):
    """By seed."""
    return {
        cell.place["train.seed"]: cell.result()["numbers"].get("perplexity")
        for cell in read_table(str(table))
        if cell.place["method"] == method and cell.place["decay.weight_decay"] == decay
    }


def both(table, method, base, decay):
    """The numbers of the seeds that both have."""
    one, other = (perplexities(table, name, decay) for name in (method, base))
    seeds = [seed for seed in one if None not in (one[seed], other[seed])]
    return [one[seed] for seed in seeds], [other[seed] for seed in seeds]


@pytest.mark.parametrize("freedom", [*range(1, 12), 29, 100])
def test_the_critical_value_is_students(freedom):
    assert critical(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-9)


def test_differences_are_paired_by_seed_with_students_interval(table):
    cells = read_table(str(table))
    found = paired(cells, [cell.result() for cell in cells])
    assert method_axis(cells) == "method"
    assert len(found) == 3 * 2 * 2  # each against each other, at each decay
    for own in found:
        method, decay = own.place.values()
        ours, others = both(table, method, own.base, decay)
        expected = stats.ttest_rel(ours, others)
        interval = expected.confidence_interval(0.95)
        assert own.number == "perplexity"
        assert list(own.differences.values()) == [a - b for a, b in zip(ours, others, strict=True)]
        assert len(own.differences) == 3 - ("mean" in (method, own.base) and decay == "0.3")
        assert own.mean == pytest.approx(sum(own.differences.values()) / len(ours))
        assert own.interval == pytest.approx((interval.low, interval.high))


def test_of_one_seed_there_is_a_difference_without_an_interval(table):
    cells = [cell for cell in read_table(str(table)) if cell.place["train.seed"] == "2"]
    for own in paired(cells, [cell.result() for cell in cells]):
        assert (own.deviation, own.interval, list(own.differences)) == (None, None, ["2"])


def test_json_has_them_and_the_page_is_written_beside(table, tmp_path, capsys):
    page = tmp_path / "table.html"
    assert cli.main(["table", str(table), "--format=json", f"--page={page}"]) == 0
    named, _, printed = capsys.readouterr().out.partition("\n")
    assert named == str(page)
    tree = json.loads(printed)
    assert len(tree["paired"]) == 12
    carried = json.loads(page.read_text().split('type="application/json">')[1].split("</script>")[0])
    assert {key: carried[key] for key in tree} == tree
    assert [cell["cell"] for cell in tree["cells"]] == list(range(18))
    assert cli.main(["table", str(table), "--array", f"--page={page}"]) == 2
    assert "is of results, which --array prints none of" in capsys.readouterr().err


@pytest.mark.launcher
def test_the_page_shows_every_cell_mean_and_difference(browser, table, tmp_path):
    page = tmp_path / "table.html"
    assert cli.main(["table", str(table), f"--page={page}"]) == 0
    for scheme, width in (("light", 1440), ("dark", 400)):
        tab = Tab(browser, width, scheme).open(page.as_uri())
        assert tab.complaints == []
        assert tab.page.evaluate("document.documentElement.scrollWidth") == width
    tab = Tab(browser, 1440, "light").open(page.as_uri())
    rows = {tuple(row[:2]): row[2] for row in tab.rows("#rows")[1:]}
    for (method, decay), text in rows.items():
        values = [value for value in perplexities(table, method, decay).values() if value is not None]
        assert text == f"{sum(values) / len(values):.3f} ± {stats.tstd(values):.3f}"
    head, *cells = tab.rows("#cells")
    assert [row[head.index("cell")] for row in cells] == [str(number) for number in range(18)]
    kept = perplexities(table, "uniform", "0.1").values()
    assert [float(row[-1]) for row in cells[:3]] == pytest.approx(list(kept), abs=6e-4)
    assert sum("failed: update 4: loss nan" in row for row in tab.rows("#cells")) == 1
    for base in ("uniform", "mean"):
        tab.page.locator("#base").select_option(base)
        tab.drawn()
        shown = tab.rows("#paired")[1:]
        assert len(shown) == 4
        for method, decay, mean, _, interval, seeds in shown:
            ours, others = both(table, method, base, decay)
            expected = stats.ttest_rel(ours, others).confidence_interval(0.95)
            assert int(seeds) == len(ours)
            assert float(mean) == pytest.approx((sum(ours) - sum(others)) / len(ours), abs=6e-4)
            ends = [float(end) for end in interval.split(" to ")]
            assert ends == pytest.approx([expected.low, expected.high], abs=6e-4)
