"""An output directory has one run at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from alphadecay_dist.errors import UserError
from alphadecay_dist.training.process.lock import LOCK, FolderLock
from tests.training.errors import ZERO2, error_of_ranks
from tests.training.runs import tiny_options

HOLD = """
import pathlib, sys, time
from alphadecay_dist.training.process.lock import FolderLock
FolderLock(pathlib.Path(sys.argv[1])).before_writing() or print("held", flush=True)
time.sleep(60)
"""


def test_a_second_run_is_told_who_has_the_directory(tmp_path):
    first, second = FolderLock(tmp_path / "run"), FolderLock(tmp_path / "run")
    first.before_reading()
    assert not (tmp_path / "run").exists()
    first.before_writing()
    with pytest.raises(
        UserError, match=rf"run: another run writes there, process {os.getpid()} on .* since 20"
    ):
        second.before_reading()
    first.release()
    second.before_reading()
    second.before_writing()
    assert (tmp_path / "run" / LOCK).stat().st_size > 0


def test_of_two_that_begin_a_run_at_once_one_is_refused(tmp_path):
    first, second = FolderLock(tmp_path), FolderLock(tmp_path)
    first.before_reading()
    second.before_reading()
    first.before_writing()
    first.release()  # and it is already done: what the second has read of the directory is out of date
    with pytest.raises(UserError, match="another run began there, process"):
        second.before_writing()


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000])
def test_a_lock_file_that_says_nothing_still_locks(tmp_path, content):
    (tmp_path / LOCK).write_text("")
    first = FolderLock(tmp_path)
    first.before_reading()
    with pytest.raises(UserError, match="another run writes there; wait"):
        FolderLock(tmp_path).before_reading()
    first.release()


@pytest.mark.kills
def test_the_lock_goes_with_its_process_however_that_dies(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(UserError, match=f"process {holder.pid} on "):
        FolderLock(tmp_path).before_reading()
    holder.send_signal(signal.SIGKILL)
    holder.wait(10)
    FolderLock(tmp_path).before_reading()


@pytest.mark.kills
def test_a_second_run_in_the_directory_is_one_line_and_exit_code_2(tmp_path):
    held = FolderLock(tmp_path / "run")
    held.before_writing()
    line = error_of_ranks(
        ["--deepspeed", ZERO2, "--output_dir", str(tmp_path / "run"), *tiny_options(tmp_path)]
    )
    assert all(word in line for word in ("another run writes there", f"process {os.getpid()} on", "since"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]
    held.release()
