"""Which files a source means, and what is left out of directories and globs."""

from __future__ import annotations

import pytest

from alphadecay_dist.errors import UserError
from alphadecay_dist.training.data.corpus import open_corpora
from alphadecay_dist.training.data.sources import find_files
from alphadecay_dist.training.recipe import DataConfig
from tests.training.corpora import numbered, open_all, texts_of, write_bytes, write_files, write_lines


@pytest.mark.parametrize("source", ["", "/*.jsonl", "/part-00[0-2].jsonl", "/**/*.jsonl"])
def test_a_directory_or_a_glob_gives_all_its_files(tmp_path, source):
    folder = write_files(tmp_path / "data", [numbered(3), numbered(2, 3), numbered(4, 5)])
    (folder / "README.md").write_text("not data")
    corpus, _ = open_corpora(DataConfig(source=f"{folder}{source}"))
    assert corpus.num_files == 3
    assert texts_of(corpus) == numbered(9)


def test_a_directory_is_read_to_its_depths(tmp_path):
    write_files(tmp_path / "data" / "b" / "c", [numbered(3)])
    write_files(tmp_path / "data" / "a", [numbered(3, 3)])
    assert sorted(open_all(tmp_path / "data")[0]) == sorted(numbered(6))


@pytest.mark.parametrize("name", ["a[1].txt", "a*.txt", "a?.txt", "a b.txt", "ä.txt", ".hidden.txt"])
def test_a_name_is_taken_as_it_is(tmp_path, name):
    (tmp_path / "a1.txt").write_text("not this one")
    (tmp_path / name).write_text("this one")
    assert open_all(tmp_path / name)[0] == ["this one"]


# Beside a.jsonl: what file browsers, notebooks, archives, downloads, jobs and tables leave there.
LEFT_THERE = [
    ".ipynb_checkpoints/a-checkpoint.jsonl",
    "._a.jsonl",
    ".a.jsonl.swp",
    ".cache/huggingface/download/a.jsonl",
    "__MACOSX/a.jsonl",
    "deep/.hidden/deeper/a.jsonl",
    "_temporary/0/a.jsonl",
    "_delta_log/00000000000000000000.json",
    "a.jsonl.incomplete",
    "b.jsonl.tmp",
    "b.jsonl.gz.part",
]


@pytest.mark.parametrize("pattern", ["", "/*", "/**"])
@pytest.mark.parametrize("name", LEFT_THERE)
def test_what_is_left_beside_data_is_no_data(tmp_path, name, pattern):
    folder = write_files(tmp_path / "data", [numbered(3)])
    other = folder / name
    other.parent.mkdir(parents=True, exist_ok=True)
    write_lines(other, [{"text": "twice"}])
    assert find_files(f"{folder}{pattern}") == ("json", [str(folder / "part-000.jsonl")])


@pytest.mark.parametrize(
    "name", [".hidden/a.jsonl", "._a.jsonl", "__MACOSX/a.jsonl", ".a/b/_temporary/a.jsonl"]
)
def test_what_is_named_is_taken(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_lines(path, [{"text": "this one"}])
    assert open_all(path)[0] == ["this one"]
    assert find_files(f"{path.parent}/{path.name[:2]}*") == ("json", [str(path)])


def test_a_directory_below_a_hidden_one_is_read(tmp_path):
    folder = write_files(tmp_path / ".cache" / "data", [numbered(3)])
    assert open_all(folder)[0] == numbered(3)


def test_a_compressed_copy_beside_its_file_is_not_read_twice(tmp_path):
    for name in ("a.jsonl", "a.jsonl.zst", "b.jsonl.gz", "b.jsonl.xz", "c.jsonl.bz2"):
        write_bytes(tmp_path / name, b"")
    names = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.bz2")]
    assert find_files(str(tmp_path)) == find_files(f"{tmp_path}/*") == ("json", names)


def test_files_of_several_kinds_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    write_lines(tmp_path / "a.jsonl", [{"text": "one"}])
    with pytest.raises(UserError, match=r"expected files of one kind of \.txt.*a\.jsonl and .*a\.txt; give"):
        find_files(str(tmp_path))


@pytest.mark.parametrize("name", ["none.txt", "none*", "empty", "empty/*.txt"])
def test_what_is_not_there_is_named(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as caught:
        find_files(str(tmp_path / name))
    assert f"data: {tmp_path / name}: no such file" in str(caught.value)


def test_a_file_of_no_known_kind_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("text\none")
    with pytest.raises(UserError, match=r"a\.csv: expected files of one kind of \.txt, \.json"):
        find_files(str(tmp_path / "a.csv"))
