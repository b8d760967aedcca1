"""What the terminal shows of a refresh."""

from __future__ import annotations

from dataclasses import replace

import pytest

from alphadecay_dist.control.refresh import ModuleRefresh, Refresh
from alphadecay_dist.spectral import Histogram
from alphadecay_dist.spectral.report import BINS
from alphadecay_dist.training.outputs import run_log
from alphadecay_dist.training.outputs.run_files import RunFiles, read_lines
from alphadecay_dist.training.outputs.run_log import RunLog, refresh_line
from alphadecay_dist.training.process.preemption import StopRequests


def a_refresh(step, alphas, written_at=None):
    modules = {
        f"layers.{n}.up": ModuleRefresh(alpha, 0.1 * (n + 1), 0, "zero" if alpha is None else "assigned")
        for n, alpha in enumerate(alphas)
    }
    return Refresh(step, step if written_at is None else written_at, 0.1234, (0,), modules)


def test_a_refresh_is_a_short_line():
    assert refresh_line(a_refresh(500, [2.5, 3.0, 2.0])) == (
        "refresh at update 500: 3 matrices, alpha 2.00 to 3.00, median 2.50, decay 0.1 to 0.3, 0.12 s"
    )
    undefined = refresh_line(a_refresh(500, [None, 3.0], written_at=510))
    assert undefined.startswith("refresh at update 500, written at 510: 2 matrices, alpha 3.00 to 3.00")
    assert undefined.endswith("(1 undefined keep what they had)")
    assert ", alpha undefined, " in refresh_line(a_refresh(0, [None]))


@pytest.mark.parametrize("seconds", [1.0, 20.0])
def test_many_refreshes_are_lines_of_the_file_and_few_of_the_terminal(tmp_path, capsys, monkeypatch, seconds):
    clock = iter(seconds * number for number in range(100))
    monkeypatch.setattr(run_log.time, "monotonic", lambda: next(clock))
    log = RunLog(RunFiles(tmp_path), None, StopRequests())
    for step in range(40):
        log.refresh(a_refresh(step, [2.0, 3.0]))
    shown = [line for line in capsys.readouterr().err.splitlines() if line.startswith("refresh at update")]
    assert len(shown) == (40 if seconds > 10 else 10 + 3)
    assert len(read_lines(tmp_path / "decay.jsonl")) == 40


@pytest.mark.parametrize("every", [0, 1, 3])
def test_histograms_are_kept_of_every_so_many_refreshes_whatever_stops_between(tmp_path, every):
    histogram = Histogram(64, -2.0, 1.0, 2.5, 0.5, 32, (2,) * BINS)
    for start, end in ((0, 5), (5, 6), (6, 10)):
        log = RunLog(RunFiles(tmp_path), None, StopRequests(), every)
        for number in range(start, end):
            log.refresh(replace(a_refresh(10 * number, [2.0]), histograms={"layers.0.up": histogram}))
        log.refresh(replace(a_refresh(999, [2.0]), histograms={"layers.0.up": histogram}))
        log.go_back(10 * end)
    path = tmp_path / "spectra.jsonl"
    found = read_lines(path) if path.is_file() else []
    assert [line["step"] for line in found] == ([10 * n for n in range(0, 10, every)] if every else [])
    assert all(line["modules"]["layers.0.up"]["counts"] == [2] * BINS for line in found)
    assert "histograms" not in read_lines(tmp_path / "decay.jsonl")[0]
    assert [line["event"] for line in read_lines(tmp_path / "events.jsonl")] == ["rolled_back"] * 3


def test_other_ranks_show_nothing(capsys):
    RunLog(None, None, StopRequests()).refresh(a_refresh(0, [2.0]))
    assert capsys.readouterr().err == ""
