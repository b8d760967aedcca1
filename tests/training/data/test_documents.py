"""Files of each kind -> the text of every row; what is no text is refused with its file and row."""

from __future__ import annotations

import gzip
import json
import os
import random
import socket
import subprocess
import sys

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from alphadecay_dist.errors import UserError
from alphadecay_dist.training.data.corpus import DocumentLane, open_corpora
from alphadecay_dist.training.data.documents import _paragraphs
from alphadecay_dist.training.data.sources import COMPRESSED
from alphadecay_dist.training.recipe import DataConfig
from tests.training.corpora import (
    COMPRESS,
    numbered,
    open_all,
    texts_of,
    write_bytes,
    write_files,
    write_lines,
)

TEXTS = ["one", "two\nlines", "three", "four", "five"]


def write_txt(path):
    write_bytes(path, ("\n\n".join(TEXTS) + "\n\n\n").encode())


def write_json(path, indent=None):
    write_bytes(
        path, json.dumps([{"text": text, "id": i} for i, text in enumerate(TEXTS)], indent=indent).encode()
    )


def write_jsonl(path):
    write_lines(path, ({"id": i, "text": text} for i, text in enumerate(TEXTS)))


def write_parquet(path):
    parquet.write_table(pyarrow.table({"text": TEXTS, "id": list(range(5))}), path, row_group_size=2)


