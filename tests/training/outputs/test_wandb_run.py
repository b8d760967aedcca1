"""The wandb run: off, offline without a login, the same one after a resume."""

from __future__ import annotations

import json

import pytest

from alphadecay_dist.training.outputs.trackers import start_trackers
from alphadecay_dist.training.recipe import LoggingConfig
from tests.training.processes import in_a_new_process


@pytest.mark.launcher
def test_off_loads_and_writes_nothing(tmp_path):
    code = (
        "tracker = started('off')\n"
        "tracker.log('metrics', 1, {'loss': 1.0}); tracker.close(0)\n"
        "print('wandb' in sys.modules)"
    )
    assert in_a_new_process(code, tmp_path).stdout.split() == ["False"]
    assert list(tmp_path.iterdir()) == []


def test_off_takes_records_in_this_process_too(tmp_path):
    tracker = start_trackers(LoggingConfig(wandb="off"), tmp_path, {}, 1)
    tracker.log("metrics", 1, {"loss": None})
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
        print(wandb_run._logged_in(wandb.setup().settings))
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
        f"tracker = started({mode!r}, {{'train': {{'steps': 2}}}})\n"
        "tracker.log('metrics', 1, {'loss': 1.5, 'grad_norm': None})\n"
        "tracker.log('metrics', 2, {'loss': 0.5})\n"
        "run = tracker.running['wandb'].run; print(run.summary['loss'], run.offline)\n"
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
    for resumed in (0, 1):
        in_a_new_process(f"started('offline', step={resumed}).close(0)", tmp_path)
    identity = (tmp_path / "wandb_id").read_text().strip()
    runs = [path.name for path in (tmp_path / "wandb").glob("offline-run-*")]
    assert runs
    assert all(name.endswith(identity) for name in runs)
