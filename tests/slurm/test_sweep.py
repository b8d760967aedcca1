"""A table as a job array on a real SLURM."""

from __future__ import annotations

import pytest
import yaml

from alphadecay_dist.commands.cells import read_table
from alphadecay_dist.training.outputs.run_files import read_status
from tests.slurm.jobs import Job, updates
from tests.training.runs import left_behind, tiny_options

pytestmark = pytest.mark.slurm

STEPS = 150


def table(folder):
    """Three cells, of which the second cannot run."""
    options = [
        option.removeprefix("--").partition("=") for option in tiny_options(folder, train__steps=STEPS)
    ]
    tree = {
        "recipe": "demo",
        "output": str(folder / "runs"),
        "options": {key: value for key, _, value in options if key != "decay.interval"},
        "axes": {"decay.interval": [10, 0, 20]},
    }
    path = folder / "table.yaml"
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def test_a_cell_that_fails_or_is_requeued_leaves_the_others_alone(tmp_path, cluster):
    path = table(tmp_path)
    first, second, third = read_table(path)
    array = Job(cluster, tmp_path, ("--array=0-2%2",), [path], script="table")
    tasks = [array.task(number) for number in range(3)]
    # The last task's own id is the array's, which would stand for all of them.
    array.until(lambda: updates(third.folder) >= 3)
    tasks[2].signal("--signal=TERM", "--full")
    assert [task.over() for task in tasks] == ["COMPLETED", "FAILED", "COMPLETED"], array.printed()
    assert [task.facts()["Restarts"] for task in tasks] == ["0", "0", "1"]
    assert [task.facts()["ExitCode"] for task in tasks] == ["0:0", "2:0", "0:0"]
    assert "decay.interval: found 0, expected 1 or more" in tasks[1].log()
    assert "preempted" in tasks[2].lines("ended")[0]
    for cell in (first, third):
        assert read_status(cell.folder)["state"] == "finished"
        assert [line["step"] for line in left_behind(cell.folder)["metrics"]] == list(range(1, STEPS + 1))
    assert read_status(second.folder) is None
    again = Job(cluster, tmp_path, ("--array=0",), [path], script="table").task(0)
    assert again.over() == "COMPLETED", again.printed()
    assert "is finished (150 updates): nothing to do" in again.printed()