KINDS = {
    "a.txt": write_txt,
    "a.json": write_json,
    "a.jsonl": write_jsonl,
    "a.json.gz": write_jsonl,
    "a.parquet": write_parquet,
    **{f"a.txt{suffix}": write_txt for suffix in COMPRESSED},
    **{f"a.jsonl{suffix}": write_jsonl for suffix in COMPRESSED},
    **{f"b.json{suffix}": write_json for suffix in COMPRESSED},
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_gives_its_documents_from_any_row_on(tmp_path, name):
    KINDS[name](tmp_path / name)
    corpus, _ = open_corpora(DataConfig(source=str(tmp_path / name)))
    assert corpus.num_files == 1
    for start in range(6):
        assert list(corpus.rows(0, start)) == list(enumerate(TEXTS))[start:]


def test_paragraphs_of_a_file_with_dos_line_ends(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\r\n\r\nthree")
    assert open_all(tmp_path / "a.txt")[0] == ["one\ntwo", "three"]


def test_documents_without_text_are_left_out_and_keep_their_row(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", ({"text": text} for text in ["a", "", "  \n", " b "]))
    corpus, _ = open_corpora(DataConfig(source=str(path)))
    assert list(corpus.rows(0, 0)) == [(0, "a"), (3, "b")]


LAYOUTS = {
    "an object over several lines": "\n".join(json.dumps({"text": text}, indent=2) for text in TEXTS),
    "several objects in a line": " ".join(json.dumps({"text": text}) for text in TEXTS),
    "empty lines, DOS line ends": "\n\r\n".join(json.dumps({"text": text}) for text in TEXTS) + " \n\n",
    "a list over several lines": json.dumps([{"text": text} for text in TEXTS], indent=1),
    "a list after empty lines": "\n \n" + json.dumps([{"text": text} for text in TEXTS]),
    "a list of strings": json.dumps(TEXTS),
    "a byte order mark": "\ufeff" + "\n".join(json.dumps({"text": text}) for text in TEXTS),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_json_is_read_in_every_layout(tmp_path, name):
    (tmp_path / "a.json").write_text(LAYOUTS[name], encoding="utf-8")
    assert open_all(tmp_path / "a.json")[0] == TEXTS


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", "b c", "\n", "\n\n", "\n\n\n"]), max_size=20).map("".join))
def test_paragraphs_are_what_two_newlines_part(text):
    assert list(_paragraphs(text.splitlines(keepends=True))) == [part for part in text.split("\n\n") if part]


def test_another_text_field(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"body": "one", "text": "no"}])
    assert open_all(path, text_field="body")[0] == ["one"]


def test_what_other_fields_hold_does_not_matter(tmp_path):
    metas = [None] * 9 + ["text", {"deep": [1, {"x": None}]}, 10**400, [], 3.5]
    write_lines(tmp_path / "a.jsonl", ({"text": f"a{i}", "meta": meta} for i, meta in enumerate(metas)))
    write_lines(tmp_path / "b.jsonl", [{"id": 1, "text": "b", "more": True}, {"text": "c"}])
    assert open_all(tmp_path)[0] == [*(f"a{i}" for i in range(len(metas))), "b", "c"]


def test_a_type_that_changes_after_ten_megabytes_does_not_matter(tmp_path):
    rows = [{"text": f"{i} {'x' * 5000}", "meta": None} for i in range(2200)]
    path = write_lines(tmp_path / "a.jsonl", [*rows, {"text": "last", "meta": "text"}])
    corpus, _ = open_corpora(DataConfig(source=str(path), holdout=10**6))
    assert list(corpus.rows(0, 2199)) == [(2199, rows[-1]["text"]), (2200, "last")]


def test_other_columns_of_parquet_do_not_matter(tmp_path):
    parquet.write_table(pyarrow.table({"text": ["a"], "meta": [None]}), tmp_path / "a.parquet")
    parquet.write_table(pyarrow.table({"meta": ["x"], "text": ["b"]}), tmp_path / "b.parquet")
    parquet.write_table(pyarrow.table({"more": [[1]], "text": ["c"]}), tmp_path / "c.parquet")
    assert open_all(tmp_path)[0] == ["a", "b", "c"]


def write_column(path, values, kind):
    parquet.write_table(pyarrow.table({"text": pyarrow.array(values, kind)}), path, row_group_size=2)


@pytest.mark.parametrize(
    "kind",
    [pyarrow.large_string(), pyarrow.string_view(), pyarrow.dictionary(pyarrow.int8(), pyarrow.string())],
)
def test_text_of_any_type_in_parquet(tmp_path, kind):
    write_column(tmp_path / "a.parquet", ["a", "b", None, "a"], kind)
    with pytest.warns(UserWarning, match="row 2"):
        assert open_all(tmp_path / "a.parquet")[0] == ["a", "b", "a"]


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.null(), pyarrow.int64()])
def test_an_empty_part_of_parquet_is_passed_over(tmp_path, kind):
    write_column(tmp_path / "a.parquet", [], kind)
    write_column(tmp_path / "b.parquet", ["a", "b", "c"], pyarrow.string())
    parquet.write_table(pyarrow.table({}), tmp_path / "c.parquet")
    corpus, _ = open_corpora(DataConfig(source=str(tmp_path)))
    assert corpus.num_files == 3
    lane = DocumentLane(corpus, 0, 1, 0, 3)
    assert sorted(lane.next() for _ in range(3)) == ["a", "b", "c"]
    assert lane.cursor.epoch == 0


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.jsonl.gz", "a.txt.zst"])
def test_a_part_without_a_byte_is_passed_over(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    (tmp_path / name.replace("a", "b", 1)).write_bytes(b"")
    write_bytes(tmp_path / name.replace("a", "c", 1), b"one" if "txt" in name else b'{"text": "one"}')
    assert open_all(tmp_path)[0] == ["one"]


def nulls(path, rows):
    return write_lines(path, ({"text": None if row in rows else str(row)} for row in range(30)))


def test_null_is_passed_over_and_told_and_counted(tmp_path):
    nulls(tmp_path / "a.jsonl", [])
    nulls(tmp_path / "b.jsonl", [17, 20])
    nulls(tmp_path / "c.jsonl", [0, 1, 2])
    corpus, _ = open_corpora(DataConfig(source=str(tmp_path), holdout=1000))
    lane = DocumentLane(corpus, 0, 1, 0, 100)
    with pytest.warns(UserWarning, match="null in 'text'") as caught:
        read = [lane.next() for _ in range(3 * 85 + 1)]
    assert len(set(read)) == 30
    first, count = (str(warning.message) for warning in caught)  # once each, over three epochs
    assert ": row " in first
    assert first.endswith("(counted from 0) is null in 'text'; such rows are passed over")
    assert count == f"data: {tmp_path}: 5 rows so far are null in 'text' and were passed over"


def test_null_in_five_files_names_the_right_one(tmp_path):
    for name in "abde":
        nulls(tmp_path / f"{name}.jsonl", [])
    path = nulls(tmp_path / "c.jsonl", [17])
    corpus, _ = open_corpora(DataConfig(source=str(tmp_path), holdout=1000))
    with pytest.warns(UserWarning, match=rf"^data: {path}: row 17 \(counted from 0\) is null in 'text'"):
        assert len(texts_of(corpus)) == 149


def test_a_null_row_that_is_read_by_many_lanes_counts_once(tmp_path):
    path = nulls(tmp_path / "a.jsonl", [3, 4])
    corpus, _ = open_corpora(DataConfig(source=str(path), holdout=1000))
    lanes = [DocumentLane(corpus, lane, 4, 0, 100) for lane in range(4)]
    with pytest.warns(UserWarning, match="null in 'text'") as caught:
        assert len({lane.next() for _ in range(9) for lane in lanes}) == 28
    assert [str(warning.message) for warning in caught][1:] == [
        f"data: {path}: 2 rows so far are null in 'text' and were passed over"
    ]


WRONG = {
    "no field": ({"body": "x", "id": 1}, "has no field 'text' (its fields: body, id); set data.text_field"),
    "a number": ({"text": 3, "body": ""}, "has a number in 'text', expected text (its fields: text, body)"),
    "a truth value": ({"text": True}, "has a truth value in 'text', expected text"),
    "a list": ({"text": ["x"]}, "has a list in 'text', expected text"),
    "an object": ({"text": {}}, "has an object in 'text', expected text"),
    "no object": ("x", "is a string, expected an object with the field 'text'"),
    "no UTF-16": ({"text": "\ud800"}, "has half of a surrogate pair in 'text'"),
    "many fields": ({str(i): 0 for i in range(10**5)}, "has no field 'text' (its fields: 0, 1, 2, "),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("row", [0, 7, 11000])
def test_a_row_without_text_names_file_row_and_fields(tmp_path, name, row):
    record, words = WRONG[name]
    write_lines(tmp_path / "a.jsonl", [{"text": "fine"}])
    path = write_lines(
        tmp_path / "b.jsonl", [*({"text": "fine"} for _ in range(row)), record, {"text": "fine"}]
    )
    with pytest.raises(UserError) as caught:
        open_all(tmp_path)
    assert str(caught.value).startswith(f"data: {path}: row {row} (counted from 0) {words}")


UNDECODABLE = {
    "comma.jsonl": (b'{"text": "a" "b"}\n', "is not JSON: Expecting ',' delimiter in "),
    "cut.jsonl": (b'{"text": "x", \n{"text": "y"}\n', "is not JSON: "),
    "end.jsonl": (b'{"text": ', "is not whole: the file ends in the middle of a JSON value"),
    "latin.jsonl": (b'{"text": "caf\xe9"}\n', "is not text in UTF-8"),
    "deep.jsonl": (b'{"text": ' + b"[" * 10**5 + b"\n", "is nested too deep"),
    "latin.txt": (b"caf\xe9\n\n", "is not text in UTF-8"),
}


@pytest.mark.parametrize("name", UNDECODABLE)
@pytest.mark.parametrize("row", [0, 1, 4321])
def test_a_row_that_cannot_be_decoded_is_named(tmp_path, name, row):
    content, words = UNDECODABLE[name]
    fine = b"fine\n\n" if name.endswith(".txt") else b'{"text": "fine"}\n'
    (tmp_path / name).write_bytes(fine * row + content + fine)
    if name == "end.jsonl":
        (tmp_path / name).write_bytes(fine * row + content)
    with pytest.raises(UserError) as caught:
        open_all(tmp_path / name)
    assert str(caught.value).startswith(f"data: {tmp_path / name}: row {row} (counted from 0) {words}")


LISTS = {
    b'["a", "b"]\n["c"]\n': (2, "is not JSON: Expecting nothing after a list"),
    b'[{"text": "a"} {"text": "b"}]': (1, "is not JSON: Expecting ',' delimiter in "),
    b'["a", "b",\n': (2, "is not whole"),
    b'["a"\n': (1, "is not whole"),
    b'{"text": "a"}\n["b"]\n': (1, "is a list, expected an object with the field 'text'"),
    b'["a", 3]': (1, "is a number, expected an object with the field 'text'"),
}


@pytest.mark.parametrize("content", LISTS)
def test_a_fault_in_a_list_names_its_row(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    row, words = LISTS[content]
    with pytest.raises(UserError, match=rf"a\.json: row {row} \(counted from 0\) {words}"):
        open_all(tmp_path / "a.json")


def test_a_wrong_column_of_parquet_names_file_row_and_fields(tmp_path):
    write_column(tmp_path / "a.parquet", ["a"] * 5, pyarrow.string())
    write_column(tmp_path / "b.parquet", [b"a"] * 5, pyarrow.binary())
    with pytest.raises(
        UserError, match=r"b\.parquet: row 0 \(counted from 0\) has bytes in 'text'.*fields: text"
    ):
        open_corpora(DataConfig(source=str(tmp_path)))
    parquet.write_table(pyarrow.table({"body": ["b"], "id": [1]}), tmp_path / "b.parquet")
    with pytest.raises(
        UserError, match=r"b\.parquet: has no column 'text' \(its fields: body, id\); set data"
    ):
        open_corpora(DataConfig(source=str(tmp_path)))


def test_undecodable_text_in_parquet_names_its_row(tmp_path):
    values = pyarrow.array([b"fine"] * 3000 + [b"caf\xe9"], pyarrow.binary())
    text = pyarrow.Array.from_buffers(pyarrow.string(), len(values), values.buffers())
    parquet.write_table(pyarrow.table({"text": text}), tmp_path / "a.parquet", row_group_size=2500)
    with pytest.raises(UserError, match=r"a\.parquet: row 3000 \(counted from 0\) is not text in UTF-8"):
        open_all(tmp_path / "a.parquet")


WHOLE = gzip.compress(b"".join(b'{"text": "%d"}\n' % random.Random(i).getrandbits(64) for i in range(2000)))
BROKEN = {
    "cut.jsonl": b'{"text": "x"}\n{"text": ',
    "words.json": b"just words",
    "cut.json.gz": WHOLE[:-100],
    "flipped.json.gz": WHOLE[:500] + bytes(60) + WHOLE[560:],
    "plain.json.gz": b'{"text": "x"}\n',
    "empty.json.gz": b"",
    "cut.parquet": b"PAR1xxxxPAR1",
    "empty.parquet": b"",
    "cut.jsonl.zst": COMPRESS[".zst"](b'{"text": "x"}\n' * 99)[:-9],
    "plain.jsonl.zst": b'{"text": "x"}\n' * 99,
    "cut.jsonl.xz": COMPRESS[".xz"](b'{"text": "x"}\n' * 99)[:-9],
    "plain.jsonl.bz2": b'{"text": "x"}\n' * 99,
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_line_that_names_it(tmp_path, name):
    (tmp_path / name).write_bytes(BROKEN[name])
    with pytest.raises(UserError) as caught:
        open_all(tmp_path / name)
    assert str(caught.value).startswith(f"data: {tmp_path / name}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_json_file_without_a_byte_is_a_users_error(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=rf"{name}: has no document; give files with text"):
        open_all(tmp_path / name)


def test_local_files_ask_nothing_of_the_network(tmp_path, monkeypatch):
    asked = []

    def refuse(host, *_, **__):
        asked.append(host)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    folder = write_files(tmp_path / "texts", [numbered(5), numbered(5, 100)])
    assert open_all(folder, holdout=5) != ([], [])
    assert asked == []


def test_local_files_need_no_cache(tmp_path):
    (tmp_path / "file").write_text("")
    write_column(tmp_path / "a.parquet", ["a"] * 5, pyarrow.string())
    program = (
        "import sys\n"
        "from alphadecay_dist.training.data.corpus import open_corpora\n"
        "from alphadecay_dist.training.recipe import DataConfig\n"
        "for source in ('demo', sys.argv[1]):\n"
        "    for corpus in open_corpora(DataConfig(source=source, holdout=2)):\n"
        "        assert list(corpus.documents())\n"
        "assert 'datasets' not in sys.modules\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "a.parquet")]
    subprocess.run(command, env={**os.environ, "HF_HOME": str(tmp_path / "file" / "x")}, check=True)
