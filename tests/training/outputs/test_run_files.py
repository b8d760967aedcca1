"""What a run leaves behind: JSON lines, status.json, wandb."""

from __future__ import annotations

import json
import math
import os

import pytest

from alphadecay_dist.control.refresh import ModuleRefresh, Refresh
from alphadecay_dist.errors import UserError
from alphadecay_dist.training.outputs.run_files import (
    DECAY,
    EVAL,
    METRICS,
    RunFiles,
    Tracker,
    means_by_type,
    modules_by_type,
    read_lines,
    read_status,
)
from tests.training.processes import in_a_new_process


@pytest.fixture
def files(tmp_path):
    return RunFiles(tmp_path / "runs" / "one")


def test_what_is_not_finite_becomes_null_at_any_depth(files):
    record = {
        "step": 1,
        "loss": math.nan,
        "deep": {"list": [1.5, math.inf], "tuple": (-math.inf, None, True)},
    }
    files.append(METRICS, record)
    text = (files.folder / METRICS).read_text()
    assert text == '{"step": 1, "loss": null, "deep": {"list": [1.5, null], "tuple": [null, null, true]}}\n'


def test_lines_are_added_and_read_back(files):
    for step in (1, 2):
        files.append(METRICS, {"step": step, "loss": 0.1 + 0.2})
    assert read_lines(files.folder / METRICS) == [
        {"step": 1, "loss": 0.1 + 0.2},
        {"step": 2, "loss": 0.1 + 0.2},
    ]


def test_a_resume_drops_what_came_after_its_checkpoint(files):
    for step in range(31):
        files.append(METRICS, {"step": step})
        files.append(EVAL, {"step": step})
        files.append(DECAY, {"step": step})
    files.keep_until(20)
    kept = {
        name: [line["step"] for line in read_lines(files.folder / name)] for name in (METRICS, EVAL, DECAY)
    }
    assert kept == {METRICS: list(range(21)), EVAL: list(range(21)), DECAY: list(range(20))}


def test_a_lagged_refresh_is_kept_by_when_it_was_written(files):
    for step in range(0, 30, 10):
        files.append(DECAY, {"step": step, "written_at": step + 6})
    files.keep_until(16)
    assert [line["step"] for line in read_lines(files.folder / DECAY)] == [0]
    files.append(DECAY, {"step": 10, "written_at": 16})
    files.keep_until(17)
    assert [line["step"] for line in read_lines(files.folder / DECAY)] == [0, 10]


def test_beginning_anew_drops_everything_and_makes_no_file(files):
    files.append(METRICS, {"step": 1})
    files.keep_until(0)
    assert (files.folder / METRICS).read_text() == ""
    assert sorted(path.name for path in files.folder.iterdir()) == [METRICS]


def test_a_last_line_that_was_cut_short_is_left_out_and_written_over(files):
    files.append(METRICS, {"step": 1, "loss": 2.0})
    whole = (files.folder / METRICS).read_text()
    for cut in range(1, len(whole)):
        (files.folder / METRICS).write_text(whole + whole[:-1][:cut])
        assert read_lines(files.folder / METRICS) == [{"step": 1, "loss": 2.0}]
    files.keep_until(5)
    files.append(METRICS, {"step": 2})
    assert [line["step"] for line in read_lines(files.folder / METRICS)] == [1, 2]


@pytest.mark.parametrize(
    "line", ["{", "[]", '"x"', "{}", '{"step": "3"}', '{"step": 3, "written_at": {}}', "[" * 100_000, "\0"]
)
def test_a_line_that_is_no_record_is_named(files, line):
    (files.folder / METRICS).write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    for read in (lambda: read_lines(files.folder / METRICS), lambda: files.keep_until(5)):
        with pytest.raises(UserError, match=r"run_files.jsonl: line 2 is no record: .*; take it out"):
            read()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"state": 3, "step": 3}', '{"state": "x"}', "[" * 100_000]
)
def test_a_status_that_cannot_be_read_is_none(files, text):
    (files.folder / "status.json").write_text(text)
    assert read_status(files.folder) is None


def test_status_is_replaced_whole_and_leaves_nothing_beside_it(files):
    assert read_status(files.folder) is None
    files.status("running", 0)
    assert read_status(files.folder) == {"state": "running", "step": 0, "exit_code": None, "reason": None}
    before = os.open(files.folder / "status.json", os.O_RDONLY)
    files.status("failed", 7, 1, "RuntimeError: out of memory")
    after = {"state": "failed", "step": 7, "exit_code": 1, "reason": "RuntimeError: out of memory"}
    assert read_status(files.folder) == after
    assert json.loads(os.read(before, 1000))["state"] == "running"  # a reader keeps the old one whole
    os.close(before)
    assert [path.name for path in files.folder.iterdir()] == ["status.json"]


