"""A disk that fills up, or may not be written: a small real one, one line, and on with the run."""

from __future__ import annotations

import subprocess

import pytest
import torch

from alphadecay_dist.checkpoint.reader import newest
from alphadecay_dist.errors import UserError
from alphadecay_dist.files import write_atomically
from alphadecay_dist.training.outputs.run_files import METRICS, RunFiles, read_lines, read_status
from alphadecay_dist.training.process.lock import LOCK, FolderLock
from alphadecay_dist.training.process.ranks import Ranks
from tests.multirank import run_ranks
from tests.python_path import python_path
from tests.resilience.disks import MEGABYTE, Disk, fill
from tests.training.errors import main_and_output
from tests.training.processes import in_a_new_process
from tests.training.runs import (
    ROOT,
    argv_of,
    left_behind,
    same_weights,
    tiny_options,
    train_on,
    without_times,
)

CHECKPOINT = 2 * MEGABYTE  # of the tiny runs, and a little more
UPDATES = {"train__steps": 24, "checkpoint__every": 8, "decay__interval": 3, "eval__every": 8}


@pytest.fixture
def disk(tmp_path):
    made = []

    def of(size):
        made.append(Disk(tmp_path / "disk", size))
        return made[0]

    yield of
    for each in made:
        subprocess.run(["umount", str(each.place)], check=False)


def train_until_full(argv, place, update):
    """Train; rank 0 fills the disk when it comes to an update."""
    original, calls = Ranks.sum_on_device, 0

    def sum_on_device(self, *values):
        nonlocal calls
        calls += torch.is_tensor(values[0])  # the loss: once an update
        if calls == update and self.rank == 0 and not (place / "filler").exists():
            fill(place / "filler")
        return original(self, *values)

    Ranks.sum_on_device = sum_on_device
    return main_and_output(argv)


def check_one_line(outcomes, code, *words):
    """On every rank the code, on rank 0 the line, and nowhere a traceback."""
    assert [found for found, _ in outcomes] == [code] * len(outcomes), outcomes
    lines = [line for _, text in outcomes for line in text.splitlines() if "train.py: " in line]
    assert len(lines) == 1, outcomes
    assert all(word in lines[0] for word in words), lines[0]
    assert not any("Traceback" in text for _, text in outcomes), outcomes


def check_goes_on(engine, output, options, whole):
    resumed = train_on(2, engine, output, options)
    assert without_times(resumed) == without_times(left_behind(whole))
    assert same_weights(output, whole)
    assert read_status(output)["state"] == "finished"


@pytest.mark.kills
def test_a_full_disk_is_one_line_on_all_ranks_and_the_run_goes_on_after_it(tmp_path, disk):
    options = tiny_options(tmp_path, **UPDATES)
    train_on(2, "2", tmp_path / "whole", options)
    small = disk(CHECKPOINT + CHECKPOINT // 2)
    output = small.place / "run"
    argv = argv_of("2", output, options)
    # The second checkpoint does not fit: the first one stands.
    outcomes = run_ranks(main_and_output, 2, argv)
    check_one_line(
        outcomes, 1, "train.py: failed: ", "step-00000016: the checkpoint cannot be written: ", "No space"
    )
    status = read_status(output)
    assert (status["state"], status["step"], status["exit_code"]) == ("failed", 16, 1)
    assert [f.name for f in (output / "checkpoints").iterdir() if f.is_dir()] == ["step-00000008"]
    # Nor do, from an update on, the lines of the log.
    outcomes = run_ranks(train_until_full, 2, argv, small.place, 3)
    check_one_line(
        outcomes,
        1,
        "train.py: failed: ",
        ".jsonl cannot be written: No space",
        "the last checkpoint is whole",
    )
    status = read_status(output)
    assert (status["state"], status["exit_code"]) == ("failed", 1)
    assert 10 <= status["step"] < 16
    assert newest(output / "checkpoints").manifest.step == 8
    # A start is refused while there is no room.
    outcomes = run_ranks(main_and_output, 2, argv)
    check_one_line(outcomes, 2, "train.py: error: ", "cannot be written: No space")
    assert newest(output / "checkpoints").manifest.step == 8
    (small.place / "filler").unlink()
    small.again("size=64m")
    check_goes_on("2", output, options, tmp_path / "whole")


@pytest.mark.kills
def test_a_disk_that_may_not_be_written_is_one_line_and_stays_as_it_is(tmp_path, disk):
    options = tiny_options(tmp_path, train__steps=4)
    train_on(2, "ddp", tmp_path / "whole", options)
    small = disk(64 * MEGABYTE)
    output = small.place / "run"
    train_on(2, "ddp", output, [*options, "--train.stop_after=2"])
    small.again("ro")
    before = {path: path.stat().st_mtime_ns for path in small.place.rglob("*")}
    for folder in (output, small.place / "new"):
        outcomes = run_ranks(main_and_output, 2, argv_of("ddp", folder, options))
        check_one_line(outcomes, 2, "train.py: error: --output_dir", "no directory to write to")
    assert {path: path.stat().st_mtime_ns for path in small.place.rglob("*")} == before
    small.again("rw")
    check_goes_on("ddp", output, options, tmp_path / "whole")


def test_a_line_that_a_full_disk_cut_short_is_left_out(disk):
    small = disk(MEGABYTE)
    files = RunFiles(small.place / "run")
    record = {"step": 1, "loss": 0.5, "text": "x" * 3000}
    files.append(METRICS, record)
    fill(small.place / "filler")
    with pytest.raises(OSError, match="No space left"):
        files.append(METRICS, record)
    assert not (files.folder / METRICS).read_text().endswith("\n")
    (small.place / "filler").unlink()
    files.keep_until(5)
    files.append(METRICS, {"step": 2})
    assert [line["step"] for line in read_lines(files.folder / METRICS)] == [1, 2]


def test_how_a_run_ended_has_room_on_a_full_disk(disk):
    small = disk(MEGABYTE)
    files = RunFiles(small.place / "run")
    files.status("preempted", 3, 75, "a reason that is longer than the next one is")
    fill(small.place / "filler")
    with pytest.raises(OSError, match="No space left"):
        write_atomically(files.folder / "config.yaml", "text")
    files.status("failed", 7, 1, "full")
    assert read_status(files.folder) == {"state": "failed", "step": 7, "exit_code": 1, "reason": "full"}
    assert [path.name for path in files.folder.iterdir()] == ["status.json"]


def test_a_lock_that_may_not_be_written_is_one_line(disk):
    small = disk(MEGABYTE)
    folder = small.place / "run"
    folder.mkdir()
    (folder / LOCK).touch()
    small.again("ro")
    with pytest.raises(UserError, match=r"its lock cannot be opened: Read-only file system; .* another"):
        FolderLock(folder).before_reading()


@pytest.mark.kills
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_full_disk_ends_wandb_and_nothing_else(disk, when):
    small = disk(MEGABYTE)
    code = (
        "from tests.resilience.disks import fill\n"
        f"when = {when!r}\n"
        "if when == 'before': fill(folder / 'filler')\n"
        "tracker = started('offline')\n"
        "if when == 'after': fill(folder / 'filler')\n"
        "for step in range(2000): tracker.log('metrics', step, {'loss': 1.0, 'text': 'x' * 100})\n"
        "tracker.close(0)\n"
        "print('on it goes')"
    )
    done = in_a_new_process(code, small.place, PYTHONPATH=python_path(ROOT))
    assert done.stdout.endswith("on it goes\n")
    assert ("wandb does not start: [Errno 28]" in done.stderr) == (when == "before")
    assert "Traceback" not in done.stderr
