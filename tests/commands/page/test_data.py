"""What a page is made of: the files' numbers, thinned out where there are many."""

from __future__ import annotations

import json
import sys

import pytest

from alphadecay_dist import cli
from alphadecay_dist.commands.page.columns import spread, thinned
from alphadecay_dist.commands.page.html import MOST_BYTES
from alphadecay_dist.commands.page.plotly_js import packed_plotly, unwrapped, with_used_kinds
from alphadecay_dist.commands.page.refresh_data import refresh_data
from alphadecay_dist.commands.page.report import report_data, report_page
from alphadecay_dist.errors import UserError
from alphadecay_dist.training.outputs.run_files import RunFiles, read_lines
from tests.commands.page.written import NAMES, STEPS, UNDEFINED, write_run


def test_the_data_are_the_files_numbers(tmp_path):
    (run,) = report_data([write_run(tmp_path)])["runs"]
    lines = read_lines(tmp_path / "decay.jsonl")
    refreshes = run["refreshes"]
    assert [module["name"] for module in refreshes["modules"]] == NAMES
    assert {(module["type"], module["depth"]) for module in refreshes["modules"]} == {
        (kind, depth) for kind in ("q", "down", "gate") for depth in range(3)
    }
    assert (refreshes["step"], refreshes["written_at"]) == (list(STEPS), [step + 2 for step in STEPS])
    for key in ("alpha", "weight_decay"):
        for row, line in zip(refreshes["numbers"][key], lines, strict=True):
            assert row == [_close(module[key]) for module in line["modules"].values()]
    statuses = [[refreshes["statuses"][code] for code in row] for row in refreshes["status"]]
    assert statuses[-1][NAMES.index(UNDEFINED)] == "zero"
    assert sum(row.count("zero") for row in statuses) == 1
    assert refreshes["bytes"] == [[2**20, 3 * 2**20]] * 3
    assert run["spectra"]["step"] == [0, 20]
    kept = read_lines(tmp_path / "spectra.jsonl")
    for place, line in enumerate(kept):
        for name, own in line["modules"].items():
            shown = run["spectra"]["modules"][name][place]
            assert shown["counts"] == own["counts"]
            assert shown["xmin"] == pytest.approx(own["xmin"], rel=1e-5)
    assert run["spectra"]["modules"][UNDEFINED][1] is None
    assert run["condition"]["numbers"] == ["nr", "st", "spectral_norm"]
    assert run["condition"]["types"]["q"]["nr"][:2] == [13.0, 16.0]
    assert run["eval"]["perplexity"][-1] == pytest.approx(90.0171, rel=1e-5)
    assert run["facts"]["policy"] == "alphadecay"


def _close(value):
    return value if value is None else pytest.approx(value, rel=1e-5)


def test_many_records_are_means_of_neighbours_with_the_last_ones_step():
    records = [{"step": step, "loss": float(step), "lr": None} for step in range(1, 8)]
    assert thinned(records, ("loss", "lr"), 3) == {
        "step": [3, 6, 7],
        "loss": [2.0, 5.0, 7.0],
        "lr": [None] * 3,
        "every": 3,
    }
    assert thinned([], ("loss",), 3) == {"step": [], "loss": [], "every": 1}
    assert thinned(records, ("loss",), 7)["every"] == 1


def test_many_refreshes_are_spread_with_the_first_and_the_last():
    assert spread(3, 5) == [0, 1, 2]
    assert spread(101, 5) == [0, 25, 50, 75, 100]


def test_totals_count_refreshes_that_are_not_kept_too(tmp_path):
    lines = read_lines(write_run(tmp_path) / "decay.jsonl")
    many = [{**lines[number % 2], "step": number, "seconds": 0.5} for number in range(100)]
    many[50] = {**lines[2], "step": 50, "seconds": None}
    found = refresh_data(many, 10)
    assert len(found["step"]) == 10
    assert (found["of"], found["seconds_in_all"]) == (100, 49.5)
    assert (found["undefined_ones"], found["undefined_pairs"]) == ([(UNDEFINED, "zero", 1, 50, 50)], 1)
    assert found["statuses"] == ["assigned"]  # at those that are kept


def test_plotly_starts_the_kinds_of_figure_that_pages_have_and_is_read_once():
    from plotly.offline import get_plotlyjs

    script = get_plotlyjs()
    cut = with_used_kinds(script)
    assert 47 * 5 / 2 < len(script) - len(cut) < 47 * 12  # calls of some letters, and nothing else
    bare = unwrapped(cut)
    assert bare.startswith("/**\n* plotly.js v")  # its licence
    assert bare.rstrip().endswith("window.Plotly = Plotly;")
    other = "window.Plotly = {}"
    assert unwrapped(with_used_kinds(other)) == other


def test_runs_are_told_apart_by_as_much_of_their_paths_as_that_takes(tmp_path):
    runs = [write_run(tmp_path / part) for part in ("a/one", "a/two")]
    assert [run["name"] for run in report_data(runs)["runs"]] == ["one", "two"]
    again = write_run(tmp_path / "b/one")
    assert [run["name"] for run in report_data([runs[0], again])["runs"]] == ["a/one", "b/one"]
    with pytest.raises(UserError, match="found one run twice"):
        report_data([again, again])


@pytest.mark.parametrize("kept", ["decay.jsonl", "metrics.jsonl", "eval.jsonl"])
def test_a_page_is_made_of_what_there_is(tmp_path, kept, capsys):
    for path in write_run(tmp_path).iterdir():
        if path.name != kept:
            path.unlink()
    assert cli.main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert text.startswith("<!doctype html>")
    assert 1_000_000 < len(text) < MOST_BYTES


def test_a_text_of_a_run_ends_no_script(tmp_path):
    write_run(tmp_path)
    RunFiles(tmp_path).event("preempted", 15, "</script><script>alert(1)</script>@PLOTLY@")
    text = report_page([tmp_path])
    assert "<script>alert" not in text
    data = text.split('type="application/json">')[1].split("</script>")[0]
    assert json.loads(data)["runs"][0]["events"][-1]["reason"].endswith("@PLOTLY@")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["RUN", "--out=x.png"], "--out x.png: found 2 runs, expected one for a picture, or a .html"),
        (["--port=80"], "--port 80: belongs to --watch; give both, or leave it out"),
        (["--watch", "--out=x.html"], "--out x.html: --watch writes no file; leave one of them out"),
        (
            ["--watch", "--port=70000"],
            "--port 70000: no such port; choose another, or 0 for any that is free",
        ),
    ],
)
def test_options_that_do_not_fit_are_one_line(tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.chdir(tmp_path)
    run = str(write_run(tmp_path / "run"))
    assert cli.main(["report", run, *(run if option == "RUN" else option for option in options)]) == 2
    assert capsys.readouterr().err == f"alphadecay: error: {words}\n"


def test_without_plotly_one_line_says_which_extra_it_is_in(tmp_path, monkeypatch, capsys):
    packed_plotly.cache_clear()
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    assert cli.main(["report", str(write_run(tmp_path))]) == 2
    assert capsys.readouterr().err == (
        "alphadecay: error: plotly: not installed; pip install 'alphadecay-dist[plot]'\n"
    )
    assert not (tmp_path / "report.html").exists()


def test_a_line_that_is_no_refresh_is_one_line(tmp_path, capsys):
    RunFiles(tmp_path).append("decay.jsonl", {"step": 0, "modules": 3})
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "a line of its files is not what a run writes" in capsys.readouterr().err