REFRESH = Refresh(
    step=0,
    written_at=0,
    seconds=0.1,
    bytes_received=(0,),
    modules={
        "model.layers.0.self_attn.q_proj": ModuleRefresh(2.0, 0.1, 0, "assigned"),
        "model.layers.0.mlp.up_proj": ModuleRefresh(None, 0.1, 0, "undefined"),
        "model.layers.1.self_attn.q_proj": ModuleRefresh(3.0, 0.3, 0, "assigned"),
    },
)


def test_means_by_type_leave_out_an_undefined_alpha():
    assert list(modules_by_type(REFRESH.modules)) == ["q", "up"]
    assert means_by_type(REFRESH) == pytest.approx(
        {"alpha/q": 2.5, "weight_decay/q": 0.2, "weight_decay/up": 0.1}
    )


@pytest.mark.launcher
def test_off_loads_and_writes_nothing(tmp_path):
    code = (
        "tracker = Tracker('off', folder, {}, False)\n"
        "tracker.log(1, {'loss': 1.0}); tracker.close(0)\n"
        "print('wandb' in sys.modules)"
    )
    assert in_a_new_process(code, tmp_path).stdout.split() == ["False"]
    assert list(tmp_path.iterdir()) == []


def test_off_takes_records_in_this_process_too(tmp_path):
    tracker = Tracker("off", tmp_path, {}, resumed=True)
    tracker.log(1, {"loss": None})
    tracker.close(1)
    assert list(tmp_path.iterdir()) == []


LOGINS = [  # a netrc file, variables, and whether that is a login
    (None, {}, False),
    ("machine example.org login a password b\n", {}, False),
    ("not a netrc file", {}, False),
    (f"machine api.wandb.ai login user password {'x' * 40}\n", {}, True),
    ("machine api.wandb.ai login user password x\n", {}, False),
    (None, {"WANDB_API_KEY": "x" * 40}, True),
    (None, {"WANDB_API_KEY": "x" * 40, "WANDB_MODE": "offline"}, False),
    (None, {"WANDB_API_KEY": ""}, False),
]
FIND_LOGINS = """
import json, os, wandb
for home, variables in json.loads((folder / "logins.json").read_text()):
    if os.fork() == 0:  # wandb looks once in a process
        os.environ.update(variables, HOME=home)
        print(run_files._logged_in(wandb.setup().settings))
        sys.exit()
    os.wait()
"""


@pytest.mark.launcher
def test_auto_is_online_with_a_key_or_a_netrc_entry_alone(tmp_path):
    given = []
    for number, (netrc, variables, _) in enumerate(LOGINS):
        home = tmp_path / str(number)
        home.mkdir()
        given.append((str(home), variables))
        if netrc is not None:
            (home / ".netrc").write_text(netrc)
            (home / ".netrc").chmod(0o600)
    (tmp_path / "logins.json").write_text(json.dumps(given))
    found = in_a_new_process(FIND_LOGINS, tmp_path).stdout.split()
    assert found == [str(expected) for _, _, expected in LOGINS]


@pytest.mark.launcher
@pytest.mark.parametrize("mode", ["offline", "auto"])
def test_without_a_login_wandb_runs_offline_and_asks_nothing(tmp_path, mode):
    code = (
        f"tracker = Tracker({mode!r}, folder, {{'train': {{'steps': 2}}}}, False)\n"
        "tracker.log(1, {'loss': 1.5, 'grad_norm': None})\n"
        "tracker.log(2, {'loss': 0.5})\n"
        "print(tracker._run.summary['loss'], tracker._run.offline)\n"
        "tracker.close(0)"
    )
    found = in_a_new_process(code, tmp_path)
    assert found.stdout.split() == ["0.5", "True"]
    assert "login" not in found.stdout + found.stderr
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    identity = (tmp_path / "wandb_id").read_text().strip()
    assert run.name.endswith(identity)
    assert (run / f"run-{identity}.wandb").stat().st_size > 0


@pytest.mark.launcher
def test_a_resumed_run_keeps_its_wandb_id(tmp_path):
    for resumed in (False, True):
        in_a_new_process(f"Tracker('offline', folder, {{}}, {resumed}).close(0)", tmp_path)
    identity = (tmp_path / "wandb_id").read_text().strip()
    runs = [path.name for path in (tmp_path / "wandb").glob("offline-run-*")]
    assert runs
    assert all(name.endswith(identity) for name in runs)
