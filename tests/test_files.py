"""Files and directories are there whole or not at all, and names do not lead out of a directory."""

from __future__ import annotations

import os

import pytest

from alphadecay_dist import files


class Crash(BaseException):
    """The end of the process, as far as the disk can see."""


def crash(*_):
    raise Crash


def test_a_crash_before_the_rename_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "status.json"
    files.write_atomically(path, "old")
    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(Crash):
        files.write_atomically(path, "new")
    assert path.read_text() == "old"
    monkeypatch.undo()
    files.write_atomically(path, "newer")
    assert (path.read_text(), [inner.name for inner in tmp_path.iterdir()]) == ("newer", ["status.json"])


def test_a_file_that_cannot_be_replaced_leaves_nothing_beside_it(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        files.write_atomically(tmp_path / "taken", "text")
    assert [inner.name for inner in tmp_path.iterdir()] == ["taken"]


def test_a_directory_gets_its_name_when_it_is_filled(tmp_path):
    path = tmp_path / "deep" / "out"
    with files.new_directory(path) as folder:
        (folder / "shards").mkdir()
        (folder / "shards" / "a").write_text("content")
        assert not path.exists()
    assert (path / "shards" / "a").read_text() == "content"
    assert [inner.name for inner in path.parent.iterdir()] == ["out"]


def test_a_directory_that_failed_half_way_is_removed(tmp_path):
    def fill(path):
        with files.new_directory(path) as folder:
            (folder / "a").write_text("content")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fill(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_of_a_directory_is_not_in_the_next(tmp_path):
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "old").write_text("half of it")
    with files.new_directory(tmp_path / "out") as folder:
        (folder / "new").touch()
    assert [inner.name for inner in (tmp_path / "out").iterdir()] == ["new"]


def test_a_size_is_that_of_a_file_alone(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    sizes = [
        files.size_of(path) for path in (tmp_path / "file", tmp_path, tmp_path / "none", tmp_path / "loop")
    ]
    assert sizes == [3, None, None, None]


@pytest.mark.parametrize(
    ("name", "inner"),
    [
        ("a", True),
        ("shards/a", True),
        ("a..b/c", True),
        ("", False),
        (".", False),
        ("..", False),
        ("shards/../../a", False),
        ("/etc/hostname", False),
        ("a\0b", False),
    ],
)
def test_a_name_that_may_lead_out_is_no_inner_path(name, inner):
    assert files.is_inner_path(name) == inner


def test_a_link_to_outside_leads_out(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").touch()
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "inside").symlink_to(folder / "file")
    assert [files.leads_out(folder, name) for name in ("file", "inside", "link", "../x")] == [
        False,
        False,
        True,
        True,
    ]
