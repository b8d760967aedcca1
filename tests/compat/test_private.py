"""Every private attribute of others that is read is listed in tests/compat, and is there."""

from __future__ import annotations

import ast
from dataclasses import replace

import pytest
import torch

from tests.compat.private import OWNERS, Owner, missing, private_names, readers
from tests.multirank import run_ranks


def test_all_that_are_read_are_listed():
    listed = {name for owner in OWNERS for name in owner.names}
    assert listed == readers().keys(), "keep OWNERS of tests/compat/private.py"


@pytest.mark.ranks
def test_all_that_are_read_are_there():
    (lines,) = run_ranks(missing, 1)
    assert not lines, "\n".join(lines)


def test_one_that_is_gone_is_named_with_its_readers():
    gone = Owner("torch", "torch", ("_foreach_mul_", "_gone"), lambda: torch)
    (line,) = gone.missing()
    assert line.startswith(f"torch {torch.__version__.partition('+')[0]}")
    assert "no private attribute _gone of torch" in line
    assert replace(gone, names=("_foreach_mul_",)).missing() == []
    assert replace(gone, since=99).missing() == []


def test_an_owner_that_is_gone_is_named_with_what_is_read_of_it():
    owner = Owner("torch", "FSDP1's handle", ("_handle",), lambda: torch.nn.Linear(1, 1)._handle)
    (line,) = owner.missing()
    assert "no private attribute _handle of FSDP1's handle, which was not found (AttributeError: " in line
    assert "; read by alphadecay_dist/engines/native/fsdp1.py" in line


@pytest.mark.parametrize(
    ("code", "seen"),
    [
        ("x._y", ["_y"]),
        ("a.b[0]._y.z", ["_y"]),
        ("getattr(x, '_y', None)", ["_y"]),
        ("from a._b import c", ["c"]),
        ("from a import _b", ["_b"]),
        ("self._y\ncls._z\nx.__doc__\nx.y", []),
    ],
)
def test_the_walk_sees_a_private_name(code, seen):
    assert list(private_names(ast.parse(code))) == seen
