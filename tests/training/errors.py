"""What the trainer says of a mistake: the one line, on rank 0 alone."""

from __future__ import annotations

import os
import sys
import tempfile

import train
from tests.multirank import run_ranks
from tests.training.runs import ROOT

ZERO2 = str(ROOT / "ds_configs" / "zero2.json")


def main_and_output(argv, main=train.main):
    """On one rank: the exit code of the trainer or of a command, and all that was printed meanwhile."""
    with tempfile.TemporaryFile() as output:
        kept = [os.dup(1), os.dup(2)]
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
        try:
            code = main(argv)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for stream, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, stream)
        output.seek(0)
        return code, output.read().decode(errors="replace")


def the_error_line(text):
    """The one error line of an output that has no traceback."""
    assert "Traceback" not in text, text
    lines = [line for line in text.splitlines() if "train.py: error:" in line]
    assert len(lines) == 1, text
    return lines[0]


def error_of_ranks(argv, world_size=2):
    """The error line of a run on forked ranks: rank 0's; the others print none."""
    outcomes = run_ranks(main_and_output, world_size, argv, timeout=90)
    assert [code for code, _ in outcomes] == [2] * world_size, outcomes
    for _, text in outcomes[1:]:
        assert "train.py: error:" not in text, text
        assert "Traceback" not in text, text
    line = the_error_line(outcomes[0][1])
    assert line.startswith("train.py: error: ")
    return line
